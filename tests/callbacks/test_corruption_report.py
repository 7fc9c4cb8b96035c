"""`CorruptionReportCallback`: the numbers, files and logs of a test, and what is left when it is refused or stops."""

import copy
import csv
import json
import math
import os
import pickle
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from callback_models import FakeDetector, bare_trainer
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from reported_modules import (
    CELLS,
    CLASSES,
    TEST_IMAGES,
    Silent,
    assert_records,
    block_by_hand,
    bytes_of,
    cells_of_block,
    labels_by_hand,
    logits_by_hand,
    make_data,
    make_network,
    pixels_by_hand,
    run,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

from dynbn_lightning import (
    BatchStatsCallback,
    BNStatsBank,
    ClassifierModule,
    CorruptionReportCallback,
    DistributionMatchingCallback,
    DynamicBNCallback,
    QuantileBank,
    TentCallback,
)
from dynbn_lightning.callbacks import report_logging
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.errors import DataError, OutputError, ReportError
from dynbn_lightning.reporting import ImageRecords, methods_of, read_results

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
PAGE = "dynbn_lightning.callbacks.corruption_report.write_report"
PAGES = ["report.html", "results.csv", "results.md", "results.tex"]
NAMES = {"acc": "accuracy", "top5": "top5_accuracy", "nll": "nll", "ece": "calibration_error"}


@pytest.fixture
def real_page():
    """For tests of the files themselves: the page is drawn, which takes a second or more."""


@pytest.fixture(autouse=True)
def pages(request, monkeypatch):
    """The folders that a report was written of; its text and pictures are left out."""
    written = []
    if "real_page" not in request.fixturenames:
        monkeypatch.setattr(PAGE, lambda folders, output: written.append((list(folders), output)))
    return written


@pytest.fixture(autouse=True)
def interrupts_as_they_were():
    """Lightning ignores further interrupts after the first; the tests after these must not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def only_block(output, method="source"):
    results = read_results(output)
    assert [list(run["methods"]) for run in results["runs"]] == [[method]]
    return methods_of(results)[method]


def assert_block(block, logits, labels):
    expected, found = block_by_hand(logits, labels), cells_of_block(block)
    assert set(found) == set(expected)
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers, abs=2e-5), name
        for exact in ("images", "accuracy", "top5_accuracy"):
            assert found[name][exact] == pytest.approx(numbers[exact], abs=1e-12), (name, exact)


def records_in(output, block):
    records, _ = ImageRecords.load(output / block["records"])
    return records


def a_bank(data, module, **options):
    return BNStatsBank.collect(module.net, data.row_loaders(images_per_row=10), progress=False, **options)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_as_before(module, state):
    assert not module._forward_hooks
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert type(module.net[1]) is torch.nn.BatchNorm2d


# Numbers


@pytest.mark.parametrize(
    ("stream", "batch_size"), [("mixed", 4), ("mixed", 1), ("sequential", 3), ("continual", 100), ("correlated", 2)]
)
def test_all_numbers_are_those_of_plain_loops(tmp_path, pages, stream, batch_size):
    data, module = make_data(stream=stream, batch_size=batch_size), Silent()
    logits = logits_by_hand(data, module.net)
    labels = labels_by_hand(data, logits)
    run(module, data, CorruptionReportCallback(tmp_path))
    assert pages == [([tmp_path], tmp_path)]
    results = read_results(tmp_path)
    assert (results["runs"][0]["stream"], results["runs"][0]["batch_size"]) == (stream, batch_size)
    assert results["missing"] == []
    block = only_block(tmp_path)
    assert list(block["cells"]) == list(CELLS[1:])
    assert_block(block, logits, labels)
    assert "detection" not in block
    assert_records(records_in(tmp_path, block), logits, labels)
    assert not module._forward_hooks


def test_there_is_something_to_tell_apart_in_these_numbers():
    data = make_data()
    logits = logits_by_hand(data, make_network())
    by_cell = block_by_hand(logits, labels_by_hand(data, logits))
    for key, least in (("accuracy", 3), ("top5_accuracy", 2), ("nll", 6), ("calibration_error", 6)):
        assert len({its[key] for its in by_cell.values()}) >= least, by_cell
        assert all(its[key] > 0 for its in by_cell.values())


def test_the_settings_and_the_protocol_are_said(tmp_path):
    data, module = make_data(), Silent()
    module.net.name = "a small one"
    run(module, data, CorruptionReportCallback(tmp_path))
    protocol = read_results(tmp_path)["protocol"]
    assert protocol["model"] == "a small one"
    assert protocol["module"] == "Silent"
    assert protocol["split"] == "test"
    assert protocol["limit_batches"] == "all"
    assert protocol["processes"] == 1
    assert protocol["precision"] == "32-true"
    assert protocol["test_images"] == TEST_IMAGES
    assert (protocol["seed"], protocol["severities"]) == (0, [1, 5])
    assert "threads" in protocol["hardware"]
    assert protocol["versions"]["torch"] == version("torch")
    json.dumps(protocol)


def test_a_network_whose_name_is_no_text_is_called_by_its_class(tmp_path):
    class Named(torch.nn.Sequential):
        def name(self):
            return "a method"

    module = Silent(Named(*make_network()).eval())
    run(module, make_data(), CorruptionReportCallback(tmp_path))
    assert read_results(tmp_path)["protocol"]["model"] == "Named"


def test_validation_alone_is_reported_and_validation_in_a_fit_is_not(tmp_path, pages):
    data, module = make_data(task="classifier", batch_size=5), Silent()
    callback = CorruptionReportCallback(tmp_path / "report")
    trainer = bare_trainer(callback, max_epochs=1)
    module.step = lambda batch: module(batch[0])
    trainer.fit(module, datamodule=data)
    assert not list(tmp_path.iterdir())
    assert not module._forward_hooks
    del module.step
    module.eval()
    trainer.validate(module, datamodule=data, verbose=False)
    assert len(pages) == 1
    results = read_results(tmp_path / "report")
    assert (results["protocol"]["split"], results["settings"]["split"]) == ("validation", "validation")
    assert_block(only_block(tmp_path / "report"), module.seen, labels_by_hand(data, module.seen, "train"))
    with pytest.raises(DataError, match=r"split: \"validation\" there, \"test\" here"):
        trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, dataloaders=DataLoader(torch.zeros(4, 3, 16, 16), batch_size=2))
    assert len(pages) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_numbers_and_examples_in_other_precisions(tmp_path, precision):
    data, module = make_data(), Silent()
    run(module, data, CorruptionReportCallback(tmp_path), precision=precision)
    assert_block(only_block(tmp_path), module.seen, labels_by_hand(data, module.seen))
    assert read_results(tmp_path)["protocol"]["precision"] == precision
    if precision != "bf16-true":  # which has no room for the brightest pixels
        assert_examples(tmp_path, data)


# Files


def assert_examples(output, data, split="test"):
    found = {}
    for path in (output / "examples").iterdir():
        corruption, severity, index = path.stem.rsplit("-", 2)
        cell = "clean" if corruption == "clean" else f"{corruption}/{severity}"
        assert cell not in found
        found[cell] = pil_to_tensor(Image.open(path))
        assert torch.equal(found[cell], pixels_by_hand(data, cell, int(index), split)), cell
    return found


def test_examples_are_of_the_severity_nearest_to_3_and_written_once(tmp_path):
    data, module = make_data(severities=(1, 2, 5)), Silent()
    run(module, data, CorruptionReportCallback(tmp_path))
    assert set(assert_examples(tmp_path, data)) == {"clean", "fog/2", "contrast/2"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "examples").iterdir()}
    assert len(before) == 3
    run(module, make_data(severities=(1, 2, 5), stream="continual"), CorruptionReportCallback(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "examples").iterdir()} == before


def test_batches_without_images_to_be_seen_have_a_report_without_examples(tmp_path):
    class Module(Silent):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {"picture": batch[0], "label": batch[1]}

        def step(self, batch):
            self.remember(self(batch["picture"]))

    class Callback(CorruptionReportCallback):
        def images_of(self, batch):
            return batch["picture"]

    data, module = make_data(), Module()
    with pytest.warns(UserWarning, match=r"no example images: .*images_of"):
        run(module, data, CorruptionReportCallback(tmp_path / "without"))
    assert_block(only_block(tmp_path / "without"), module.seen, labels_by_hand(data, module.seen))
    assert not (tmp_path / "without" / "examples").exists()
    run(module, data, Callback(tmp_path / "with"))
    assert len(assert_examples(tmp_path / "with", data)) == 3


def test_the_report_of_three_methods_in_one_folder(tmp_path, monkeypatch):
    data, module, output = make_data(corruptions=("brightness", "contrast")), Silent(), tmp_path / "report"
    state = state_of(module)
    bank = a_bank(data, module)
    methods = [[], [BatchStatsCallback()], [DynamicBNCallback(bank, FakeDetector())]]
    blocks = {}
    for methods_so_far, callbacks in enumerate(methods, 1):
        before = bytes_of(output) if output.exists() else {}
        if methods_so_far == len(methods):
            monkeypatch.undo()  # the page is drawn once, of all three
        run(module, data, *callbacks, CorruptionReportCallback(output))
        results = read_results(output)
        assert len(methods_of(results)) == methods_so_far
        name = list(methods_of(results))[-1]
        blocks[name] = methods_of(results)[name]
        assert methods_of(results) == blocks  # those before are as they were
        after = bytes_of(output)
        assert all(after[path] == its for path, its in before.items() if path.startswith(("images/", "examples/")))
        labels = labels_by_hand(data, module.seen)
        assert_block(blocks[name], module.seen, labels)
        assert_records(records_in(output, blocks[name]), module.seen, labels, tolerance=1e-5)
    assert list(blocks) == ["source", "batch_stats", "dynamic_bn"]
    assert blocks["dynamic_bn"]["settings"]["DynamicBNCallback"]["routing"] == "soft"
    assert {path.name for path in output.iterdir()} == {"examples", "images", "results.json", *PAGES}
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert {row["method"] for row in rows} == set(blocks)
    page = (output / "report.html").read_text()
    assert all(name in page for name in blocks)
    assert_as_before(module, state)
    monkeypatch.setattr(PAGE, lambda *args: None)
    rerun = make_data(corruptions=("brightness", "contrast"))
    run(module, rerun, BatchStatsCallback(), CorruptionReportCallback(output))
    assert methods_of(read_results(output)) == blocks


def test_the_same_method_again_replaces_its_block_and_another_name_stands_beside(tmp_path):
    data, module = make_data(), Silent()
    run(module, data, TentCallback(lr=0.1), CorruptionReportCallback(tmp_path), inference_mode=False)
    first = only_block(tmp_path, "tent")
    run(module, data, TentCallback(lr=0.1), CorruptionReportCallback(tmp_path), inference_mode=False)
    assert only_block(tmp_path, "tent") == first
    before = bytes_of(tmp_path)
    with pytest.raises(DataError, match=r"TentCallback.lr: 0.1 there, 0.2 here.*method="):
        run(module, data, TentCallback(lr=0.2), CorruptionReportCallback(tmp_path), inference_mode=False)
    assert bytes_of(tmp_path) == before
    run(module, data, TentCallback(lr=0.2), CorruptionReportCallback(tmp_path, "tent/fast"), inference_mode=False)
    blocks = methods_of(read_results(tmp_path))
    assert list(blocks) == ["tent", "tent/fast"]
    assert blocks["tent"] == first
    assert blocks["tent/fast"]["mean"] != first["mean"]
    assert len(list((tmp_path / "images").iterdir())) == 2
    run(module, make_data(stream="sequential"), CorruptionReportCallback(tmp_path))
    assert [one["stream"] for one in read_results(tmp_path)["runs"]] == ["mixed", "sequential"]


# Methods


def test_two_methods_on_layers_of_their_own_are_named_after_both(tmp_path):
    data, module = make_data(), Silent()
    methods = [BatchStatsCallback(skip=["net.1"]), TentCallback(skip=["net.4"])]
    run(module, data, *methods, CorruptionReportCallback(tmp_path), inference_mode=False)
    block = only_block(tmp_path, "batch_stats+tent")
    assert set(block["settings"]) == {"BatchStatsCallback", "TentCallback"}
    assert_block(block, module.seen, labels_by_hand(data, module.seen))


@pytest.mark.parametrize("report_first", [True, False])
def test_the_order_of_callbacks_does_not_matter(tmp_path, report_first):
    data, module = make_data(corruptions=("brightness", "contrast"), stream="sequential"), Silent()
    state, bank = state_of(module), a_bank(data, module)
    quantiles = QuantileBank.collect(module.net, data.row_loaders(images_per_row=10), progress=False)
    for name, method in {
        "tent": TentCallback(lr=0.1, steps=2),
        "dynamic_bn/hard": DynamicBNCallback(bank, FakeDetector(), routing="hard"),
        "distribution_matching/dynamic_bn": DistributionMatchingCallback(
            quantiles, base=DynamicBNCallback(bank, FakeDetector(), routing="soft")
        ),
    }.items():
        report = CorruptionReportCallback(tmp_path)
        run(module, data, *([report, method] if report_first else [method, report]), inference_mode=False)
        block = methods_of(read_results(tmp_path))[name]
        labels = labels_by_hand(data, module.seen)
        assert_block(block, module.seen, labels)
        records = records_in(tmp_path, block)
        assert_records(records, module.seen, labels, tolerance=1e-5)
        assert ("detection" in block) == (name != "tent")
        if name != "tent":
            assert block["detection"] == detection_by_hand(records)
            assert 0 < block["detection"] < 1
        assert_as_before(module, state)


def detection_by_hand(records):
    right = [
        records.rows[row] == Cell.from_code(code).corruption
        for row, code in zip(records.detected.tolist(), records.cells.tolist(), strict=True)
    ]
    return sum(right) / len(right)


# Loggers


def last_row_with(path, column):
    rows = [row for row in csv.DictReader(path.open()) if row.get(column)]
    return rows[-1]


def test_the_loggers_have_every_number_and_figure(tmp_path, real_page):
    data, module = make_data(corruptions=("brightness", "contrast")), Silent()
    bank = a_bank(data, module)
    loggers = [CSVLogger(tmp_path / "csv", version=""), TensorBoardLogger(tmp_path / "tensorboard", version="")]
    options = {"logger": loggers, "log_every_n_steps": 1}
    run(module, data, DynamicBNCallback(bank, FakeDetector()), CorruptionReportCallback(tmp_path / "report"), **options)
    block = only_block(tmp_path / "report", "dynamic_bn")
    by_name = {f"{cell}/{name}": its[key] for cell, its in cells_of_block(block).items() for name, key in NAMES.items()}
    by_name["detection/acc"] = block["detection"]
    assert {"clean/acc", "contrast/5/nll", "mean/ece", "brightness/1/top5"} <= set(by_name)
    (metrics,) = (tmp_path / "csv").rglob("metrics.csv")
    logged = last_row_with(metrics, "mean/acc")
    assert {name: float(logged[name]) for name in by_name} == pytest.approx(by_name)
    events = EventAccumulator(str(next((tmp_path / "tensorboard").rglob("events*")).parent))
    events.Reload()
    tags = events.Tags()
    assert set(by_name) <= set(tags["scalars"])
    assert {name: events.Scalars(name)[-1].value for name in by_name} == pytest.approx(by_name, rel=1e-5)
    assert set(tags["images"]) == {"severity", "confusion"}


def test_the_classifier_module_logs_the_same_under_the_same_names(tmp_path):
    data, module = make_data(), ClassifierModule(make_network())
    run(module, data, CorruptionReportCallback(tmp_path / "report"), logger=CSVLogger(tmp_path, version=""))
    (metrics,) = tmp_path.rglob("metrics.csv")
    block = cells_of_block(only_block(tmp_path / "report"))
    for name in ("clean", "fog/5", "mean"):
        values = [float(row[f"{name}/acc"]) for row in csv.DictReader(metrics.open()) if row.get(f"{name}/acc")]
        assert len(values) == 2  # the module's own, and the callback's
        assert values == pytest.approx([block[name]["accuracy"]] * 2)


def test_figures_leave_out_what_cannot_be_drawn(tmp_path):
    module = Silent(fail_at=2)  # the first cell is done
    with pytest.raises(ValueError, match="stopped here"):
        run(module, make_data(stream="sequential"), CorruptionReportCallback(tmp_path / "report", "stopped"))
    module.fail_at = None
    logger = TensorBoardLogger(tmp_path / "logs", version="")
    run(module, make_data(stream="sequential"), CorruptionReportCallback(tmp_path / "report"), logger=logger)
    assert set(methods_of(read_results(tmp_path / "report"))) == {"stopped", "source"}
    assert read_results(tmp_path / "report")["missing"] == ["stopped on the sequential stream in batches of 4"]
    for number, limit in enumerate((1, 2)):  # of the images of each loader; or all clean
        logger = TensorBoardLogger(tmp_path / "logs", version=f"limited {number}")
        data = make_data(stream="sequential") if limit == 2 else make_data(stream="continual")
        callback = CorruptionReportCallback(tmp_path / f"limited {number}")
        run(module, data, callback, logger=logger, limit_test_batches=limit)
        only_block(tmp_path / f"limited {number}")


def test_a_figure_is_of_the_finished_methods_that_were_tested_alike(tmp_path, monkeypatch):
    target, drawn = "dynbn_lightning.callbacks.report_logging.severity_figure", []
    real = report_logging.severity_figure
    monkeypatch.setattr(target, lambda results, stream: drawn.append(results["runs"]) or real(results, stream))
    module, report = Silent(), tmp_path / "report"
    run(module, make_data(batch_size=7), CorruptionReportCallback(report))
    run(module, make_data(), BatchStatsCallback(), CorruptionReportCallback(report))
    module.steps, module.fail_at = 0, 7  # of 9, so that every cell was shown
    with pytest.raises(ValueError, match="stopped here"):
        run(module, make_data(), CorruptionReportCallback(report, "stopped"))
    module.fail_at = None
    assert drawn == []
    run(module, make_data(), CorruptionReportCallback(report), logger=TensorBoardLogger(tmp_path / "logs"))
    ((one,),) = drawn
    assert (one["stream"], one["batch_size"], list(one["methods"])) == ("mixed", 4, ["batch_stats", "source"])


# What is refused, before the first step


def test_results_of_other_settings_are_refused_by_name_and_left_alone(tmp_path, pages):
    data, module, output = make_data(), Silent(), tmp_path / "report"
    run(module, data, CorruptionReportCallback(output))
    before, steps = bytes_of(output), module.steps
    one_more = make_network()
    with torch.no_grad():
        one_more[0].weight[0, 0, 0, 0] += 1e-3
    refused = [
        (Silent(one_more), {}, {}, "model: "),
        (module, {"seed": 1}, {}, r"data\.seed: 0 there, 1 here"),
        (module, {"severities": (1,)}, {}, r"data\.severities: \[1, 5\] there, \[1\] here"),
        (module, {"corruptions": ("fog",)}, {}, r"data\.corruptions"),
        (module, {"normalization": "cifar10"}, {}, r"data\.normalization"),
        (module, {}, {"limit_test_batches": 3}, 'limit_batches: "all" there, 3 here'),
        (module, {}, {"limit_test_batches": 1}, 'limit_batches: "all" there, 1 here'),
        (module, {}, {"precision": "bf16-mixed"}, 'precision: "32-true" there, "bf16-mixed" here'),
    ]
    for other, options, of_trainer, message in refused:
        with pytest.raises(DataError, match=f"other settings.*{message}"):
            run(other, make_data(**options), CorruptionReportCallback(output, "again"), **of_trainer)
        assert not other._forward_hooks
        assert bytes_of(output) == before
    assert module.steps == steps
    assert len(pages) == 1


def test_results_that_cannot_be_read_are_refused_and_left_alone(tmp_path):
    for content in ("{", '{"schema_version": 1, "runs": []}'):
        (tmp_path / "results.json").write_text(content)
        module = Silent()
        with pytest.raises(DataError, match="results"):
            run(module, make_data(), CorruptionReportCallback(tmp_path))
        assert module.steps == 0
        assert not module._forward_hooks
        assert bytes_of(tmp_path) == {"results.json": content.encode()}


def test_an_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    module = Silent()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="is a file, and a folder is needed there"):
            run(module, make_data(), CorruptionReportCallback(output))
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    with pytest.raises(OutputError, match="no permission"):
        run(module, make_data(), CorruptionReportCallback(tmp_path / "report"))
    assert module.steps == 0
    assert not module._forward_hooks
    assert bytes_of(tmp_path) == {"file": b"mine"}


def test_without_a_datamodule_that_knows_the_cells_it_is_refused(tmp_path):
    class Foreign(LightningDataModule):
        def test_dataloader(self):
            return DataLoader([(torch.zeros(3, 16, 16), 0)] * 4, batch_size=2)

    class Speechless(Foreign):
        batch_info = None

    data = Foreign()
    for given in ({"dataloaders": data.test_dataloader()}, {"datamodule": data}, {"datamodule": Speechless()}):
        module = Silent()
        trainer = bare_trainer(CorruptionReportCallback(tmp_path / "report"))
        with pytest.raises(ReportError, match=r"CorruptionReportCallback can't see.*CorruptionDataModule.*datamodule="):
            trainer.test(module, **given)
        assert module.steps == 0
        assert not module._forward_hooks
        assert not list(tmp_path.iterdir())


# Interrupted tests


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_test_that_stops_says_so_and_shows_what_there_is(tmp_path, error, real_page):
    data, module, output = make_data(stream="sequential"), Silent(fail_at=5, error=error), tmp_path / "report"
    state, callback = state_of(module), CorruptionReportCallback(output)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else ValueError):
        run(module, data, callback)
    assert_as_before(module, state)
    assert len(module.seen) == 2 * TEST_IMAGES + data.batch_size
    results = read_results(output)
    assert results["missing"] == ["source on the sequential stream in batches of 4"]
    block = only_block(output)
    assert block["unfinished"] is True
    labels = labels_by_hand(data, module.seen)
    assert_block(block, module.seen, labels)
    assert_records(records_in(output, block), module.seen, labels)
    assert [path.name for path in (output / "images").iterdir()] == ["sequential-4-source.unfinished.safetensors"]
    page = (output / "report.html").read_text()
    assert "source on the sequential stream in batches of 4" in page
    assert "source on the sequential stream in batches of 4" in (output / "results.md").read_text()
    # The same callback again, and it is finished.
    module.fail_at = None
    run(module, data, callback)
    block = only_block(output)
    assert "unfinished" not in block
    assert read_results(output)["missing"] == []
    assert_block(block, module.seen, labels_by_hand(data, module.seen))
    assert [path.name for path in (output / "images").iterdir()] == ["sequential-4-source.safetensors"]
    assert "source on the sequential stream in batches of 4" not in (output / "results.md").read_text()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_no_batch_was_done_nothing_is_written(tmp_path, error, pages):
    module = Silent(fail_at=0, error=error)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else ValueError):
        run(module, make_data(), CorruptionReportCallback(tmp_path / "report"))
    assert not list(tmp_path.iterdir())
    assert pages == []
    assert not module._forward_hooks


def test_what_an_earlier_test_finished_is_not_replaced_by_less(tmp_path, pages):
    data, module = make_data(), Silent()
    run(module, data, CorruptionReportCallback(tmp_path))
    before = bytes_of(tmp_path)
    module.steps, module.fail_at = 0, 3
    with pytest.raises(ValueError, match="stopped here"):
        run(module, data, CorruptionReportCallback(tmp_path))
    assert bytes_of(tmp_path) == before
    module.steps = 0
    with pytest.raises(ValueError, match="stopped here"):
        run(module, data, BatchStatsCallback(), CorruptionReportCallback(tmp_path))
    blocks = methods_of(read_results(tmp_path))
    assert list(blocks) == ["source", "batch_stats"]
    assert blocks["source"] == json.loads(before["results.json"])["runs"][0]["methods"]["source"]
    assert blocks["batch_stats"]["unfinished"] is True
    assert len(pages) == 2
    assert_as_before(module, state_of(Silent()))


class Raising(Callback):
    def __init__(self, hook):
        self.hook = hook
        setattr(self, hook, self.fail)

    def fail(self, *args):
        raise RuntimeError(f"in {self.hook}")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("hook", ["on_test_start", "on_test_batch_end", "on_test_epoch_end", "on_test_end"])
def test_another_callback_that_raises(tmp_path, hook, first, pages):
    data, module = make_data(), Silent()
    others, report = [Raising(hook)], CorruptionReportCallback(tmp_path / "report")
    with pytest.raises(RuntimeError, match=f"in {hook}"):
        run(module, data, *([*others, report] if first else [report, *others]))
    assert_as_before(module, state_of(Silent()))
    if hook == "on_test_start" or (hook == "on_test_batch_end" and first):
        assert not list(tmp_path.iterdir())
        assert pages == []
        return
    block = only_block(tmp_path / "report")
    assert_block(block, module.seen, labels_by_hand(data, module.seen))
    assert len(pages) == 1
    is_finished = hook == "on_test_end" and not first
    assert block.get("unfinished") is (None if is_finished else True)
    assert read_results(tmp_path / "report")["missing"] == (
        [] if is_finished else ["source on the mixed stream in batches of 4"]
    )
    report.on_exception(bare_trainer(), module, ValueError())  # of a later run, in which it did not begin
    assert len(pages) == 1


def test_a_report_that_cannot_be_written_does_not_hide_why_the_test_stopped(tmp_path, monkeypatch):
    class Last(Callback):
        heard = False

        def on_exception(self, trainer, pl_module, exception):
            self.heard = True

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(PAGE, full)
    module, last = Silent(fail_at=3), Last()
    with (
        pytest.raises(ValueError, match="stopped here"),
        pytest.warns(UserWarning, match="could not be written: OSError: disk full"),
    ):
        run(module, make_data(), CorruptionReportCallback(tmp_path), last)
    assert last.heard
    module.fail_at = None
    with pytest.raises(OSError, match="disk full"):
        run(module, make_data(), CorruptionReportCallback(tmp_path), last)
    assert_as_before(module, state_of(Silent()))
    assert "unfinished" not in only_block(tmp_path)  # the numbers were whole before the pages were tried


# Copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_callbacks_may_be_copied_before_and_after_a_run(tmp_path, copied):
    data, module = make_data(), Silent()
    callback = copied(CorruptionReportCallback(str(tmp_path), "mine"))
    assert (callback.output, callback.method) == (Path(tmp_path), "mine")
    run(module, data, callback)
    first = bytes_of(tmp_path)
    run(module, data, copied(callback))
    assert bytes_of(tmp_path) == first


def test_two_reports_of_one_run(tmp_path):
    data, module = make_data(), Silent()
    run(module, data, CorruptionReportCallback(tmp_path / "one"), CorruptionReportCallback(tmp_path / "two", "source"))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_logits_that_are_not_numbers_are_reported_as_such(tmp_path):
    class Broken(Silent):
        def forward(self, x):
            logits = self.net(x)
            logits[0] = math.nan
            return logits

    data, module = make_data(stream="sequential", batch_size=100), Broken()
    run(module, data, CorruptionReportCallback(tmp_path), logger=CSVLogger(tmp_path / "logs"))
    block = only_block(tmp_path)
    assert block["clean"]["nll"] is None
    assert block["clean"]["images"] == TEST_IMAGES
    assert block["mean"]["calibration_error"] is None
    assert CLASSES > 5
