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
    markdown_table,
    method_blocks,
    methods_of,
    pack_correct,
    read_results,
    results_table,
    unpack_correct,
    write_results,
)


def block(clean: float, fog: float, detection: float | None = None) -> dict[str, Any]:
    numbers: dict[str, Any] = {"clean": clean, "cells": {"fog/3": fog}, "mean": fog}
    return numbers if detection is None else {**numbers, "detection": detection}


MIXED = {
    "stream": "mixed",
    "batch_size": 200,
    "methods": {"source": block(0.916, 0.88), "dynamic_bn/soft": block(0.91, 0.9, 0.7)},
}
SEQUENTIAL = {"stream": "sequential", "batch_size": 16, "methods": {"source": block(0.9, 0.8)}}
SINGLE = {"schema_version": 2, "protocol": {"streams": ["mixed"]}, "runs": [MIXED]}
SEVERAL = {"schema_version": 2, "protocol": {"streams": ["mixed", "sequential"]}, "runs": [MIXED, SEQUENTIAL]}


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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 3}', "{"])
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
    assert [block[:3] for block in method_blocks(SEVERAL)] == [
        ("mixed", 200, "source"),
        ("mixed", 200, "dynamic_bn/soft"),
        ("sequential", 16, "source"),
    ]
    assert methods_of(SEVERAL) is MIXED["methods"]
    assert methods_of(SEVERAL, "sequential") is methods_of(SEVERAL, batch_size=16) is SEQUENTIAL["methods"]
    with pytest.raises(DataError, match="'continual'"):
        methods_of(SEVERAL, "continual")
    text = as_text(results_table(SEVERAL))
    assert "88.0" in text
    assert "91.6" in text
    assert "70.0" in text
    assert text.count(" source ") == 2


def test_markdown_table_has_severities_costs_and_needs() -> None:
    def costly(seconds: float, memory: float | None, **more: Any) -> dict[str, Any]:
        cells = {"fog/1": 0.8, "snow/1": 0.6, "fog/5": 0.5, "snow/5": 0.2}
        return {"clean": 0.9, "cells": cells, "mean": 0.525, "ms_per_image": seconds, "memory_mib": memory, **more}

    methods = {"source": costly(2.0, 50.0), "tent": costly(9.0, 150.0, needs=["gradients", "batches"])}
    alone = {"source": costly(8.0, None), "tent": costly(8.4, 1.0)}
    runs = [
        {"stream": "mixed", "batch_size": 200, "methods": methods},
        {"stream": "continual", "batch_size": 200, "methods": {"tent": costly(3.0, 100.0)}},
        {"stream": "mixed", "batch_size": 1, "methods": alone},
    ]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table({"runs": runs}).splitlines()
    ]
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
