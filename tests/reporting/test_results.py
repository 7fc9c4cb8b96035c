"""Results on disk and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting import method_blocks, read_results, results_table, write_results


def block(clean: float, fog: float, detection: float | None = None) -> dict[str, Any]:
    numbers: dict[str, Any] = {"clean": clean, "cells": {"fog/3": fog}, "mean": fog}
    return numbers if detection is None else {**numbers, "detection": detection}


SINGLE = {
    "schema_version": 1,
    "protocol": {"streams": ["mixed"]},
    "methods": {"source": block(0.916, 0.88), "dynamic_bn/soft": block(0.91, 0.9, 0.7)},
}
SEVERAL = {
    "schema_version": 1,
    "protocol": {"streams": ["mixed", "sequential"]},
    "streams": {"mixed": {"methods": SINGLE["methods"]}, "sequential": {"methods": {"source": block(0.9, 0.8)}}},
}


def test_round_trip_and_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_results(SINGLE, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "results.json"
    assert read_results(path) == read_results(path.parent) == SINGLE

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynbn_lightning.reporting.results.json.dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(SEVERAL, path.parent)
    assert json.loads(path.read_text()) == SINGLE
    assert list(path.parent.iterdir()) == [path], "nothing half-written stays"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', "{"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results\.json"):
        read_results(path)
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path / "missing.json")


def test_table_shows_every_stream_and_method_in_percent() -> None:
    assert [(stream, method) for stream, method, _ in method_blocks(SEVERAL)] == [
        ("mixed", "source"),
        ("mixed", "dynamic_bn/soft"),
        ("sequential", "source"),
    ]
    assert [stream for stream, _, _ in method_blocks(SINGLE)] == ["mixed", "mixed"]
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(SEVERAL))
    text = console.export_text()
    assert "88.0" in text
    assert "91.6" in text
    assert "70.0" in text
    assert text.count("source") == 2
