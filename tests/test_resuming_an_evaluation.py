"""An evaluation with an output folder: interrupted anywhere it goes on, and other settings are refused."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluation import calibrated, make_data
from torch import nn

from dynbn_lightning import BNStatsBank, DetectorModule, evaluate
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import ImageRecords, method_blocks, read_results

METHODS = ("source", "batch_stats", "ema", "dynamic_bn/calibrated", "dynamic_bn/stream")
STREAMS = ("mixed", "sequential")


class Stop:
    """Counts the forwards of a model, and interrupts it at one of them."""

    def __init__(self, model: nn.Module, at: int | None = None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.count, self.at, self.error = 0, at, error
        self.handle = model.register_forward_pre_hook(self)

    def __call__(self, *args: Any) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error("stop")

    def __enter__(self) -> Stop:
        return self

    def __exit__(self, *args: object) -> None:
        self.handle.remove()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(width=4).eval()


@pytest.fixture(scope="module")
def run(model: nn.Module) -> Callable[..., dict[str, Any]]:
    data = make_data(batch_size=4)
    bank = calibrated(BNStatsBank.collect(model, data.row_loaders(images_per_row=20), progress=False))
    torch.manual_seed(1)
    detector = DetectorModule(rows=data.rows)

    def run(output: Path, *, seed: int = 0, **options: Any) -> dict[str, Any]:
        options = {"methods": METHODS, "streams": STREAMS, "bank": bank, "detector": detector, **options}
        its = {"accelerator": "cpu", "progress": False, "output": output}
        return evaluate(options.pop("model", model), make_data(batch_size=4, seed=seed), **its, **options)

    return run


@pytest.fixture(scope="module")
def whole(run: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def numbers(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    measured = ("clean", "mean", "cells", "detection", "same_as", "settings", "needs")
    return {
        (stream, method): {key: block.get(key) for key in measured}
        for stream, _, method, block in method_blocks(read_results(folder))
    }


def records(folder: Path) -> dict[str, ImageRecords]:
    return {path.name: ImageRecords.load(path)[0] for path in sorted((folder / "images").iterdir())}


def assert_same(folder: Path, other: Path) -> None:
    assert numbers(folder) == numbers(other)
    first, second = records(folder), records(other)
    assert list(first) == list(second)
    for name, its in first.items():
        assert its.rows == second[name].rows
        for column in ("indices", "cells", "labels", "predictions", "correct", "top5", "detected"):
            assert torch.equal(getattr(its, column), getattr(second[name], column)), (name, column)
        for column in ("confidences", "nll", "detection_confidences"):
            torch.testing.assert_close(getattr(its, column), getattr(second[name], column), rtol=0, atol=0)


def test_what_a_folder_holds(whole: Path) -> None:
    results = read_results(whole)
    assert results["missing"] == []
    assert [(run["stream"], list(run["methods"])) for run in results["runs"]] == [
        (one, list(METHODS)) for one in STREAMS
    ]
    assert {path.name for path in whole.iterdir()} == {"results.json", "images", "examples"}
    assert len(records(whole)) == 8, "methods that look at each image alone are run on one stream"
    for *_, block in method_blocks(results):
        its, about = ImageRecords.load(whole / block["records"])
        assert len(its) == 30
        assert its.scores()["fog/5"].accuracy == block["cells"]["fog/5"]["accuracy"]
        assert set(about) == {"stream", "batch_size", "method"}
    assert sorted(path.name.rsplit("-", 1)[0] for path in (whole / "examples").iterdir()) == [
        "clean-0",
        "contrast-5",
        "fog-5",
    ]


@pytest.mark.parametrize("at", [2, 9, 18, 27, 44, 62])
def test_interrupted_anywhere_it_goes_on_to_the_same(
    model: nn.Module, run: Callable[..., dict[str, Any]], whole: Path, tmp_path: Path, at: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with Stop(model, at) as first, pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert first.count == at
    assert signal.getsignal(signal.SIGINT) is handler, "a second Ctrl-C is heard too"
    if (tmp_path / "results.json").exists():
        there = read_results(tmp_path)
        assert there["missing"]
        for *_, block in method_blocks(there):
            assert (tmp_path / block["records"]).is_file()
    run(tmp_path)
    assert_same(tmp_path, whole)
    assert not list(tmp_path.rglob(".*")), "nothing half-written stays"


def test_only_what_is_not_done_is_run(model: nn.Module, run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def steps(at: int | None = None, **options: Any) -> int:
        with Stop(model, at) as stop:
            if at is None:
                run(tmp_path, **options)
            else:
                with pytest.raises(KeyboardInterrupt):
                    run(tmp_path, **options)
        return stop.count

    # Every method is first rehearsed with one batch, and mixed batches of four come to eight.
    assert steps(1 + 5, methods=["batch_stats"], streams=["mixed"]) == 6
    assert read_results(tmp_path)["missing"] == ["batch_stats on the mixed stream in batches of 4"]
    assert steps(methods=["batch_stats"], streams=["mixed"]) == 1 + 8 - 4, "it carries nothing: four batches are done"
    assert steps(methods=["batch_stats"], streams=["mixed"]) == 0
    assert steps(1 + 5, methods=["ema"], streams=["sequential"]) == 6
    assert steps(methods=["ema"], streams=["sequential"]) == 1 + 9 - 3, "it begins anew with each cell: one is done"
    assert steps(1 + 5, methods=["ema"], streams=["mixed"]) == 6
    assert steps(methods=["ema"], streams=["mixed"]) == 1 + 8, "in one loader it carries its state to the end"
    assert steps(1 + 5, methods=["dynamic_bn/stream"], streams=["sequential"]) == 6
    assert steps(methods=["dynamic_bn/stream"], streams=["sequential"]) == 1 + 9, "it remembers all of the stream"


def test_methods_gather_in_a_folder(run: Callable[..., dict[str, Any]], whole: Path, tmp_path: Path) -> None:
    for methods in (["source"], ["source", "batch_stats"], ["ema"], list(METHODS)):
        run(tmp_path, methods=methods)
    assert_same(tmp_path, whole)


def test_what_was_done_is_written_from_time_to_time(
    model: nn.Module, run: Callable[..., dict[str, Any]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        """Nothing more is written."""

    options: dict[str, Any] = {"methods": ["source"], "streams": ["mixed"]}
    with monkeypatch.context() as patched:
        patched.setattr("dynbn_lightning.pieces.KEEP_EVERY", 0.0)
        patched.setattr("dynbn_lightning.pieces.KEEP_SHARE", float("inf"))
        patched.setattr("dynbn_lightning.pieces._Keeper.on_exception", killed)
        with Stop(model, 6), pytest.raises(KeyboardInterrupt):
            run(tmp_path, **options)
    block = read_results(tmp_path)["runs"][0]["methods"]["source"]
    assert block["unfinished"]
    assert len(ImageRecords.load(tmp_path / block["records"])[0]) == 16
    with Stop(model) as stop:
        run(tmp_path, **options)
    assert stop.count == 1 + 4
    assert numbers(tmp_path)["mixed", "source"] == numbers(whole)["mixed", "source"]


def test_an_error_in_a_step_keeps_what_there_is(
    model: nn.Module, run: Callable[..., dict[str, Any]], whole: Path, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with Stop(model, 5 + 14, RuntimeError), pytest.raises(RuntimeError, match="stop"):
        run(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    run(tmp_path)
    assert_same(tmp_path, whole)
