"""Results on disk, and the numbers that they are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from results_data import ROWS, made_up_records

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting import (
    ImageRecords,
    accuracies,
    block_of,
    errors,
    is_complete,
    method_blocks,
    methods_of,
    read_results,
    write_results,
)

MIXED = {"stream": "mixed", "batch_size": 200, "methods": {"source": {"mean": None}, "tent": {"mean": None}}}
SEQUENTIAL = {"stream": "sequential", "batch_size": 16, "methods": {"source": {"mean": None}}}
SINGLE = {"schema_version": 3, "protocol": {"streams": ["mixed"]}, "runs": [MIXED]}
SEVERAL = {"schema_version": 3, "protocol": {"streams": ["mixed", "sequential"]}, "runs": [MIXED, SEQUENTIAL]}


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


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    given = {"schema_version": 3, "a": [math.nan, 1.5, {"b": -math.inf}], "c": (math.inf, "NaN", True, 3)}
    write_results(given, tmp_path)
    assert read_results(tmp_path) == {"schema_version": 3, "a": [None, 1.5, {"b": None}], "c": [None, "NaN", True, 3]}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 4}', "{", "\x00\xff"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"results\.json"):
        read_results(path)
    with pytest.raises(DataError, match="holds no results"):
        read_results(tmp_path / "missing.json")


def test_results_are_complete_if_nothing_is_missing(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    write_results({**SINGLE, "missing": ["tent"]}, tmp_path)
    assert not is_complete(tmp_path)
    for results in ({**SINGLE, "missing": []}, SINGLE):
        write_results(results, tmp_path)
        assert is_complete(tmp_path)


def test_blocks_of_runs() -> None:
    assert [block[:3] for block in method_blocks(SEVERAL)] == [
        ("mixed", 200, "source"),
        ("mixed", 200, "tent"),
        ("sequential", 16, "source"),
    ]
    assert methods_of(SEVERAL) is MIXED["methods"]
    assert methods_of(SEVERAL, "sequential") is methods_of(SEVERAL, batch_size=16) is SEQUENTIAL["methods"]
    with pytest.raises(DataError, match="'continual'"):
        methods_of(SEVERAL, "continual")


def test_a_block_has_each_cell_their_mean_and_clean() -> None:
    records = made_up_records(["fog/3", "clean", "snow/1"], 12, rows=ROWS)
    block = block_of(records)
    assert list(block["cells"]) == ["snow/1", "fog/3"]
    right = {
        name: [
            bool(hit)
            for hit, code in zip(records.correct, records.cells.tolist(), strict=True)
            if code == Cell.parse(name).code
        ]
        for name in ("clean", "snow/1", "fog/3")
    }
    shares = {name: sum(hits) / 12 for name, hits in right.items()}
    assert block["clean"]["accuracy"] == pytest.approx(shares["clean"])
    assert accuracies(block) == pytest.approx({name: shares[name] for name in ("snow/1", "fog/3")})
    assert errors(block) == pytest.approx({name: 1 - share for name, share in shares.items()})
    assert block["mean"]["accuracy"] == pytest.approx((shares["snow/1"] + shares["fog/3"]) / 2)
    assert block["mean"]["error"] == pytest.approx(1 - block["mean"]["accuracy"])
    for key in ("nll", "calibration_error", "top5_accuracy"):
        assert block["mean"][key] == pytest.approx(sum(its[key] for its in block["cells"].values()) / 2)
    assert block["cells"]["fog/3"]["images"] == 12
    assert block["detection"] == records.detection_accuracy()


def test_a_block_says_what_was_not_shown() -> None:
    only_clean = block_of(made_up_records(["clean"], 5))
    assert only_clean["mean"] is None
    assert only_clean["cells"] == {}
    assert "detection" not in only_clean
    assert errors(only_clean) == {"clean": pytest.approx(1 - only_clean["clean"]["accuracy"])}
    no_clean = block_of(made_up_records(["fog/1"], 5))
    assert no_clean["clean"] is None
    assert list(errors(no_clean)) == ["fog/1"]
    assert block_of(ImageRecords.of_nothing()) == {"clean": None, "mean": None, "cells": {}}
