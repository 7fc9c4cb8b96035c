"""The table of methods."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from dynbn_lightning.reporting import calibration_table, markdown_table, results_table, severity_means


def block(clean: float | None, cells: dict[str, float], **more: Any) -> dict[str, Any]:
    mean = sum(cells.values()) / len(cells) if cells else None
    return {
        "clean": None if clean is None else {"accuracy": clean},
        "mean": None if mean is None else {"accuracy": mean},
        "cells": {cell: {"accuracy": accuracy} for cell, accuracy in cells.items()},
        **more,
    }


def results(*runs: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
    return {"runs": [{"stream": stream, "batch_size": size, "methods": methods} for stream, size, methods in runs]}


def lines_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def as_text(table: Table) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_table_shows_every_stream_and_method_in_percent() -> None:
    mixed = {
        "source": block(0.916, {"fog/3": 0.88}),
        "dynamic_bn/soft": block(0.91, {"fog/3": 0.9}, detection=0.7, needs=["a bank"]),
    }
    text = as_text(results_table(results(("mixed", 200, mixed), ("sequential", 16, {"source": mixed["source"]}))))
    assert all(number in text for number in ("88.0", "91.6", "90.0", "91.0", "70.0"))
    assert text.count(" source ") == 2
    assert "a bank" not in text


def test_severity_means() -> None:
    cells = {"fog/5": 0.5, "fog/1": 0.8, "snow/1": 0.6, "snow/5": 0.2}
    assert severity_means(block(None, cells)) == pytest.approx({1: 0.7, 5: 0.35})
    assert list(severity_means(block(None, cells))) == [1, 5]
    assert severity_means(block(0.9, {})) == {}


def test_markdown_table_has_severities_costs_and_needs() -> None:
    def costly(seconds: float, memory: float | None, **more: Any) -> dict[str, Any]:
        cells = {"fog/1": 0.8, "snow/1": 0.6, "fog/5": 0.5, "snow/5": 0.2}
        return block(0.9, cells, ms_per_image=seconds, memory_mib=memory, **more)

    methods = {"source": costly(2.0, 50.0), "tent": costly(9.0, 150.0, needs=["gradients", "batches"])}
    alone = {"source": costly(8.0, None), "tent": costly(8.4, 1.0)}
    table = lines_of(
        markdown_table(
            results(("mixed", 200, methods), ("continual", 200, {"tent": costly(3.0, 100.0)}), ("mixed", 1, alone))
        )
    )
    assert table[0] == [
        *("stream", "batch", "method", "mean", "severity 1", "severity 5", "clean", "time", "memory", "needs")
    ]
    assert table[1][:4] == ["---", "---:", "---", "---:"]
    assert table[2:] == [
        ["mixed", "200", "source", "52.5", "70.0", "35.0", "90.0", "1.0x", "1.0x", ""],
        ["mixed", "200", "tent", "52.5", "70.0", "35.0", "90.0", "4.5x", "3.0x", "gradients, batches"],
        ["continual", "200", "tent", "52.5", "70.0", "35.0", "90.0", "1.5x", "2.0x", ""],
        ["mixed", "1", "source", "52.5", "70.0", "35.0", "90.0", "1.0x", "-", ""],
        ["mixed", "1", "tent", "52.5", "70.0", "35.0", "90.0", "1.1x", "-", ""],
    ]


def test_costs_are_of_the_same_hardware_and_copies_are_marked() -> None:
    def timed(hardware: str | None, time: float, **more: Any) -> dict[str, Any]:
        return block(0.9, {"fog/1": 0.8}, ms_per_image=time, hardware=hardware, **more)

    mixed = {"source": timed("a", 2.0), "tent": timed("b", 9.0), "ema": timed("a", 3.0), "few_shot": timed(None, 3.0)}
    sequential = {"source": timed("b", 4.5, same_as="mixed"), "tent": timed("b", 9.0)}
    rows = lines_of(markdown_table(results(("mixed", 8, mixed))))[2:]
    assert [row[-1] for row in rows] == ["1.0x", "-", "1.5x", "-"]
    rows = lines_of(markdown_table(results(("mixed", 8, mixed), ("sequential", 8, sequential))))[2:]
    assert [row[-1] for row in rows] == ["1.0x", "2.0x", "1.5x", "-", "1.0x", "2.0x"]
    assert [row[2] for row in rows[4:]] == ["source (as on mixed)", "tent"]
    mixed["source"]["unfinished"] = True
    rows = lines_of(markdown_table(results(("mixed", 8, mixed))))
    assert "time" not in rows[0]


def test_no_means_over_other_cells_than_the_others() -> None:
    methods = {
        "source": block(0.9, {"fog/1": 0.8, "snow/1": 0.6, "fog/5": 0.5, "snow/5": 0.3}),
        "tent": block(0.8, {"fog/1": 0.7, "snow/1": 0.5, "fog/5": 0.4}),
        "ema": block(None, {"fog/1": 0.7}, unfinished=True),
        "oracle": block(0.7, {}),
    }
    assert lines_of(markdown_table(results(("sequential", 8, methods))))[2:] == [
        ["sequential", "8", "source", "55.0", "70.0", "40.0", "90.0"],
        ["sequential", "8", "tent", "-", "60.0", "-", "80.0"],
        ["sequential", "8", "ema (unfinished)", "-", "-", "-", "-"],
        ["sequential", "8", "oracle", "-", "-", "-", "70.0"],
    ]
    assert "tent" in as_text(results_table(results(("sequential", 8, methods))))
    assert lines_of(markdown_table(results()))[0] == [""]


def test_bars_in_names_do_not_make_columns() -> None:
    text = markdown_table(results(("mixed", 8, {"a|b": block(0.5, {"fog/1": 0.5})})))
    assert "| a\\|b |" in text


def test_calibration_table_shows_what_was_gained_in_percent() -> None:
    check = {
        "source": {"agreement": 0.701, "accuracy": 0.652, "clean_accuracy": 0.913},
        "calibrated": {"agreement": 0.804, "accuracy": 0.755, "clean_accuracy": 0.916},
    }
    text = as_text(calibration_table(check))
    headings = ("agreement with the clean prediction", "accuracy", "accuracy on clean images")
    places = [" ".join(text.split()).find(heading) for heading in headings]
    assert places == sorted(places)
    assert places[0] >= 0
    lines = {line.split()[1]: line for line in text.splitlines() if "│" in line}
    for name, numbers in (("source", ("70.1", "65.2", "91.3")), ("calibrated", ("80.4", "75.5", "91.6"))):
        assert [word for word in lines[name].split() if word[0].isdigit()] == list(numbers)
