"""The page of results that are odd, or that much is missing from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from html_folders import CELLS, PROTOCOL, make_folder
from html_tree import entry_of, page_of, rows_of, tables_of

from dynbn_lightning.corruptions import Cell
from dynbn_lightning.corruptions.cells import cells_of

FEW = (Cell.clean(), *cells_of(("gaussian_noise", "fog"), (1, 3, 5)))


@pytest.mark.parametrize("name", ['<script>alert("1")</script>', "$\\frac{1}{2}$ & 'quoted' {{ 1 + 1 }}", "名前 ü/é"])
def test_names_of_any_characters_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    protocol = {**PROTOCOL, "model": name, name: {name: [name, {name: name}]}}
    folder = make_folder(tmp_path, images=10, methods={"source": 0.0, "a": 0.1}, cells=FEW, protocol=protocol)
    results = json.loads((folder / "results.json").read_text())
    for run in results["runs"]:
        run["methods"][name] = run["methods"].pop("a")
    (folder / "results.json").write_text(json.dumps(results))
    tree, _ = page_of(folder)
    assert not tree.all("script")
    assert name in rows_of(tables_of(tree, "Methods on")[0])
    assert sum(term.text == name for term in tree.all("dt")) >= 4
    assert tree.one("h1").text == f"{name}, tested on corrupted cifar10"
    assert any(name in text.text for drawing in tree.all("svg") for text in drawing.all("text"))


def damaged(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        results = json.loads((folder / "results.json").read_text())
        change(results)
        (folder / "results.json").write_text(json.dumps(results))

    return apply


def _nulls(results: dict[str, Any]) -> None:
    block = results["runs"][0]["methods"]["tent"]
    block["mean"] = dict.fromkeys(block["mean"])
    block["clean"] = dict.fromkeys(block["clean"])
    for numbers in block["cells"].values():
        numbers.update(dict.fromkeys(numbers))
    block.update(ms_per_image=None, memory_mib=None)


def _bare(results: dict[str, Any]) -> None:
    for block in results["runs"][0]["methods"].values():
        for key in ("needs", "settings", "ms_per_image", "memory_mib", "records", "detection"):
            block.pop(key, None)
        block["clean"] = None
    results["protocol"] = {}


def _fewer_cells(results: dict[str, Any]) -> None:
    del results["runs"][0]["methods"]["tent"]["cells"]["fog/3"]


def _no_source(results: dict[str, Any]) -> None:
    del results["runs"][0]["methods"]["source"]


def _no_cells(results: dict[str, Any]) -> None:
    for block in results["runs"][0]["methods"].values():
        block.update(cells={}, mean=None)


@pytest.mark.parametrize(
    "change", [_nulls, _bare, _fewer_cells, _no_source, _no_cells], ids=lambda change: change.__name__
)
def test_what_is_missing_is_left_out(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    folder = make_folder(tmp_path, images=10, methods={"source": 0.0, "tent": 0.1, "dynamic_bn": 0.12}, cells=FEW)
    damaged(change)(folder)
    tree, _ = page_of(folder)
    for wrong in ("nan", "None", "null", "inf "):
        assert wrong not in tree.one("main").text
    assert tables_of(tree, "Methods on")
    if change is _fewer_cells:
        (table,) = tables_of(tree, "Methods on")
        assert "5 of 6 cells" in table.text


@pytest.mark.parametrize(
    ("images", "cells"),
    [(2, FEW), (1, FEW), (10, (Cell("fog", 3),)), (10, (Cell.clean(), Cell("fog", 3))), (10, (Cell.clean(),))],
)
def test_small_results_make_a_page_too(tmp_path: Path, images: int, cells: tuple[Cell, ...]) -> None:
    methods = {"source": 0.0, "dynamic_bn": 0.12}
    tree, _ = page_of(make_folder(tmp_path, images=images, cells=cells, methods=methods))
    assert tables_of(tree, "Methods on")
    assert "nan" not in tree.one("main").text


def test_a_row_per_cell_makes_a_matrix_of_76(tmp_path: Path) -> None:
    rows = tuple(cell.name for cell in CELLS)
    methods = {"source": 0.0, "dynamic_bn": 0.12}
    tree, comparison = page_of(make_folder(tmp_path, images=5, methods=methods, rows=rows))
    records = entry_of(comparison, "dynamic_bn").records
    assert records is not None
    (table,) = tables_of(tree, "How the images of each row")
    assert list(rows_of(table)) == list(rows)
    assert torch.equal(records.confusion().sum(1), torch.full((76,), 5))
    assert "one of 76" in tree.text
    (tmp_path / "report.html").stat()
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
