"""`evaluate` and the fitting helpers: what they refuse, and that they leave model and data alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from dynbn_lightning import BNStatsBank, CorruptionDataModule, DetectorModule, evaluate
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.errors import BankError, DataError, DetectorError, UnsupportedModelError
from dynbn_lightning.fitting import fit_detector
from dynbn_lightning.methods import METHODS, Tools, default_methods
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import accuracies, methods_of


def make_data(**options: Any) -> CorruptionDataModule:
    def images(count: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        return TensorDataset(
            torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator), torch.arange(count) % 10
        )

    options = {"corruptions": ("fog", "contrast"), "severities": (5,), "batch_size": 5, "stream": "mixed", **options}
    return CorruptionDataModule(images(30, 0), test=images(10, 1), **options)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(width=4).eval()


@pytest.fixture(scope="module")
def bank(model: torch.nn.Module) -> BNStatsBank:
    return BNStatsBank.collect(model, make_data().row_loaders(images_per_row=20), progress=False)


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_method", "run_piece"):
        monkeypatch.setattr(f"dynbn_lightning.evaluation.{name}", lambda *args: pytest.fail("work was done"))


def calibrated(bank: BNStatsBank) -> BNStatsBank:
    shares = torch.full((len(bank), len(bank.layers)), 0.3)
    shares[0] = 0
    return replace(bank, calibration=Calibration(shares, shares / 3, 2.0, provenance={"criterion": "labels"}))


def refined(bank: BNStatsBank) -> BNStatsBank:
    weight, bias = torch.ones_like(bank.mean), torch.zeros_like(bank.mean)
    weight[1:] += 0.5
    return replace(bank, weight=weight, bias=bias, provenance={**bank.provenance, "refined": {"images": 64}})


def test_results_and_what_is_left_alone(model: torch.nn.Module) -> None:
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(), progress=False)
    detector = DetectorModule(rows=data.rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    methods = ("source", "batch_stats", "dynamic_bn/hard", "dynamic_bn/soft", "oracle")
    results = evaluate(
        model, data, methods=methods, streams=("sequential",), bank=bank, detector=detector, progress=False
    )
    assert list(methods_of(results)) == list(methods)
    for block in methods_of(results).values():
        assert list(block["cells"]) == ["fog/5", "contrast/5"]
        assert all(scores["images"] == 10 for scores in block["cells"].values())
        assert all(value * 10 == pytest.approx(round(value * 10)) for value in accuracies(block).values())
    assert methods_of(results)["oracle"]["clean"] == methods_of(results)["source"]["clean"]
    assert [run["stream"] for run in results["runs"]] == ["sequential"]
    protocol = results["protocol"]
    assert protocol["test_images"] == 10
    assert protocol["bank"]["image_counts"] == {"fog": 27, "contrast": 27}
    assert data.stream == "mixed"
    assert data.trainer is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_the_bank_skips_are_left_alone_by_all_methods() -> None:
    class OwnBatchNorm(torch.nn.BatchNorm2d):
        pass

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        OwnBatchNorm(4),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(3600, 10),
    ).eval()
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=5), skip=["1"], progress=False)
    assert list(bank.layers) == ["2"]
    results = evaluate(model, data, methods=("batch_stats", "oracle"), bank=bank, progress=False)
    assert list(methods_of(results)) == ["batch_stats", "oracle"]
    with pytest.raises(UnsupportedModelError, match="OwnBatchNorm"):
        evaluate(model, data, methods=("batch_stats",), progress=False)


def test_bad_input_is_refused_before_any_work(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=5), progress=False)
    forbid_work(monkeypatch)
    stranger = DetectorModule(rows=("clean", "fog", "snow"))
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"methods": ("source", "sorce")}, DataError, "did you mean 'source'"),
        ({"methods": ()}, DataError, "one or more"),
        ({"methods": ("oracle",)}, DataError, "needs a bank"),
        ({"methods": ("dynamic_bn/soft",), "bank": bank}, DataError, "needs a detector"),
        ({"methods": ("source",), "streams": ()}, DataError, "one or more"),
        ({"methods": ("source",), "streams": ("mixed", "mixed")}, DataError, "different streams"),
        ({"methods": ("dynamic_bn/soft",), "bank": bank, "detector": stranger}, DetectorError, "snow"),
    ]
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            evaluate(model, data, progress=False, **options)
    with pytest.raises(BankError, match="another model"):
        evaluate(cifar_resnet8(width=8).eval(), data, methods=("oracle",), bank=bank, progress=False)


def test_fit_detector_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(DataError, match="epochs=0"):
        fit_detector(make_data(), 0)
    wide = TensorDataset(torch.zeros(20, 3, 32, 40, dtype=torch.uint8), torch.zeros(20).long())
    with pytest.raises(DataError, match=r"32 x 40.*image_size="):
        fit_detector(CorruptionDataModule(wide, test=wide), 1)


def test_fit_detector_leaves_the_datamodule_as_it_was() -> None:
    data = make_data(task="classifier")
    detector = fit_detector(data, 1, enable_progress_bar=False, accelerator="cpu")
    assert detector.rows == data.rows
    assert data.task == "classifier"
    assert data.trainer is None


# Which methods there are


def test_the_default_methods_are_the_best_that_bank_and_detector_allow(bank: BNStatsBank) -> None:
    plain = ["source", "batch_stats"]
    assert default_methods(None, has_detector=False) == plain
    assert default_methods(None, has_detector=True) == plain
    assert default_methods(refined(calibrated(bank)), has_detector=False) == plain
    assert default_methods(bank, has_detector=True) == [*plain, "dynamic_bn/soft"]
    assert default_methods(refined(bank), has_detector=True) == [*plain, "dynamic_bn/soft"]
    assert default_methods(calibrated(bank), has_detector=True) == [*plain, "dynamic_bn/calibrated"]
    best = [*plain, "dynamic_bn/calibrated", "dynamic_bn/refined"]
    assert default_methods(refined(calibrated(bank)), has_detector=True) == best


def test_without_methods_the_default_ones_are_evaluated(model: torch.nn.Module, bank: BNStatsBank) -> None:
    data, detector = make_data(), DetectorModule(rows=make_data().rows)
    for options, methods in (
        ({}, ["source", "batch_stats"]),
        (
            {"bank": refined(calibrated(bank)), "detector": detector},
            ["source", "batch_stats", "dynamic_bn/calibrated", "dynamic_bn/refined"],
        ),
    ):
        results = evaluate(model, data, progress=False, **options)  # type: ignore[arg-type]
        assert list(methods_of(results)) == methods
        assert results["protocol"]["calibration"] == ({"criterion": "labels"} if options else None)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.calibrated])
def test_methods_that_need_calibration_are_refused_before_any_work(
    model: torch.nn.Module, bank: BNStatsBank, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_work(monkeypatch)
    options: dict[str, Any] = {"detector": DetectorModule(rows=make_data().rows), "progress": False}
    with pytest.raises(DataError, match=f"'{name}' needs a calibrated bank: calibrate it with `dynbn calibrate`"):
        evaluate(model, make_data(), methods=("source", name), bank=refined(bank), **options)


def test_methods_that_need_refinement_are_refused_before_any_work(
    model: torch.nn.Module, bank: BNStatsBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_work(monkeypatch)
    options: dict[str, Any] = {"detector": DetectorModule(rows=make_data().rows), "progress": False}
    assert [name for name, method in METHODS.items() if method.refined] == ["dynamic_bn/refined"]
    with pytest.raises(DataError, match=r"needs a bank with refined rows: refine them with `dynbn refine`"):
        evaluate(model, make_data(), methods=("dynamic_bn/refined",), bank=calibrated(bank), **options)


def test_methods_use_of_the_bank_what_their_names_say(bank: BNStatsBank) -> None:
    detector = DetectorModule(rows=make_data().rows)
    full = refined(calibrated(bank))
    used = {}
    for name, method in METHODS.items():
        if method.quantiles != "none":
            continue
        for callback in method.callbacks(Tools(full, detector)):
            if (its := getattr(callback, "bank", None)) is not None:
                used[name] = (callback.routing, callback.evidence, its.calibration is not None, its.refined)  # type: ignore[attr-defined]
    assert used == {
        "dynamic_bn": ("soft", "image", True, True),
        "dynamic_bn/hard": ("hard", "image", False, False),
        "dynamic_bn/soft": ("soft", "image", False, False),
        "dynamic_bn/calibrated": ("soft", "image", True, False),
        "dynamic_bn/batch": ("soft", "batch", True, False),
        "dynamic_bn/stream": ("soft", "stream", True, False),
        "dynamic_bn/refined": ("soft", "image", True, True),
        "oracle": ("oracle", "image", False, False),
        "oracle/calibrated": ("oracle", "image", True, False),
    }


def test_only_what_used_refined_rows_is_marked(model: torch.nn.Module, bank: BNStatsBank) -> None:
    methods = ("dynamic_bn/calibrated", "dynamic_bn/refined", "oracle/calibrated")
    options: dict[str, Any] = {"detector": DetectorModule(rows=make_data().rows), "progress": False}
    results = evaluate(model, make_data(), methods=methods, bank=refined(calibrated(bank)), **options)
    marks = {name: block.get("refined") for name, block in methods_of(results).items()}
    assert marks == {"dynamic_bn/calibrated": None, "dynamic_bn/refined": True, "oracle/calibrated": None}
