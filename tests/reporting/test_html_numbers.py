"""What numbers the page shows: those of the results, each with how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from html_folders import GAINS, PROTOCOL, make_folder
from html_tree import Node, entry_of, page_of, rows_of, tables_of

from dynbn_lightning.corruptions import Cell
from dynbn_lightning.corruptions.cells import cells_of
from dynbn_lightning.metrics import BASELINES, mean_corruption_error
from dynbn_lightning.reporting.comparison import Comparison, difference
from dynbn_lightning.reporting.html.curves import measured_on
from dynbn_lightning.reporting.html.detection import oracle_of, oracle_table
from dynbn_lightning.reporting.html.methods import gains_of, mean_gain
from dynbn_lightning.reporting.html.places import best_of, places_of
from dynbn_lightning.reporting.html.table import gain, number, points
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.results import errors, read_results, write_results

FEW = (Cell.clean(), *cells_of(("gaussian_noise", "fog"), (1, 3, 5)))


@pytest.fixture(autouse=True)
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take seconds, and these tests are of numbers."""
    monkeypatch.setattr("dynbn_lightning.reporting.figures.canvas.find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123, "+12.3"),
        (-0.0126, "−1.3"),
        (0.0004, "0.0"),
        (-0.0004, "0.0"),
        (0.0, "0.0"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_points_have_a_sign_but_zero(value: float | None, text: str) -> None:
    assert points(value) == text
    assert number(-1.25, digits=2) == "−1.25"


def test_heat_maps_show_the_gain_of_every_cell_with_its_interval(tmp_path: Path) -> None:
    methods = {"source": 0.0, "tent": 0.03, "dynamic_bn": 0.12, "oracle": 0.14}
    tree, comparison = page_of(make_folder(tmp_path, images=50, methods=methods, cells=FEW))
    source = entry_of(comparison, "source")
    maps = tree.of_class("heat-map")
    assert [table.one("caption").text.split(",")[0] for table in maps] == ["dynamic_bn", "tent", "oracle"]
    for table in maps:
        entry = entry_of(comparison, table.one("caption").text.split(",")[0])
        shown, paired = rows_of(table), difference(entry, source)
        assert paired is not None
        gains = {
            cell: its["accuracy"] - source.block["cells"][cell]["accuracy"]
            for cell, its in entry.block["cells"].items()
        }
        for corruption in ("gaussian_noise", "fog"):
            for place, severity in enumerate((1, 3, 5)):
                cell = f"{corruption}/{severity}"
                at = list(gains).index(cell)
                node, expected = shown[corruption][place], gain(gains[cell], paired.cells, at)
                assert node.text == expected.text == points(float(paired.cells.difference[at]))
                assert node.attributes["title"] == f"{cell}: {expected.text} points, 95 % interval {expected.bounds}"
                weak = float(paired.cells.lower[at]) <= 0 <= float(paired.cells.upper[at])
                assert ("weak" if weak else "sure") in node.attributes["class"].split()
                assert ("gain" in node.attributes["class"].split()) == (gains[cell] > 0)
            mean = sum(gains[f"{corruption}/{severity}"] for severity in (1, 3, 5)) / 3
            assert shown[corruption][3].text == points(mean)
        for place, severity in enumerate((1, 3, 5)):
            mean = (gains[f"gaussian_noise/{severity}"] + gains[f"fog/{severity}"]) / 2
            assert shown["mean"][place].text == points(mean)
        assert shown["mean"][3].text == points(float(paired.mean.difference))


def test_the_table_of_methods_shows_the_results(tmp_path: Path) -> None:
    tree, comparison = page_of(make_folder(tmp_path, images=30))
    (table,) = tables_of(tree, "Methods on")
    headings = [heading.text for heading in table.one("thead").all("th")]
    assert headings[0] == "method"
    shown, source = rows_of(table), entry_of(comparison, "source")
    assert list(shown) == list(GAINS)
    for method, nodes in shown.items():
        entry = entry_of(comparison, method)
        cells = dict(zip(headings[1:], nodes, strict=True))
        mean, block = entry.block["mean"], entry.block
        intervals = entry.intervals
        assert intervals is not None
        low, high = 100 * float(intervals.mean.lower), 100 * float(intervals.mean.upper)
        assert cells["mean accuracy, %"].text == f"{100 * mean['accuracy']:.1f}{low:.1f} to {high:.1f}"
        assert cells["clean, %"].text == f"{100 * block['clean']['accuracy']:.1f}"
        assert cells["top 5, %"].text == f"{100 * mean['top5_accuracy']:.1f}"
        assert cells["calibration error, %"].text == f"{100 * mean['calibration_error']:.1f}"
        assert cells["NLL, nats"].text == f"{mean['nll']:.2f}"
        assert cells["mCE, %"].text == f"{100 * mean_corruption_error(errors(block), BASELINES['benz-cifar10']):.1f}"
        assert cells["detected rightly, %"].text == (f"{100 * block['detection']:.1f}" if "detection" in block else "–")
        assert cells["time"].text == f"{block['ms_per_image'] / source.block['ms_per_image']:.1f}×"
        assert cells["memory"].text == f"{block['memory_mib'] / source.block['memory_mib']:.1f}×"
        assert cells["needs"].text == ", ".join(block["needs"])
        if method == "source":
            assert cells["against source, points"].text == "–"
            continue
        paired = difference(entry, source)
        assert paired is not None
        over = gain(float(paired.mean.difference), paired.mean)
        assert cells["against source, points"].text == over.text + over.bounds
        worst = int(paired.cells.difference.argmin())
        its = gain(float(paired.cells.difference[worst]), paired.cells, worst)
        assert cells["worst cell against source, points"].text.startswith(its.text)


def test_the_best_is_no_oracle_and_the_headline_says_how_sure_it_is(tmp_path: Path) -> None:
    tree, comparison = page_of(make_folder(tmp_path, images=30))
    best = best_of(comparison.entries)
    assert best is not None
    assert best.method == "dynamic_bn/calibrated"
    paired = difference(best, entry_of(comparison, "source"))
    assert paired is not None
    facts = {
        fact.all("dt")[0].text: fact.all("dd")[0].text
        for fact in tree.of_class("facts")[0].inside
        if isinstance(fact, Node)
    }
    assert list(facts) == ["The model as it came", "dynamic_bn/calibrated", "Difference", "On clean images", "mCE"]
    over = gain(float(paired.mean.difference), paired.mean)
    assert facts["Difference"].startswith(f"{over.text} points")
    assert f"95 % interval {over.bounds}" in facts["Difference"]
    assert "highest mean in this table among 5 methods" in facts["dynamic_bn/calibrated"]
    assert "benz-cifar10" in facts["mCE"]
    assert "a change of " in facts["On clean images"]


def test_a_baseline_with_clean_errors_gives_the_relative_error_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=20, methods={"source": 0.0, "tent": 0.1})
    tree, _ = page_of(folder, baseline=folder)
    facts = [term.text for term in tree.of_class("facts")[0].all("dt")]
    assert facts[-2:] == ["mCE", "Relative mCE"]


def test_detection_rows_and_gaps_to_the_oracle(tmp_path: Path) -> None:
    tree, comparison = page_of(make_folder(tmp_path, images=30, cells=FEW))
    records = entry_of(comparison, "dynamic_bn/calibrated").records
    assert records is not None
    confusion = records.confusion()
    (rows,) = tables_of(tree, "How the images of each row")
    shown = rows_of(rows)
    assert list(shown) == ["clean", "gaussian_noise", "fog"], "only rows that were shown"
    for row, nodes in shown.items():
        at = records.rows.index(row)
        total = int(confusion[at].sum())
        assert [nodes[0].text, nodes[1].text] == [str(total), f"{100 * int(confusion[at, at]) / total:.1f}"]
    (pairs,) = tables_of(tree, "Detected against known")
    for method, oracle in (("dynamic_bn/hard", "oracle"), ("dynamic_bn", "oracle/calibrated")):
        paired = difference(entry_of(comparison, oracle), entry_of(comparison, method))
        assert paired is not None
        its = gain(float(paired.mean.difference), paired.mean)
        assert rows_of(pairs)[method][1].text == oracle
        assert rows_of(pairs)[method][3].text == its.text + its.bounds
    (outcomes,) = tables_of(tree, "Accuracy where")
    right = records.detected == records.true_rows()
    nodes = rows_of(outcomes)["dynamic_bn/calibrated"]
    for place, where in ((1, right), (3, ~right)):
        assert nodes[place].text == f"{100 * float(records.correct[where].double().mean()):.1f}"
    without = {name: its for name, its in GAINS.items() if not name.startswith("oracle")}
    tree, _ = page_of(make_folder(tmp_path / "without", images=10, cells=FEW, methods=without))
    assert "--methods …,oracle" in tree.text
    assert not tables_of(tree, "Detected against known")


def change(folder: Path, **changes: Mapping[str, Any]) -> Path:
    """Change blocks of the first place, by method, `/` written as two underscores."""
    results = read_results(folder)
    for method, its in changes.items():
        results["runs"][0]["methods"][method.replace("__", "/")] |= its
    write_results(results, folder)
    return folder


def test_an_unfinished_method_is_not_compared(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=20, cells=FEW)
    change(folder, dynamic_bn__calibrated={"unfinished": True}, oracle={"unfinished": True})
    tree, comparison = page_of(folder)
    best = best_of(comparison.entries)
    assert best is not None
    assert best.method == "dynamic_bn"
    assert "among 4 methods" in tree.of_class("facts")[0].text
    shown = rows_of(tables_of(tree, "Methods on")[0])
    assert [cell.text for cell in shown["dynamic_bn/calibrated (unfinished)"][1:3]] == ["–", "–"]
    assert shown["dynamic_bn"][1].text != "–"
    named = [table.one("caption").text.split(",")[0] for table in tree.of_class("heat-map")]
    assert named == ["dynamic_bn", "batch_stats", "tent", "dynamic_bn/hard", "oracle/calibrated"]
    assert list(rows_of(tables_of(tree, "Detected against known")[0])) == ["dynamic_bn"]
    unfinished = entry_of(comparison, "dynamic_bn/calibrated")
    assert mean_gain(unfinished, entry_of(comparison, "source")) is None
    assert set(gains_of(unfinished, entry_of(comparison, "source")).values()) == {None}


def test_an_unfinished_source_is_not_compared_with(tmp_path: Path) -> None:
    folder = change(make_folder(tmp_path, images=20, cells=FEW), source={"unfinished": True})
    tree, _ = page_of(folder)
    facts = [term.text for term in tree.of_class("facts")[0].all("dt")]
    assert facts == ["dynamic_bn/calibrated", "On clean images"]
    assert "source" not in tree.of_class("facts")[0].text
    assert not tree.of_class("heat-map")
    (table,) = tables_of(tree, "Methods on")
    headings = [heading.text for heading in table.one("thead").all("th")]
    assert not {"against source, points", "time", "memory"} & set(headings)
    assert "source (unfinished)" in rows_of(table)


def test_there_is_no_gain_over_other_images(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, images=20, cells=FEW, methods={"source": 0.0, "tent": 0.1})
    file = folder / read_results(folder)["runs"][0]["methods"]["tent"]["records"]
    records, about = ImageRecords.load(file)
    ImageRecords(**{**vars(records), "indices": records.indices + 1}).save(file, about)
    tree, _ = page_of(folder)
    assert "Difference" not in [term.text for term in tree.all("dt")]
    assert "a change of" not in tree.of_class("facts")[0].text
    assert not tree.of_class("heat-map")
    assert "against source, points" not in tables_of(tree, "Methods on")[0].text


def test_costs_are_compared_on_the_same_hardware_of_one_folder(tmp_path: Path) -> None:
    methods = {"source": 0.0, "tent": 0.05, "ema": 0.06}
    protocol = {**PROTOCOL, "fingerprint": "f"}
    one = make_folder(tmp_path / "one", images=20, cells=FEW, methods=methods, protocol=protocol)
    change(one, source={"hardware": "a"}, tent={"hardware": "a"}, ema={"hardware": "b"})
    other = make_folder(tmp_path / "other", images=20, cells=FEW, methods={"few_shot": 0.1}, protocol=protocol)
    change(other, few_shot={"hardware": "a"})
    tree, comparison = page_of(one, other)
    shown = rows_of(tables_of(tree, "Methods on")[0])
    assert shown["other: few_shot"][1].text != "–", "the same images"
    assert [nodes[-2].text for nodes in shown.values()] == ["1.0×", "1.6×", "–", "–"]
    source, tent, ema, few_shot = comparison.entries
    assert measured_on([source, tent]) == "measured on a"
    assert measured_on([source, tent, ema]) == "measured on different machines: a; b"
    del few_shot.block["hardware"]
    assert measured_on([few_shot]) == "measured on 2 cores of a Xeon"


def test_a_copy_is_marked_and_the_images_are_named(tmp_path: Path) -> None:
    protocol = {**PROTOCOL, "split": "validation", "limit_batches": 4}
    folder = make_folder(tmp_path, images=20, cells=FEW, methods={"source": 0.0, "tent": 0.1}, protocol=protocol)
    tree, _ = page_of(change(folder, tent={"same_as": "sequential"}))
    assert "20 held-out training images, at most 4 batches in" in tree.of_class("summary")[0].text
    assert "test images" not in tree.of_class("summary")[0].text
    assert "tent (as on sequential)" in rows_of(tables_of(tree, "Methods on")[0])


@pytest.mark.parametrize(
    ("bank", "oracle"),
    [
        (None, "oracle/calibrated"),
        ({"calibrated": True, "refined": False}, "oracle/calibrated"),
        ({"calibrated": False, "refined": False}, "oracle"),
        ({"calibrated": True, "refined": True}, None),
    ],
)
def test_the_oracle_has_the_same_rows_of_statistics(
    tmp_path: Path, bank: dict[str, bool] | None, oracle: str | None
) -> None:
    methods = {"dynamic_bn": 0.1, "oracle": 0.11, "oracle/calibrated": 0.12}
    folder = make_folder(tmp_path, images=10, cells=FEW, methods=methods)
    settings = {"DynamicBNCallback": {} if bank is None else {"bank": {"fingerprint": "b", **bank}}}
    comparison = Comparison.read([change(folder, dynamic_bn={"settings": settings})])
    its = oracle_of(comparison, entry_of(comparison, "dynamic_bn"))
    assert (None if its is None else its.method) == oracle
    change(folder, dynamic_bn={"refined": True})
    (table,) = places_of(comparison := Comparison.read([folder]))
    assert oracle_table(comparison, table) is None


def test_without_a_calibrated_oracle_the_plain_one_stands_for_a_bank_of_which_nothing_is_said(tmp_path: Path) -> None:
    comparison = Comparison.read([make_folder(tmp_path, images=10, methods={"dynamic_bn": 0.1, "oracle": 0.11})])
    assert oracle_of(comparison, comparison.entries[0]) is comparison.entries[1]


def test_several_folders_are_told_apart_and_each_has_its_own_source(tmp_path: Path) -> None:
    methods = {"source": 0.0, "tent": 0.1}
    one = make_folder(tmp_path / "one", images=30, methods=methods, cells=FEW, streams=("mixed", "continual"))
    other = make_folder(
        tmp_path / "other", images=20, methods=methods, cells=FEW, seed=5, protocol={**PROTOCOL, "model": "resnet56"}
    )
    tree, comparison = page_of(one, other)
    assert tree.one("h1").text == "resnet20 and resnet56, tested on corrupted cifar10"
    mixed, continual = tables_of(tree, "Methods on")
    assert list(rows_of(mixed)) == ["one: source", "one: tent", "other: source", "other: tent"]
    assert list(rows_of(continual)) == ["one: source", "one: tent"]
    ours = next(entry for entry in comparison.entries if entry.label == "other: tent")
    source = comparison.source_of(ours)
    assert source is not None
    assert source.label == "other: source"
    expected = points(ours.block["mean"]["accuracy"] - source.block["mean"]["accuracy"])
    assert rows_of(mixed)["other: tent"][1].text.startswith(expected)
    headings = [heading.text for heading in tree.all("section")[0].all("h3")]
    assert headings == ["one: mixed stream, batches of 200", "other: mixed stream, batches of 200"]


def test_an_interrupted_run_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    missing = ["tent on <mixed>", "oracle on mixed"]
    tree, _ = page_of(make_folder(tmp_path, images=10, cells=FEW, methods={"source": 0.0}, missing=missing))
    (banner,) = tree.of_class("banner")
    assert "This run was interrupted." in banner.text
    assert "tent on <mixed>, oracle on mixed" in banner.text
    assert tables_of(tree, "Methods on")
    nothing, _ = page_of(make_folder(tmp_path / "nothing", streams=(), missing=missing))
    assert "tent on <mixed>" in nothing.of_class("banner")[0].text
    assert not nothing.all("table")
    whole, _ = page_of(make_folder(tmp_path / "whole", images=10, cells=FEW, methods={"source": 0.0}))
    assert not whole.of_class("banner")
