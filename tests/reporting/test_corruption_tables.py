"""The errors by corruption in Markdown and LaTeX, read back and compared with loops over the records."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from results_data import write_made_up_results

from dynbn_lightning.corruptions.cells import BAR_CORRUPTIONS, COMMON_CORRUPTIONS, THREE_D_CORRUPTIONS, Cell
from dynbn_lightning.metrics import BASELINES
from dynbn_lightning.reporting import Comparison, Entry, read_results, write_results
from dynbn_lightning.reporting.corruption_table import corruption_tables
from dynbn_lightning.reporting.latex import escaped, latex_document
from dynbn_lightning.reporting.markdown import markdown_document
from dynbn_lightning.reporting.wording import protocols_of

SEVERITIES = (1, 2, 3, 4, 5)


def error(entry: Entry, *cells: str) -> float:
    """The share of wrong predictions, by a loop; the images are as many in each cell."""
    records = entry.records
    assert records is not None
    codes = {Cell.parse(cell).code for cell in cells}
    rows = zip(records.cells.tolist(), records.predictions.tolist(), records.labels.tolist(), strict=True)
    wrong = [prediction != label for code, prediction, label in rows if code in codes]
    return sum(wrong) / len(wrong)


def cells_of(*corruptions: str, severities: tuple[int, ...] = SEVERITIES) -> list[str]:
    return [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]


def markdown_tables(text: str) -> list[list[dict[str, str]]]:
    """Every table, row by row, by heading."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def latex_rows(text: str) -> list[list[str]]:
    """The cells of each row of the first tabular, headings and blocks too."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = []
    for line in body.splitlines():
        if line.endswith(r"\\"):
            cells = []
            for cell in (its.strip() for its in line.removesuffix(r"\\").split(" & ")):
                wide = re.fullmatch(r"\\multicolumn\{(\d+)\}\{.\}\{(.*)\}", cell)
                cells += [cell] if wide is None else [wide[2]] * int(wide[1])
            rows.append(cells)
    return rows


def number(text: str) -> float:
    """The first number of a cell, without what makes it bold."""
    return float(re.findall(r"-?[\d.]+", text)[0])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The 15 corruptions at five severities, the extra ones too, on two streams."""
    folder = tmp_path_factory.mktemp("full")
    write_made_up_results(
        folder,
        corruptions=(*reversed(COMMON_CORRUPTIONS), "saturate", "spatter"),
        severities=SEVERITIES,
        images=8,
        places=(("mixed", 200), ("sequential", 1)),
        skills={"source": 0.5, "tent": 1.0, "dynamic_bn/soft": 1.2, "oracle/calibrated": 3.0},
    )
    return Comparison.read([folder])


def test_markdown_has_every_error(full: Comparison) -> None:
    tables = markdown_tables(markdown_document(full))
    assert len(tables) == 5, "the methods, and on each of two streams errors and corruption errors"
    assert markdown_document(full).count("The mean is over the common corruptions") == 2
    for stream, table in (("mixed", tables[1]), ("sequential", tables[3])):
        entries = [entry for entry in full.entries if entry.stream == stream]
        assert [row["method"] for row in table] == [entry.method for entry in entries]
        assert list(table[0]) == [
            *("method", "clean", *COMMON_CORRUPTIONS, "spatter", "saturate", "mean", "extra mean", "mCE"),
            *("calibration error", "NLL"),
        ]
        for row, entry in zip(table, entries, strict=True):
            assert number(row["clean"]) == pytest.approx(100 * error(entry, "clean"), abs=0.051)
            for corruption in (*COMMON_CORRUPTIONS, "spatter", "saturate"):
                expected = 100 * error(entry, *cells_of(corruption))
                assert number(row[corruption]) == pytest.approx(expected, abs=0.051)
            assert number(row["mean"]) == pytest.approx(100 * error(entry, *cells_of(*COMMON_CORRUPTIONS)), abs=0.051)
            extra = 100 * error(entry, *cells_of("spatter", "saturate"))
            assert number(row["extra mean"]) == pytest.approx(extra, abs=0.051)
            common = [entry.block["cells"][cell] for cell in cells_of(*COMMON_CORRUPTIONS)]
            for name, key, factor in (("NLL", "nll", 1), ("calibration error", "calibration_error", 100)):
                mean = factor * sum(its[key] for its in common) / 75
                assert number(row[name]) == pytest.approx(mean, abs=0.051 if factor > 1 else 0.0006)


@pytest.mark.parametrize(
    ("corruptions", "means"),
    [
        (THREE_D_CORRUPTIONS, {"mean": THREE_D_CORRUPTIONS}),
        (BAR_CORRUPTIONS, {"mean": BAR_CORRUPTIONS}),
        (
            ("sparkles", "fog_3d", "spatter", "fog", "ripple", "bit_error"),
            {"mean": ["fog"], "extra mean": ["spatter"], "3DCC mean": ["fog_3d", "bit_error"]}
            | {"C-bar mean": ["sparkles", "ripple"]},
        ),
    ],
    ids=["3DCC", "C-bar", "all kinds"],
)
def test_released_corruptions_have_means_of_their_own(
    tmp_path: Path, corruptions: tuple[str, ...], means: dict[str, tuple[str, ...]]
) -> None:
    write_made_up_results(tmp_path, corruptions=corruptions, severities=(2, 5), images=6, source="ImageNet-C")
    comparison = Comparison.read([tmp_path])
    document = markdown_document(comparison)
    (table,) = [table for table in markdown_tables(document) if "clean" in table[0] and corruptions[0] in table[0]]
    for row, entry in zip(table, comparison.entries, strict=True):
        for name in corruptions:
            expected = 100 * error(entry, *cells_of(name, severities=(2, 5)))
            assert number(row[name]) == pytest.approx(expected, abs=0.051)
        assert [name for name in row if name.endswith("mean")] == list(means)
        for name, its in means.items():
            expected = 100 * error(entry, *cells_of(*its, severities=(2, 5)))
            assert number(row[name]) == pytest.approx(expected, abs=0.051)
        assert "mCE" not in row
    others = " and ".join(name.removesuffix(" mean") for name in list(means)[1:])
    assert ("have their own" in document) == bool(others)
    assert f"the {others} ones have their own" in document or not others
    latex = latex_document(comparison)
    headings = latex_rows(latex)[1]
    assert len(headings) == len(set(headings)) == len(latex_rows(latex)[2])


def test_mean_has_its_own_interval(full: Comparison) -> None:
    row = markdown_tables(markdown_document(full))[1][0]
    mean, lower, upper = map(float, re.findall(r"[\d.]+", row["mean"]))
    assert lower < mean < upper
    assert "95 % percentile bootstrap" in markdown_document(full)


def test_corruption_errors_by_hand(full: Comparison) -> None:
    errors_table, ratios = markdown_tables(markdown_document(full))[1:3]
    assert list(ratios[0]) == ["method", *COMMON_CORRUPTIONS]
    baseline = BASELINES["benz-cifar10"].errors
    for row, its, entry in zip(errors_table, ratios, full.entries, strict=False):
        expected = {name: 100 * error(entry, *cells_of(name)) / baseline[name][0] for name in COMMON_CORRUPTIONS}
        for name in COMMON_CORRUPTIONS:
            assert number(its[name].strip("*")) == pytest.approx(expected[name], abs=0.051)
        assert number(row["mCE"].strip("*")) == pytest.approx(sum(expected.values()) / 15, abs=0.051)
    assert "benz-cifar10" in markdown_document(full)


def test_relative_mean_corruption_error_by_hand(full: Comparison) -> None:
    folder = full.entries[0].folder
    alexnet = BASELINES["alexnet"]
    table = markdown_tables(markdown_document(Comparison.read([folder], "alexnet")))[1]
    for row, entry in zip(table, full.entries, strict=False):
        clean = error(entry, "clean")
        ratios = []
        for name in COMMON_CORRUPTIONS:
            lost = sum(error(entry, cell) - clean for cell in cells_of(name))
            ratios.append(lost / sum(its - alexnet.clean for its in alexnet.errors[name]))
        assert float(row["relative mCE"].strip("*")) == pytest.approx(100 * sum(ratios) / 15, abs=0.051)


def test_the_best_is_bold_and_the_oracle_does_not_compete(full: Comparison) -> None:
    for table in markdown_tables(markdown_document(full))[1:]:
        for name in table[0]:
            if name != "method":
                competing = [number(row[name].strip("*")) for row in table[:3]]
                bold = [row[name].startswith("**") for row in table]
                assert bold == [value == min(competing) for value in competing] + [False], name


def test_nothing_is_bold_without_a_choice(tmp_path: Path) -> None:
    write_made_up_results(tmp_path, skills={"source": 0.5, "oracle": 0.1})
    text = markdown_document(Comparison.read([tmp_path]))
    assert "**" not in text
    assert "in bold" not in text
    assert r"\textbf" not in latex_document(Comparison.read([tmp_path]))


def test_latex_says_the_same_as_markdown(full: Comparison) -> None:
    text = latex_document(full)
    _, mixed, ratios, *_ = markdown_tables(markdown_document(full))
    rows = latex_rows(text)
    width = len(mixed[0])
    assert re.search(r"\\begin\{tabular\}\{(l)(r+)\}", text)[0] == rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}"
    assert {len(row) for row in rows} == {width}
    groups, headings, *values = rows
    assert headings[:17] == [
        *("Method", "Clean", "Gauss.", "Shot", "Impul.", "Defoc.", "Glass", "Motion", "Zoom", "Snow", "Frost"),
        *("Fog", "Brit.", "Contr.", "Elas.", "Pixel", "JPEG"),
    ]
    assert groups[2:19] == ["Noise"] * 3 + ["Blur"] * 4 + ["Weather"] * 4 + ["Digital"] * 4 + ["Extra"] * 2
    for rule, (begin, end) in zip(
        re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", text)[:5],
        [(3, 5), (6, 9), (10, 13), (14, 17), (18, 19)],
        strict=True,
    ):
        assert tuple(map(int, rule)) == (begin, end)

    def as_latex(cell: str) -> str:
        cell = re.sub(r"\*\*(.*?)\*\*", r"\\textbf{\1}", cell)
        return re.sub(r" (\[.*\])", r" {\\footnotesize \1}", cell)

    assert [row[1:] for row in values[:4]] == [[as_latex(cell) for cell in list(row.values())[1:]] for row in mixed]
    assert [row[0] for row in values[:4]] == ["source", "tent", r"dynamic\_bn/soft", "oracle/calibrated"]
    assert set(values[4]) == {r"\emph{Corruption errors (CE), \% of benz-cifar10}"}
    for row, expected in zip(values[5:9], ratios, strict=True):
        assert row[2:17] == [as_latex(cell) for cell in list(expected.values())[1:]]
        assert set(row[17:]) == {""}


def test_latex_is_balanced_and_says_how_it_was_made(full: Comparison) -> None:
    text = latex_document(full)
    assert text.startswith("% made by dynbn report\n% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n")
    for opened, closed in (("{", "}"), (r"\begin{table*}", r"\end{table*}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert text.count(opened) == text.count(closed) > 0
    captions = re.findall(r"\\caption\{(.*)\}", text)
    assert len(captions) == 2
    for caption, place in zip(captions, ("mixed stream, batches of 200", "one image at a time"), strict=True):
        for said in (place, "resnet20 on cifar10", "severities 1 to 5", "8 test images", "seed 0", "benz-cifar10"):
            assert said in caption
        assert r"95 \% percentile bootstrap intervals over the images" in caption
        assert "not source-free" in caption
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:mixed-200", "tab:sequential-1"]


def test_special_characters_are_escaped() -> None:
    assert escaped("a_b & 50% #1 {x}\n$y$ ~^\\") == (
        r"a\_b \& 50\% \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_folders_stand_side_by_side_where_the_data_is_one(tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "one", corruptions=("fog", "snow"))
    write_made_up_results(tmp_path / "two", corruptions=("fog",), model="other_model")
    write_made_up_results(tmp_path / "three", source="shapes")
    comparison = Comparison.read([tmp_path / name for name in ("one", "two", "three")])
    assert comparison.baseline is None
    assert [len(table.entries) for table in corruption_tables(comparison)] == [6, 3]
    tables = markdown_tables(markdown_document(comparison))
    assert len(tables) == 3 + 2
    assert [row["method"] for row in tables[3]][2:4] == ["one: oracle", "two: source"]
    assert list(tables[3][0]) == ["method", "clean", "snow", "fog", "mean", "calibration error", "NLL"]
    assert tables[3][3]["snow"] == tables[3][3]["mean"] == "-"
    assert number(tables[3][3]["fog"]) == pytest.approx(100 * error(comparison.entries[3], "fog/1", "fog/3"), abs=0.051)
    write_made_up_results(tmp_path / "four", severities=(5,))
    other_severities = Comparison.read([tmp_path / "one", tmp_path / "four"])
    assert [len(table.entries) for table in corruption_tables(other_severities)] == [3, 3]
    caption = re.findall(r"\\caption\{(.*)\}", latex_document(comparison))[0]
    assert "one: resnet20 on cifar10" in caption
    assert r"two: other\_model on cifar10" in caption


def test_other_images_stand_in_another_table(tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "one", split="test", limit_batches="all")
    write_made_up_results(tmp_path / "two")
    write_made_up_results(tmp_path / "three", split="validation")
    write_made_up_results(tmp_path / "four", limit_batches=3)
    comparison = Comparison.read([tmp_path / name for name in ("one", "two", "three", "four")])
    assert [len(table.entries) for table in corruption_tables(comparison)] == [6, 3, 3]


def test_the_images_are_those_that_were_counted(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, images=12, test_images=500, limit_batches=2)
    (words,) = protocols_of(Comparison.read([tmp_path]).entries)
    assert "12 test images in each cell, at most 2 batches, seed 0" in words
    methods = results["runs"][0]["methods"]
    methods["oracle"]["cells"]["fog/1"]["images"] = 7
    methods["dynamic_bn/soft"] |= {"unfinished": True, "clean": {**methods["source"]["clean"], "images": 3}}
    results["protocol"] |= {"split": "validation", "limit_batches": 0.25, "processes": 2}
    write_results(results, tmp_path)
    (words,) = protocols_of(Comparison.read([tmp_path]).entries)
    assert "7 to 12 held-out training images in each cell, at most 25 % of the batches in each of 2 processes" in words
    assert "12 test images" not in words
    for block in methods.values():
        block["unfinished"] = True
    write_results(results, tmp_path)
    assert "images" not in protocols_of(Comparison.read([tmp_path]).entries)[0], "none was shown all of its"


def test_interrupted_results_have_no_means_and_say_what_is_missing(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path, missing=["tent & ema on the mixed stream"])
    methods = results["runs"][0]["methods"]
    del methods["dynamic_bn/soft"]["cells"]["snow/3"]
    methods["oracle"] |= {"clean": None, "mean": None, "cells": {}, "unfinished": True}
    write_results(results, tmp_path)
    comparison = Comparison.read([tmp_path])
    text = markdown_document(comparison)
    assert "Missing: tent & ema on the mixed stream." in text
    errors = markdown_tables(text)[1]
    assert "-" not in [cell[0] for cell in errors[0].values()]
    assert errors[1]["fog"] != "-"
    assert errors[1]["snow"] == errors[1]["mean"] == errors[1]["NLL"] == "-"
    assert errors[2]["method"] == "oracle (unfinished)"
    assert set(list(errors[2].values())[1:]) == {"-"}
    latex = latex_document(comparison)
    assert "% The run was interrupted. Missing: tent & ema on the mixed stream.\n" in latex
    assert r"Missing: tent \& ema on the mixed stream.}" in latex
    assert latex_rows(latex)[-1][1:] == ["--"] * 6


def test_what_is_null_is_a_dash(tmp_path: Path) -> None:
    results = write_made_up_results(tmp_path)
    results["runs"][0]["methods"]["source"]["cells"]["fog/1"]["nll"] = float("nan")
    write_results(results, tmp_path)
    assert read_results(tmp_path)["runs"][0]["methods"]["source"]["cells"]["fog/1"]["nll"] is None
    rows = markdown_tables(markdown_document(Comparison.read([tmp_path])))[1]
    assert rows[0]["NLL"] == "-"
    assert rows[1]["NLL"] != "-"


def test_a_baseline_that_does_not_fit_is_said(tmp_path: Path) -> None:
    write_made_up_results(tmp_path, severities=SEVERITIES)
    text = markdown_document(Comparison.read([tmp_path]))
    assert "There is no mCE: a mean corruption error is over 15 corruptions" in text
    assert "mCE" not in markdown_tables(text)[1][0]
    assert list(markdown_tables(text)[2][0]) == ["method", "snow", "fog"], "each CE can be told all the same"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(full: Comparison, tmp_path: Path) -> None:
    write_made_up_results(tmp_path / "made", model="odd_&%$#{}~^\\<>|\"' name", missing=["100% of #1"])
    for name, comparison in (("full", full), ("odd", Comparison.read([tmp_path / "made"]))):
        (tmp_path / f"{name}.tex").write_text(latex_document(comparison))
    (tmp_path / "all.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}"
        r"\begin{document}\input{full}\input{odd}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
