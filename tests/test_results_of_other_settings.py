"""One folder holds results of one model on one data set, made in one way: all else is refused before any work."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from test_evaluation import calibrated, make_data
from test_resuming_an_evaluation import Stop
from torch import nn
from torch.utils.data import Subset

from dynbn_lightning import (
    BatchStatsCallback,
    BNStatsBank,
    ClassifierModule,
    CorruptionReportCallback,
    DetectorModule,
    DynamicBNCallback,
    EMAStatsCallback,
    QuantileBank,
    evaluate,
)
from dynbn_lightning.errors import DataError, OutputError, ReportError
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import ImageRecords, Piece, ResultsFolder, methods_of, read_results


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(width=4).eval()


@pytest.fixture(scope="module")
def bank(model: nn.Module) -> BNStatsBank:
    return calibrated(BNStatsBank.collect(model, make_data().row_loaders(images_per_row=20), progress=False))


@pytest.fixture(scope="module")
def detector() -> DetectorModule:
    torch.manual_seed(1)
    return DetectorModule(rows=make_data().rows)


def run(model: nn.Module, output: Path | None, *methods: str, data: Any = None, **options: Any) -> dict[str, Any]:
    options = {"accelerator": "cpu", "progress": False, **options}
    return evaluate(model, data or make_data(batch_size=4), methods=methods or ("source",), output=output, **options)


def with_callbacks(model: nn.Module, output: Path, *callbacks: L.Callback, **options: Any) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    report = CorruptionReportCallback(output, **options)
    trainer = L.Trainer(accelerator="cpu", devices=1, callbacks=[*callbacks, report], **quiet)
    trainer.test(ClassifierModule(model), datamodule=make_data(batch_size=4), verbose=False)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(
    folder: Path, named: str, *arguments: Any, error: type[Exception] = DataError, **options: Any
) -> None:
    before = content(folder)
    with Stop(arguments[0]) as stop, pytest.raises(error) as raised:
        run(*arguments, **options)
    assert named in str(raised.value)
    assert stop.count == 0, "before any work"
    assert content(folder) == before


def interrupt(model: nn.Module, at: int, *arguments: Any, **options: Any) -> None:
    with Stop(model, at), pytest.raises(KeyboardInterrupt):
        run(model, *arguments, **options)


# What a folder's results have in common


def test_other_settings_are_refused(model: nn.Module, bank: BNStatsBank, detector: Any, tmp_path: Path) -> None:
    its: dict[str, Any] = {"bank": bank, "detector": detector}
    run(model, tmp_path, "source", **its, max_epochs=3)
    its["max_epochs"] = 3
    torch.manual_seed(5)
    another = cifar_resnet8(width=4).eval()
    assert_refused(tmp_path, "data.seed: 0 there, 1 here", model, tmp_path, data=make_data(batch_size=4, seed=1), **its)
    assert_refused(tmp_path, "model: ", another, tmp_path, max_epochs=3)
    other_detector = {**its, "detector": DetectorModule(rows=make_data().rows)}
    assert_refused(tmp_path, "detector: ", model, tmp_path, **other_detector)
    assert_refused(tmp_path, "bank: ", model, tmp_path, **{**its, "bank": bank.uncalibrated()})
    assert_refused(tmp_path, 'precision: "32-true" there, "bf16-mixed" here', model, tmp_path, precision="bf16", **its)
    assert_refused(tmp_path, 'limit_batches: "all" there, 1 here', model, tmp_path, limit_test_batches=1, **its)
    assert_refused(tmp_path, "trainer: ", model, tmp_path, **{**its, "max_epochs": 4})
    del its["max_epochs"]
    assert_refused(tmp_path, "trainer: ", model, tmp_path, **its)


def test_other_images_are_refused_though_as_many(model: nn.Module, tmp_path: Path) -> None:
    images = make_data().test_images.dataset

    def part(*indices: int) -> Any:
        data = make_data(batch_size=2)
        data.test = Subset(images, indices)
        return data

    interrupt(model, 4, tmp_path, data=part(0, 1, 2, 3))
    assert_refused(tmp_path, "data.images_fingerprint", model, tmp_path, data=part(4, 5, 6, 7))
    run(model, tmp_path, data=part(0, 1, 2, 3))


def test_an_older_schema_and_a_file_in_the_way_are_refused(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text('{"schema_version": 2, "runs": []}')
    assert_refused(tmp_path, "schema 2", model, tmp_path / "old")
    (tmp_path / "file").write_text("mine")
    assert_refused(tmp_path, "is a file", model, tmp_path / "file" / "results", error=OutputError)


def test_processes_that_do_not_run_the_whole_program_are_refused(model: nn.Module, tmp_path: Path) -> None:
    assert_refused(tmp_path, "pass strategy='ddp'", model, tmp_path, devices=2, strategy="ddp_spawn")


# What a method's results have in common


def test_a_method_of_the_same_name_with_other_settings_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with_callbacks(model, tmp_path, BatchStatsCallback(prior=1000))
    named = "BatchStatsCallback.prior: 1000 there, 16 here"
    assert_refused(tmp_path, named, model, tmp_path, "batch_stats/prior")
    run(model, tmp_path / "ema", "ema")
    with pytest.raises(DataError, match=r"EMAStatsCallback.momentum: 0.1 there, 1.0 here.*method="):
        with_callbacks(model, tmp_path / "ema", EMAStatsCallback(momentum=1.0))
    with_callbacks(model, tmp_path / "ema", EMAStatsCallback(momentum=1.0), method="ema, fast")
    assert list(methods_of(read_results(tmp_path / "ema"))) == ["ema", "ema, fast"]


def test_what_evaluate_and_the_callback_make_alike_stands_in_one_folder(
    model: nn.Module, bank: BNStatsBank, detector: Any, tmp_path: Path
) -> None:
    its: dict[str, Any] = {"bank": bank, "detector": detector}
    run(model, tmp_path, "source", "ema", "dynamic_bn", **its)
    before = methods_of(read_results(tmp_path))
    with_callbacks(model, tmp_path, EMAStatsCallback())
    with_callbacks(model, tmp_path, DynamicBNCallback(bank, detector))
    after = methods_of(read_results(tmp_path))
    for name in ("ema", "dynamic_bn"):
        assert after[name]["settings"] == before[name]["settings"]
        assert after[name]["cells"] == before[name]["cells"]
    with pytest.raises(DataError, match=r"DynamicBNCallback.bank.calibrated: true there, false here"):
        with_callbacks(model, tmp_path, DynamicBNCallback(bank.uncalibrated(), detector))


def test_a_method_goes_on_with_the_same_quantiles_and_layers_alone(
    model: nn.Module, bank: BNStatsBank, tmp_path: Path
) -> None:
    quantiles = QuantileBank.collect(model, make_data().row_loaders(images_per_row=5), count=8, progress=False)
    matching = ("distribution_matching",)
    interrupt(model, 4, tmp_path / "quantiles", *matching, quantiles=quantiles)
    with pytest.raises(DataError, match=r"DistributionMatchingCallback.quantiles.fingerprint"):
        run(model, tmp_path / "quantiles", *matching)
    skipping = BNStatsBank.collect(model, make_data().row_loaders(images_per_row=5), skip=["bn1"], progress=False)
    interrupt(model, 4, tmp_path / "skip", "batch_stats")
    with pytest.raises(DataError, match=r"BatchStatsCallback.skip: \[\] there, \[\"model.bn1\"\] here"):
        run(model, tmp_path / "skip", "batch_stats", bank=skipping)


# What is there is what was asked for


def test_a_limit_counts_from_the_beginning_after_an_interruption(model: nn.Module, tmp_path: Path) -> None:
    interrupt(model, 1 + 4, tmp_path, limit_test_batches=5)
    results = run(model, tmp_path, limit_test_batches=5)
    block = methods_of(results)["source"]
    assert sum(its["images"] for its in (block["clean"], *block["cells"].values())) == 20


def test_records_that_are_too_few_are_no_results(model: nn.Module, tmp_path: Path) -> None:
    interrupt(model, 1 + 5, tmp_path)
    (kept,) = (tmp_path / "images").glob("*.unfinished.safetensors")
    records, about = ImageRecords.load(kept)
    records.map(lambda column: column[:-1]).save(kept, about)
    with pytest.raises(ReportError, match="29 of 30 images"):
        run(model, tmp_path)


def test_true_half_precision_leaves_the_model_as_it_was(model: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, tmp_path, precision="bf16-true")
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    run(model, tmp_path, "batch_stats", precision="bf16-true")


# Disks and other runs


def test_a_folder_that_another_run_writes_to_is_refused(model: nn.Module, tmp_path: Path) -> None:
    other = ResultsFolder(tmp_path)
    other.begin({}, {})
    assert_refused(tmp_path, "another run is writing", model, tmp_path, error=OutputError)
    other.close()
    run(model, tmp_path)
    run(model, tmp_path, "batch_stats")


def test_a_full_disk_hides_no_interrupt_and_ends_no_run(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ResultsFolder, "keep", full)
        patched.setattr("dynbn_lightning.callbacks.example_images.write_example", full)
        with pytest.warns(UserWarning, match="could not be kept") as caught:
            interrupt(model, 4, tmp_path)
        assert any("no example images" in str(one.message) for one in caught)
        patched.setattr("dynbn_lightning.pieces.KEEP_EVERY", 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = run(model, tmp_path)
    assert methods_of(results)["source"]["clean"]["images"] == 10


def test_without_an_output_nothing_is_written(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = run(model, None)
    assert "records" not in methods_of(results)["source"]
    assert not list(tmp_path.iterdir())


def test_a_folder_is_cleared_of_results_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "examples").mkdir()
    mine = ("mine.txt", "images/weights.safetensors", "examples/cat.png")
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "results.json").write_text('{"mine": 1}')
    ResultsFolder(tmp_path).clear()
    assert (tmp_path / "results.json").read_text() == '{"mine": 1}'
    (tmp_path / "results.json").unlink()
    folder = ResultsFolder(tmp_path)
    folder.begin({}, {})
    folder.finish(Piece("mixed", 4, "a/b c-d"), ImageRecords.of_nothing(), {})
    folder.write()
    folder.close()
    assert (tmp_path / "images" / "mixed-4-a--b%20c%2Dd.safetensors").is_file()
    ResultsFolder(tmp_path).clear()
    assert sorted(content(tmp_path)) == sorted(tmp_path / name for name in mine)
