"""Every method by its name: it runs, says what it needs, and depends on what it says it depends on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from dynbn_lightning import (
    BatchStatsCallback,
    BNStatsBank,
    CorruptionDataModule,
    DetectorModule,
    DynamicBNCallback,
    QuantileBank,
    evaluate,
    evaluation,
)
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.callbacks import BatchNormCallback
from dynbn_lightning.cost import PeakMemory
from dynbn_lightning.errors import BankError, DataError, UnsupportedModelError
from dynbn_lightning.methods import METHODS, Method, Tools, check_methods, needs_of, register_method
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import ImageRecords, methods_of

COMPARED = ("source", "batch_stats", "few_shot", "ema", "distribution_matching", "unmix_tns", "tent", "dynamic_bn")
"""The methods that `dynbn evaluate --methods` is promised to compare in one command."""


def pixels(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 4, (count,), generator=generator) * 40
    noise = torch.randint(0, 120, (count, 3, 32, 32), generator=generator)
    return (noise + levels.view(-1, 1, 1, 1)).to(torch.uint8)


@cache
def settled_model() -> torch.nn.Module:
    """Running statistics of its images, so that it has opinions."""
    torch.manual_seed(0)
    model = cifar_resnet8(width=4).train()
    with torch.no_grad():
        for _ in range(30):
            model(pixels(60, 0).float() / 255)
    return model.eval()


@torch.no_grad()
def make_data(**options: Any) -> CorruptionDataModule:
    """The test images' classes are what the model takes them for, so that any other prediction is counted."""
    test = pixels(40, 1)
    options = {"corruptions": ("fog", "contrast"), "severities": (5,), "batch_size": 20, "seed": 1, **options}
    return CorruptionDataModule(
        TensorDataset(pixels(60, 0), torch.arange(60) % 10),
        test=TensorDataset(test, settled_model()(test.float() / 255).argmax(1)),
        **options,
    )


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return settled_model()


@pytest.fixture(scope="module")
def made(model: torch.nn.Module) -> dict[str, Any]:
    """A bank that is calibrated and refined, a detector, and quantiles of all rows."""
    loaders = make_data().row_loaders(images_per_row=40)
    bank = BNStatsBank.collect(model, loaders, progress=False)
    shares = torch.full((len(bank), len(bank.layers)), 0.3)
    shares[0] = 0
    torch.manual_seed(1)
    weight, bias = torch.ones_like(bank.mean), torch.zeros_like(bank.mean)
    weight[1:] += 0.1
    return {
        "bank": replace(
            bank,
            calibration=Calibration(shares, shares / 3, provenance={"criterion": "consistency"}),
            weight=weight,
            bias=bias,
            provenance={**bank.provenance, "refined": {"criterion": "labels"}},
        ),
        "detector": DetectorModule(rows=make_data().rows),
        "quantiles": QuantileBank.collect(model, loaders, count=16, progress=False),
    }


def run(
    model: torch.nn.Module, made: dict[str, Any], stream: str, batch_size: int, methods: Any, output: Path
) -> dict[str, Any]:
    data = make_data(batch_size=batch_size)
    results = evaluate(model, data, methods=methods, streams=(stream,), output=output, progress=False, **made)
    return methods_of(results, stream, batch_size)


@pytest.fixture(scope="module")
def on_streams(
    model: torch.nn.Module, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], dict[str, Any]]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places, output = (("mixed", 20), ("correlated", 5)), tmp_path_factory.mktemp("streams")
    found = {place: run(model, made, *place, tuple(METHODS), output) for place in places}
    for blocks in found.values():
        for block in blocks.values():
            records, _ = ImageRecords.load(output / block["records"])
            block["correct"] = records.correct_by_cell(["clean", "fog/5", "contrast/5"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_depends_on_the_stream_only_if_it_says_so(
    name: str, on_streams: dict[tuple[str, int], dict[str, Any]]
) -> None:
    outcomes = [blocks[name]["correct"] for blocks in on_streams.values()]
    same = torch.equal(*outcomes)
    assert same == METHODS[name].by_image, "each image by itself, whatever comes before and beside it"


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_needs_stands_beside_its_results(
    name: str, on_streams: dict[tuple[str, int], dict[str, Any]]
) -> None:
    block = on_streams["mixed", 20][name]
    fitted_to_labels = name in ("dynamic_bn", "dynamic_bn/refined")  # by the fixture's refinement
    assert block["needs"] == [*METHODS[name].needs, *(["class labels of them"] if fitted_to_labels else [])]
    assert block["ms_per_image"] > 0
    assert block["memory_mib"] is None or block["memory_mib"] >= 0
    assert ("gradients" in block["needs"]) == METHODS[name].gradients
    uses_training_images = METHODS[name].bank or METHODS[name].quantiles != "none"
    assert any("training images" in need for need in block["needs"]) == uses_training_images
    if not METHODS[name].by_image:
        others = {"batches", "a stream", "where a cell begins"}
        assert others & set(block["needs"]), "what else an image's prediction depends on"


def test_one_command_compares_them_all_on_streams_and_batch_sizes(model: torch.nn.Module, made: dict[str, Any]) -> None:
    given = {**made, "quantiles": None}
    streams = ("mixed", "sequential")
    results = evaluate(
        model, make_data(), methods=COMPARED, streams=streams, batch_sizes=(8, 40), progress=False, **given
    )
    places = [(run["batch_size"], run["stream"]) for run in results["runs"]]
    assert places == [(8, "mixed"), (8, "sequential"), (40, "mixed"), (40, "sequential")]
    for place in results["runs"]:
        assert tuple(place["methods"]) == COMPARED
        for name, block in place["methods"].items():
            copied = METHODS[name].by_image and place["stream"] != "mixed"
            assert block.get("same_as") == ("mixed" if copied else None)
    assert [(run["stream"], run["batch_size"]) for run in results["runs"]] == [
        (stream, size) for size in (8, 40) for stream in ("mixed", "sequential")
    ]
    blocks = methods_of(results)
    assert blocks["dynamic_bn"]["refined"] is True
    assert blocks["few_shot"]["settings"]["FewShotBNCallback"]["images"] == 32
    assert len(blocks["few_shot"]["used_images"][0]) == 32, "which images, in the results"
    assert results["protocol"]["quantiles"]["count"] == 64


def test_callbacks_are_called_as_in_evaluate(made: dict[str, Any]) -> None:
    of_the_bank = ("dynamic_bn/soft", "dynamic_bn/calibrated", "dynamic_bn/refined")  # which a callback can't know
    for name, method in METHODS.items():
        callbacks = method.callbacks(Tools(made["bank"], made["detector"], made["quantiles"]))
        called = "+".join(callback.method for callback in callbacks if isinstance(callback, BatchNormCallback))
        assert (called or "source") == ("dynamic_bn" if name in of_the_bank else name)
    blended = DynamicBNCallback(made["bank"], made["detector"], base=BatchStatsCallback(source_weight=0.3))
    assert blended.method == "dynamic_bn+batch_stats/source_weight"


def test_quantiles_are_measured_where_none_are_given(model: torch.nn.Module, made: dict[str, Any]) -> None:
    clean = QuantileBank.collect(model, make_data().row_loaders(), rows=["clean"], progress=False)
    options: dict[str, Any] = {"methods": ("distribution_matching",), "progress": False}
    measured, given = (
        methods_of(evaluate(model, make_data(), quantiles=quantiles, **options))["distribution_matching"]
        for quantiles in (None, clean)
    )
    assert measured["cells"] == given["cells"], "to the last bit of the likelihood"
    only_tests = CorruptionDataModule(None, test=make_data().test_images.dataset, corruptions=("fog",), preset="cifar")
    with pytest.raises(DataError, match="no training images"):
        evaluate(model, only_tests, methods=("distribution_matching",), progress=False)


def test_missing_quantiles_are_refused_before_any_work(
    model: torch.nn.Module, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "run_method", lambda *args: pytest.fail("work was done"))
    method = ("distribution_matching/dynamic_bn",)
    for quantiles in (None, replace(made["quantiles"], rows=("clean",), quantiles=made["quantiles"].quantiles[:1])):
        with pytest.raises(DataError, match="quantiles of every row"):
            evaluate(model, make_data(), methods=method, progress=False, **{**made, "quantiles": quantiles})
    monkeypatch.undo()
    with pytest.raises(BankError, match="weights are others"):
        evaluate(cifar_resnet8(width=4), make_data(), methods=("distribution_matching",), quantiles=made["quantiles"])


def test_class_labels_are_needed_where_the_bank_was_fitted_to_them(made: dict[str, Any]) -> None:
    def needs(name: str, calibrated: str, refined: str) -> bool:
        calibration = replace(made["bank"].calibration, provenance={"criterion": calibrated})
        bank = replace(made["bank"], calibration=calibration, provenance={"refined": {"criterion": refined}})
        return "class labels of them" in needs_of(name, Tools(bank))

    assert needs("dynamic_bn/refined", "consistency", "labels")
    assert not needs("dynamic_bn/refined", "consistency", "consistency")
    assert not needs("dynamic_bn/calibrated", "consistency", "labels")
    assert needs("dynamic_bn/calibrated", "labels", "consistency")
    assert needs("distribution_matching/dynamic_bn", "labels", "consistency")
    assert not needs("dynamic_bn/soft", "labels", "labels")
    assert needs("dynamic_bn", "consistency", "labels")
    assert not needs("batch_stats", "labels", "labels")


def test_what_cannot_work_is_refused_before_any_method_has_run(
    model: torch.nn.Module, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    full: list[str] = []
    run = evaluation.run_piece

    def watched(*args: Any) -> Any:
        full.append(args[2].method)
        return run(*args)

    monkeypatch.setattr(evaluation, "run_piece", watched)
    options: dict[str, Any] = {"progress": False, **made}
    loaders = make_data().row_loaders(images_per_row=40)
    other_skip = QuantileBank.collect(model, loaders, rows=["clean"], skip=["bn1"], progress=False)
    without_rows = replace(made["bank"], rows=("clean", "fog", "snow"))
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    misfits: list[tuple[torch.nn.Module, tuple[str, ...], dict[str, Any], type[Exception], str]] = [
        (model, ("source", "distribution_matching"), {"quantiles": other_skip}, DataError, "same skip="),
        (model, ("source", "oracle"), {"bank": without_rows}, DataError, "contrast/5"),
        (plain, ("source", "batch_stats"), {"bank": None}, UnsupportedModelError, "no BatchNorm"),
    ]
    for network, methods, changed, error, message in misfits:
        with pytest.raises(error, match=message):
            evaluate(network, make_data(), methods=methods, **{**options, **changed})
    normalised = make_data(normalization="imagenet")
    bank = replace(made["bank"], provenance={**made["bank"].provenance, "normalization": "cifar10"})
    with pytest.raises(DataError, match="must agree"):
        evaluate(model, normalised, methods=("source", "dynamic_bn"), **{**options, "bank": bank})
    assert full == []
    evaluate(model, make_data(), methods=("source", "ema"), **options)
    assert full == ["source", "ema"]


@pytest.mark.parametrize("batch_sizes", [(), (0,), (4, 4), (4, -1)])
def test_batch_sizes_are_different_and_positive(model: torch.nn.Module, batch_sizes: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="batch sizes of at least 1"):
        evaluate(model, make_data(), methods=("source",), batch_sizes=batch_sizes, progress=False)


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    memory = PeakMemory(torch.device("cpu"))
    if memory.mib() is None:
        pytest.skip("only Linux tells the peak of a process")
    taken = torch.ones(40 * 2**18)  # 40 MiB
    del taken
    found = memory.mib()
    assert found is not None
    assert 35 <= found <= 120
    again = PeakMemory(torch.device("cpu")).mib()
    assert again is not None
    assert again < 35


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynbn_lightning.methods.METHODS", dict(METHODS))
    for _ in range(2):  # a notebook's cell is run again
        register_method("mine/half", Method(lambda tools: [BatchStatsCallback(source_weight=0.5)], ("batches",)))
    check_methods(["source", "mine/half"], has_bank=False, has_detector=False)
    with pytest.raises(DataError, match="'source' is a method of this package: give yours another name"):
        register_method("source", Method(lambda tools: []))
    for name in ("", "mine method", "mine,half"):
        with pytest.raises(DataError, match="a method can't be called"):
            register_method(name, Method(lambda tools: []))
