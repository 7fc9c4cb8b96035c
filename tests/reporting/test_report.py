"""The files of a report, and its numbers read back from the table of all."""

from __future__ import annotations

import csv
import gc
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from results_data import made_up_records, write_made_up_results

import dynbn_lightning.reporting.html
from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.errors import DataError, OutputError
from dynbn_lightning.metrics import paired_bootstrap
from dynbn_lightning.metrics.bootstrap import _image_counts
from dynbn_lightning.reporting import Comparison, ImageRecords, difference, write_report, write_results
from dynbn_lightning.reporting.comparison import forget

FILES = ["results.csv", "results.md", "results.tex", "report.html"]
COLUMNS = [
    *("model", "source", "stream", "batch_size", "method", "corruption", "severity", "images"),
    *("accuracy", "error", "top5_accuracy", "nll", "calibration_error", "accuracy_lower", "accuracy_upper"),
    *("gain_over_source", "gain_lower", "gain_upper", "seed", "same_as"),
]


@pytest.fixture(autouse=True)
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page has its own tests, and takes long."""
    if "whole_page" in request.fixturenames:
        return

    def write_html(comparison: Comparison, path: Path) -> Path:
        path.write_text(f"{len(comparison.entries)} entries, {comparison.baseline}")
        return path

    monkeypatch.setattr(dynbn_lightning.reporting.html, "write_html", write_html)


@pytest.fixture
def whole_page() -> None:
    """Keeps the page as it is."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_has_its_report_beside_its_results(tmp_path: Path) -> None:
    write_made_up_results(tmp_path, missing=["tent"])
    before = (tmp_path / "results.json").read_bytes()
    assert write_report([tmp_path], tmp_path) == [tmp_path / name for name in FILES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "results.json", "images"])
    assert (tmp_path / "results.json").read_bytes() == before
    assert (tmp_path / "report.html").read_text().startswith("3 entries")
    assert "Missing: tent." in (tmp_path / "results.md").read_text()


def test_the_real_page_is_written(tmp_path: Path, whole_page: None) -> None:
    write_made_up_results(tmp_path)
    *_, page = write_report([tmp_path], tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    assert "dynamic_bn/soft" in page.read_text()


def test_several_folders_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_made_up_results(tmp_path / name)
    folders = [tmp_path / "one", tmp_path / "two" / "results.json"]
    for output in (tmp_path / "one", tmp_path / "two", tmp_path / "one" / ".." / "two"):
        with pytest.raises(DataError, match="overwrite"):
            write_report(folders, output)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["images", "results.json"]
    write_report(folders, tmp_path / "both", baseline="alexnet")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == sorted(FILES)
    assert "alexnet" in (tmp_path / "both" / "report.html").read_text()
    rows = rows_of(tmp_path / "both" / "results.csv")
    assert list(rows[0]) == ["folder", *COLUMNS]
    assert [row["folder"] for row in rows] == ["one"] * 15 + ["two"] * 15


def test_output_is_checked_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write_report([tmp_path / "missing"], tmp_path / "file" / "report")
    with pytest.raises(DataError, match="holds no results"):
        write_report([tmp_path / "missing"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_damaged_records_are_named(tmp_path: Path) -> None:
    write_made_up_results(tmp_path)
    file = tmp_path / "images" / "mixed-200-oracle.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="mixed-200-oracle"):
        write_report([tmp_path], tmp_path)


def test_every_number_is_in_the_tidy_table(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, places=(("mixed", 200), ("sequential", 8)), seed=3)
    write_report([tmp_path], tmp_path)
    rows = iter(rows_of(tmp_path / "results.csv"))
    for run in results["runs"]:
        for method, block in run["methods"].items():
            records = ImageRecords.load(tmp_path / block["records"])[0]
            source = ImageRecords.load(tmp_path / run["methods"]["source"]["records"])[0]
            for name in ("clean", "snow/1", "snow/3", "fog/1", "fog/3"):
                row, numbers = next(rows), block["clean"] if name == "clean" else block["cells"][name]
                assert list(row) == COLUMNS
                assert [row["model"], row["source"], row["seed"]] == ["resnet20", "cifar10", "3"]
                assert [row["stream"], row["batch_size"], row["method"]] == [
                    *(run["stream"], str(run["batch_size"]), method)
                ]
                assert (row["corruption"], row["severity"]) == (
                    Cell.parse(name).corruption,
                    name[-1:].strip("n") or "0",
                )
                for key in ("images", "accuracy", "error", "top5_accuracy", "nll", "calibration_error"):
                    assert float(row[key]) == numbers[key], "in full precision"
                hits, of_source = right(records, name), right(source, name)
                assert float(row["accuracy"]) == pytest.approx(sum(hits) / 30)
                bounds = interval(hits, [0] * 30)
                assert [float(row["accuracy_lower"]), float(row["accuracy_upper"])] == pytest.approx(bounds)
                gains = [row["gain_over_source"], row["gain_lower"], row["gain_upper"]]
                if method == "source":
                    assert gains == ["", "", ""]
                else:
                    gain = (sum(hits) - sum(of_source)) / 30
                    assert list(map(float, gains)) == pytest.approx([gain, *interval(hits, of_source)])
    assert next(rows, None) is None


def right(records: ImageRecords, cell: str) -> list[int]:
    rows = zip(records.indices.tolist(), records.cells.tolist(), records.correct.tolist(), strict=True)
    return [int(hit) for _, hit in sorted((index, hit) for index, code, hit in rows if code == Cell.parse(cell).code)]


def interval(first: list[int], second: list[int]) -> list[float]:
    mean = paired_bootstrap(torch.tensor(first), torch.tensor(second)).mean
    return [float(mean.lower), float(mean.upper)]


def test_without_records_there_are_gains_but_no_bounds(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, records=False, seed=None, model='a, "b"\nc')
    results["runs"][0]["methods"]["oracle"]["clean"]["nll"] = None
    write_results(results, tmp_path)
    write_report([tmp_path], tmp_path)
    rows = rows_of(tmp_path / "results.csv")
    assert len(rows) == 15
    for row in rows:
        assert row["model"] == 'a, "b"\nc'
        assert row["seed"] == ""
        assert {row[name] for name in ("accuracy_lower", "accuracy_upper", "gain_lower", "gain_upper")} == {""}
        assert (row["gain_over_source"] == "") == (row["method"] == "source")
    assert rows[10]["nll"] == ""
    assert rows[5]["nll"] != ""


def test_interrupted_results_are_reported_as_far_as_they_went(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, missing=["oracle on the mixed stream"])
    methods = results["runs"][0]["methods"]
    del methods["dynamic_bn/soft"]["cells"]["fog/3"]
    some = made_up_records(["clean", "fog/1", "fog/3"], 30).map(lambda column: column[:40])
    some.save(tmp_path / methods["oracle"]["records"], {})
    methods["oracle"] |= {"clean": None, "mean": None, "unfinished": True}
    write_results(results, tmp_path)
    write_report([tmp_path], tmp_path)
    rows = rows_of(tmp_path / "results.csv")
    assert len(rows) == 5 + 4 + 4
    by_method = {method: [row for row in rows if row["method"] == method] for method in methods}
    assert all(row["gain_over_source"] == "" for row in by_method["oracle"])
    soft = by_method["dynamic_bn/soft"]
    assert [row["gain_over_source"] != "" for row in soft] == [True] * 4
    assert [row["gain_lower"] != "" for row in soft] == [True] + [False] * 3, "cells are paired all together"
    write_results({**results, "runs": []}, tmp_path)
    write_report([tmp_path], tmp_path)
    assert rows_of(tmp_path / "results.csv") == []
    for name in ("results.md", "results.tex"):
        assert "Missing: oracle on the mixed stream." in (tmp_path / name).read_text()


def test_there_is_no_gain_over_other_images(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path)
    block = results["runs"][0]["methods"]["oracle"]
    records, about = ImageRecords.load(tmp_path / block["records"])
    moved = torch.where(records.cells == Cell.parse("fog/3").code, 1000, 0)
    ImageRecords(**{**vars(records), "indices": records.indices + moved}).save(tmp_path / block["records"], about)
    write_report([tmp_path], tmp_path)
    rows = [row for row in rows_of(tmp_path / "results.csv") if row["method"] == "oracle"]
    assert {f"{row['corruption']}/{row['severity']}" for row in rows if row["gain_over_source"] == ""} == {"fog/3"}


def test_copied_numbers_say_whose_they_are(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, places=(("mixed", 200), ("sequential", 200)))
    results["runs"][1]["methods"]["source"] = {**results["runs"][0]["methods"]["source"], "same_as": "mixed"}
    write_results(results, tmp_path)
    write_report([tmp_path], tmp_path)
    for row in rows_of(tmp_path / "results.csv"):
        copied = (row["stream"], row["method"]) == ("sequential", "source")
        assert row["same_as"] == ("mixed" if copied else "")
    assert (tmp_path / "results.md").read_text().count("| source (as on mixed) |") == 2
    assert (tmp_path / "results.tex").read_text().count("source (as on mixed) &") == 1


def alive() -> int:
    gc.collect()
    return sum(type(one) is ImageRecords for one in gc.get_objects())


def test_nothing_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_made_up_results(tmp_path)
    forget()  # what other tests left
    before = alive()
    write_report([tmp_path], tmp_path)
    assert alive() == before
    assert _image_counts.cache_info().currsize == 0

    def fails(*args: Any) -> None:
        raise OutputError("no room")

    monkeypatch.setattr("dynbn_lightning.reporting.report.latex_document", fails)
    with pytest.raises(OutputError, match="no room"):
        write_report([tmp_path], tmp_path)
    assert _image_counts.cache_info().currsize == 0
    assert difference.cache_info().currsize == 0


def test_files_are_whole_or_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_made_up_results(tmp_path)
    (tmp_path / "results.md").write_text("old")

    def fails(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynbn_lightning.reporting.report.markdown_document", fails)
    with pytest.raises(KeyboardInterrupt):
        write_report([tmp_path], tmp_path)
    assert (tmp_path / "results.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "results.csv", "results.json", "results.md"]


def test_pandas_reads_numbers_without_options(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    write_made_up_results(tmp_path)
    write_report([tmp_path], tmp_path)
    table = pandas.read_csv(tmp_path / "results.csv")
    assert list(table.columns) == COLUMNS
    texts = ("model", "source", "stream", "method", "corruption")
    assert {name for name in COLUMNS if not pandas.api.types.is_numeric_dtype(table[name])} == set(texts)


def test_reporting_needs_neither_matplotlib_nor_jinja2() -> None:
    code = """
        import sys
        import torchmetrics  # which imports matplotlib where there is one
        sys.modules |= dict.fromkeys(("matplotlib", "jinja2"))  # from here on, importing them is an error
        import dynbn_lightning.reporting as reporting
        assert all(hasattr(reporting, name) for name in reporting.__all__)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
