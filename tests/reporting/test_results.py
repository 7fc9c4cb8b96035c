"""Results on disk and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting import (
    calibration_table,
    method_blocks,
    pack_correct,
    read_results,
    results_table,
    unpack_correct,
    write_results,
)


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


def as_text(table: Table) -> str:
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_table_shows_every_stream_and_method_in_percent() -> None:
    assert [(stream, method) for stream, method, _ in method_blocks(SEVERAL)] == [
        ("mixed", "source"),
        ("mixed", "dynamic_bn/soft"),
        ("sequential", "source"),
    ]
    assert [stream for stream, _, _ in method_blocks(SINGLE)] == ["mixed", "mixed"]
    text = as_text(results_table(SEVERAL))
    assert "88.0" in text
    assert "91.6" in text
    assert "70.0" in text
    assert text.count("source") == 2


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
    lines = {line.split()[1]: line for line in text.splitlines() if "\u2502" in line}
    for name, numbers in (("source", ("70.1", "65.2", "91.3")), ("calibrated", ("80.4", "75.5", "91.6"))):
        assert [word for word in lines[name].split() if word[0].isdigit()] == list(numbers)


# Outcomes, packed


@pytest.mark.parametrize("images", [1, 5, 7, 8, 9, 16, 1001])
def test_outcomes_are_packed_and_unpacked(images: int) -> None:
    generator = torch.Generator().manual_seed(images)
    outcomes = {
        name: torch.rand(images, generator=generator) < share
        for name, share in (("clean", 0.9), ("fog/3", 0.5), ("fog/5", 0.0), ("snow/1", 2.0))
    }
    packed = json.loads(json.dumps(pack_correct(outcomes)))
    assert all(len(bits) == 2 * -(-images // 8) for bits in packed.values())
    unpacked = unpack_correct(packed, images)
    assert list(unpacked) == list(outcomes)
    for name, right in outcomes.items():
        assert unpacked[name].dtype == torch.bool
        assert torch.equal(unpacked[name], right)


def test_packed_outcomes_are_the_bits_of_the_images_in_order() -> None:
    right = torch.tensor([True, False, False, False, False, False, False, True, True])
    assert pack_correct({"fog/3": right}) == {"fog/3": "8180"}
    assert unpack_correct({"fog/3": "8180"}, 9)["fog/3"].tolist() == right.tolist()
