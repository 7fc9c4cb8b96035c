"""On two processes a report has the numbers of one, and what stops one process is told and written.

Lightning starts the processes of one test itself. Those of the others are started once for all, as `torchrun` would.
"""

import csv
import json
import multiprocessing
import os
import re
import socket
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_models import FakeDetector, bare_trainer
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from reported_modules import TEST_IMAGES, Silent, bytes_of, make_data, make_network

from dynbn_lightning import BNStatsBank, CorruptionDataModule, CorruptionReportCallback, DynamicBNCallback
from dynbn_lightning.reporting import ImageRecords, methods_of, read_results

RANKS = (0, 1)
PAGE = "dynbn_lightning.callbacks.corruption_report.write_report"
SECONDS_FOR_ALL, SECONDS_FOR_THE_OTHER_RANK = 240, 60
FAIL_AT = 4


class Witness(CorruptionReportCallback):
    """Writes down what each process has seen."""

    def __init__(self, folder: Path, output: Path | None) -> None:
        super().__init__(output or folder / "report")
        self.folder = folder
        self.seen: list[tuple[str, int]] = []

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        info = trainer.datamodule.batch_info
        self.seen += zip(info.names, info.indices, strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        self.write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        there = (self.output / "results.json").exists()
        seen = {"seen": self.seen, "hooks": len(pl_module._forward_hooks), "there": there}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


class OnlyForward(Silent):
    def step(self, batch):
        self(batch[0])


def small_data(**options: Any) -> CorruptionDataModule:
    return make_data(**{"corruptions": ("brightness", "contrast"), "batch_size": 3, **options})


def report_of(
    folder: Path,
    data: CorruptionDataModule,
    module: LightningModule | None = None,
    output: Path | None = None,
    **options: Any,
) -> Path:
    """Test in `folder`, and return where the report is."""
    folder.mkdir(exist_ok=True)
    module = OnlyForward(make_network()) if module is None else module
    bank = BNStatsBank.collect(module.net, small_data().row_loaders(images_per_row=10), progress=False)
    # In double precision, so that no digit that is kept depends on which images are in a batch together.
    options = {"logger": CSVLogger(folder / "logs", version=""), "precision": "64-true", **options}
    trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector()), Witness(folder, output), **options)
    trainer.test(module, datamodule=data, verbose=False)
    return folder / "report"


def two_processes(start_method: str) -> dict[str, Any]:
    seconds = timedelta(seconds=SECONDS_FOR_THE_OTHER_RANK)
    return {"devices": 2, "strategy": DDPStrategy(start_method=start_method, timeout=seconds)}


# What the processes do that are started here


def sequential(folder: Path, **options: Any) -> str:
    report_of(folder, small_data(stream="sequential"), **options)
    return ""


def refused(folder: Path, **options: Any) -> str:
    try:
        report_of(folder, small_data(seed=1), output=folder.parent / "sequential" / "report", **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def stopped(folder: Path, **options: Any) -> str:
    try:
        report_of(folder, small_data(), OnlyForward(make_network(), fail_at=FAIL_AT), **options)
    except ValueError as error:
        return str(error)
    return "nothing"


def without_page(*args: Any) -> None:
    """In the place of `write_report`: the numbers are what these tests are about, and the page takes seconds."""


CHECKS = {check.__name__: check for check in (sequential, refused, stopped)}


def run_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    for name, check in CHECKS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PAGE, without_page)
            try:
                answer = check(folder / name, **two_processes("popen"))
            except Exception:
                answer = traceback.format_exc()
        (folder / f"{name} on {rank}.txt").write_text(answer)
    dist.barrier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, port, folder), daemon=True) for rank in RANKS]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS_FOR_ALL
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    for process in processes:
        if process.is_alive():
            process.kill()
    return folder


def answers(folder: Path, name: str) -> list[str]:
    files = [folder / f"{name} on {rank}.txt" for rank in RANKS]
    missing = [rank for rank, file in zip(RANKS, files, strict=True) if not file.exists()]
    assert not missing, f"{name}: no answer of processes {missing}, which hang or died"
    found = [file.read_text() for file in files]
    assert not any(answer.startswith("Traceback") for answer in found), found
    return found


# What is said of it


def test_two_processes_that_lightning_starts_give_the_numbers_of_one(tmp_path):
    report_of(tmp_path / "two", small_data(), **two_processes("spawn"))
    assert_as_of_one(tmp_path / "two", tmp_path / "one", "mixed", repeated=1)


def test_two_processes_that_were_started_give_the_numbers_of_one(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(PAGE, without_page)
    assert answers(folder, "sequential") == ["", ""]
    assert_as_of_one(folder / "sequential", tmp_path / "one", "sequential", repeated=len(small_data().cells))


def assert_as_of_one(two: Path, one: Path, stream: Any, repeated: int) -> None:
    data = small_data(stream=stream)
    reports = {"one": report_of(one, data), "two": two / "report"}
    witnesses = [json.loads((two / f"{rank}.json").read_text()) for rank in RANKS]
    cells, pairs = len(data.cells), TEST_IMAGES * len(data.cells)
    # So many are shown twice, so that each process gets as many: one of all, or one of each cell.
    assert sum(len(its["seen"]) for its in witnesses) == pairs + repeated
    assert len({tuple(place) for its in witnesses for place in its["seen"]}) == pairs
    assert [(its["hooks"], its["there"]) for its in witnesses] == [(0, True), (0, True)]

    results = {name: read_results(report) for name, report in reports.items()}
    for its in results.values():  # each process of two has its share of the threads
        for said in (its["protocol"], *its["runs"][0]["methods"].values()):
            assert "threads" in said.pop("hardware")
    assert results["two"]["runs"] == results["one"]["runs"]
    assert results["two"]["settings"] == {**results["one"]["settings"], "processes": 2}
    assert results["two"]["protocol"] == {**results["one"]["protocol"], "processes": 2}
    block = methods_of(results["two"])["dynamic_bn"]
    assert [its["images"] for its in (block["clean"], *block["cells"].values())] == [TEST_IMAGES] * cells

    records = {name: ImageRecords.load(report / block["records"])[0] for name, report in reports.items()}
    places = list(zip(records["two"].cells.tolist(), records["two"].indices.tolist(), strict=True))
    assert len(places) == len(set(places)) == pairs
    for name, column in vars(records["one"]).items():
        assert name == "rows" or torch.equal(column, getattr(records["two"], name)), name
    assert records["two"].rows == records["one"].rows != ()

    # All is written once, by the first process: no file more, and one row of numbers in the log.
    assert files_of(reports["two"]) == files_of(reports["one"])
    logged = {name: rows_of(folder / "logs", "mean/nll") for name, folder in (("one", one), ("two", two))}
    assert logged["two"] == logged["one"]
    assert len(logged["two"]) == 1


def files_of(report: Path) -> list[str]:
    """Without the numbers of the images that became examples: each process has its own first ones."""
    return sorted(re.sub(r"-[0-9]+\.png", "", name) for name in bytes_of(report))


def rows_of(logs: Path, column: str) -> list[dict[str, str]]:
    (metrics,) = logs.rglob("metrics.csv")
    return [row for row in csv.DictReader(metrics.open()) if row[column]]


def test_what_the_first_process_refuses_is_refused_on_all(folder):
    first, second = answers(folder, "refused")
    assert first.startswith("DataError: ")
    assert second.startswith("DataError: rank 0 failed: DataError: ")
    for told in (first, second):
        assert "data.seed: 0 there, 1 here" in told
    witnesses = [json.loads((folder / "refused" / f"{rank}.json").read_text()) for rank in RANKS]
    assert [(its["seen"], its["hooks"]) for its in witnesses] == [([], 0), ([], 0)]
    assert list(methods_of(read_results(folder / "sequential" / "report"))) == ["dynamic_bn"]


def test_a_test_that_stops_shows_what_the_first_process_has_seen(folder):
    assert answers(folder, "stopped") == ["stopped here"] * 2
    first, second = (json.loads((folder / "stopped" / f"{rank}.json").read_text()) for rank in RANKS)
    assert (first["hooks"], second["hooks"]) == (0, 0)
    results = read_results(folder / "stopped" / "report")
    assert results["missing"] == ["dynamic_bn on the mixed stream in batches of 3"]
    block = methods_of(results)["dynamic_bn"]
    assert block["unfinished"] is True
    records, _ = ImageRecords.load(folder / "stopped" / "report" / block["records"])
    assert len(records) == FAIL_AT * 3
    assert len(first["seen"]) == (FAIL_AT + 1) * 3  # with those of the batch that failed
