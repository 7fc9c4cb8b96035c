"""On several processes a report has the numbers of one, and what stops one process is told and written."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_models import FakeDetector, bare_trainer
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from reported_modules import TEST_IMAGES, Silent, bytes_of, make_data, make_network
from started_processes import failures, of_several, start

from dynbn_lightning import BNStatsBank, CorruptionDataModule, CorruptionReportCallback, DynamicBNCallback
from dynbn_lightning.reporting import ImageRecords, methods_of, read_results

WORLDS = (2, 3)
PAGE = "dynbn_lightning.callbacks.corruption_report.write_report"
FAIL_AT = 2


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


# What the processes do that are started here


def mixed(folder: Path, **options: Any) -> str:
    report_of(folder, small_data(), **options)
    return ""


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


CHECKS = {check.__name__: check for check in (mixed, sequential, refused, stopped)}


def run_all(rank: int, world: int, folder: Path) -> None:
    for name, check in CHECKS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PAGE, without_page)
            answer = check(folder / name, **of_several(world))
        (folder / f"{name} on {rank}.txt").write_text(answer)


@pytest.fixture(scope="module", params=WORLDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"processes-{request.param}")
    start(request.param, run_all, folder)
    return folder


def world_of(folder: Path) -> int:
    return int(folder.name.split("-")[1][0])


def answers(folder: Path, name: str) -> list[str]:
    assert failures(folder) == []
    return [(folder / f"{name} on {rank}.txt").read_text() for rank in range(world_of(folder))]


# What is said of it


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_several_processes_give_the_numbers_of_one(folder, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(PAGE, without_page)
    assert set(answers(folder, stream)) == {""}
    assert_as_of_one(folder / stream, tmp_path / "one", stream, world_of(folder))


def assert_as_of_one(several: Path, one: Path, stream: Any, world: int) -> None:
    data = small_data(stream=stream)
    reports = {"one": report_of(one, data), "several": several / "report"}
    witnesses = [json.loads((several / f"{rank}.json").read_text()) for rank in range(world)]
    cells, pairs = len(data.cells), TEST_IMAGES * len(data.cells)
    assert sum(len(its["seen"]) for its in witnesses) == pairs
    assert len({tuple(place) for its in witnesses for place in its["seen"]}) == pairs
    assert [(its["hooks"], its["there"]) for its in witnesses] == [(0, True)] * world

    results = {name: read_results(report) for name, report in reports.items()}
    for its in results.values():  # each process has its share of the threads
        for said in (its["protocol"], *its["runs"][0]["methods"].values()):
            assert "threads" in said.pop("hardware")
    assert results["several"]["runs"] == results["one"]["runs"]
    assert results["several"]["settings"] == {**results["one"]["settings"], "processes": world}
    assert results["several"]["protocol"] == {**results["one"]["protocol"], "processes": world}
    block = methods_of(results["several"])["dynamic_bn"]
    assert [its["images"] for its in (block["clean"], *block["cells"].values())] == [TEST_IMAGES] * cells

    records = {name: ImageRecords.load(report / block["records"])[0] for name, report in reports.items()}
    places = list(zip(records["several"].cells.tolist(), records["several"].indices.tolist(), strict=True))
    assert len(places) == len(set(places)) == pairs
    for name, column in vars(records["one"]).items():
        assert name == "rows" or torch.equal(column, getattr(records["several"], name)), name
    assert records["several"].rows == records["one"].rows != ()

    # All is written once, by the first process: no file more, and one row of numbers in the log.
    assert files_of(reports["several"]) == files_of(reports["one"])
    logged = {name: rows_of(folder / "logs", "mean/nll") for name, folder in (("one", one), ("several", several))}
    assert logged["several"] == logged["one"]
    assert len(logged["several"]) == 1


def files_of(report: Path) -> list[str]:
    """Without the numbers of the images that became examples: each process has its own first ones."""
    return sorted(re.sub(r"-[0-9]+\.png", "", name) for name in bytes_of(report))


def rows_of(logs: Path, column: str) -> list[dict[str, str]]:
    (metrics,) = logs.rglob("metrics.csv")
    return [row for row in csv.DictReader(metrics.open()) if row[column]]


def test_what_the_first_process_refuses_is_refused_on_all(folder):
    first, *others = answers(folder, "refused")
    assert first.startswith("DataError: ")
    assert all(told.startswith("DataError: rank 0 failed: DataError: ") for told in others)
    assert all("data.seed: 0 there, 1 here" in told for told in (first, *others))
    witnesses = [json.loads((folder / "refused" / f"{rank}.json").read_text()) for rank in range(world_of(folder))]
    assert [(its["seen"], its["hooks"]) for its in witnesses] == [([], 0)] * world_of(folder)
    assert list(methods_of(read_results(folder / "sequential" / "report"))) == ["dynamic_bn"]


def test_a_test_that_stops_shows_what_the_first_process_has_seen(folder):
    world = world_of(folder)
    assert answers(folder, "stopped") == ["stopped here"] * world
    first, *others = (json.loads((folder / "stopped" / f"{rank}.json").read_text()) for rank in range(world))
    assert [its["hooks"] for its in (first, *others)] == [0] * world
    results = read_results(folder / "stopped" / "report")
    assert results["missing"] == ["dynamic_bn on the mixed stream in batches of 3"]
    block = methods_of(results)["dynamic_bn"]
    assert block["unfinished"] is True
    records, _ = ImageRecords.load(folder / "stopped" / "report" / block["records"])
    assert len(records) == FAIL_AT * 3
    assert len(first["seen"]) == (FAIL_AT + 1) * 3  # with those of the batch that failed
