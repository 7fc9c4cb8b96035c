"""Results on disk and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from dynbn_lightning.errors import DataError
from dynbn_lightning.files import whole_file

SCHEMA_VERSION = 1


def write_results(results: dict[str, Any], output: Path) -> Path:
    """Write `output/results.json`; a file there is replaced as a whole or, on failure, left alone.

    Schema 1: `{"schema_version": 1, "protocol": {...}, "methods": {method: {"clean": a, "cells": {"fog/3": a, ...},
    "mean": a}}}` with accuracies from 0 to 1 and `mean` over the cells; a run with several streams has
    `"streams": {stream: {"methods": {...}}}` in place of `"methods"`. Where each image's outcome was kept, a method
    has `"correct": {cell: bits in hexadecimal}` besides, see `pack_correct`.
    """
    path = output / "results.json"
    with whole_file(path) as temporary, temporary.open("w") as file:
        json.dump(results, file, indent=1)
        file.write("\n")
    return path


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`, or the one in a folder; `DataError` if there is none of this schema."""
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no results: {error}") from error
    if not isinstance(results, dict) or results.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path} is not results of schema {SCHEMA_VERSION}")
    return results


def method_blocks(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each (stream, method, block) of some results."""
    streams = results.get("streams") or {results["protocol"]["streams"][0]: results}
    for stream, block in streams.items():
        for method, numbers in block["methods"].items():
            yield stream, method, numbers


def pack_correct(correct: Mapping[str, Tensor]) -> dict[str, str]:
    """Which images were classified rightly, cell by cell, (images,) bool each: packed bits in hexadecimal."""
    return {cell: np.packbits(right.cpu().numpy()).tobytes().hex() for cell, right in correct.items()}


def unpack_correct(packed: Mapping[str, str], images: int) -> dict[str, Tensor]:
    """What `pack_correct` was given, for so many images."""
    bits = {cell: np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)) for cell, text in packed.items()}
    return {cell: torch.from_numpy(values[:images].astype(bool)) for cell, values in bits.items()}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def results_table(results: dict[str, Any]) -> Table:
    """A table for the terminal: top-1 accuracy in percent, by stream and method."""
    table = Table(title="top-1 accuracy, %")
    for heading in ("stream", "method"):
        table.add_column(heading)
    for heading in ("mean over cells", "clean", "detection"):
        table.add_column(heading, justify="right")
    for stream, method, block in method_blocks(results):
        table.add_row(
            stream, method, _percent(block["mean"]), _percent(block["clean"]), _percent(block.get("detection"))
        )
    return table


def calibration_table(check: Mapping[str, Mapping[str, float]]) -> Table:
    """A table for the terminal: what a calibration gained on the held-out training images it was checked on."""
    table = Table(title="on held-out training images in random cells, %")
    table.add_column("rows")
    for heading in ("agreement with the clean prediction", "accuracy", "accuracy on clean images"):
        table.add_column(heading, justify="right")
    for name, shares in check.items():
        table.add_row(name, *(_percent(shares[key]) for key in ("agreement", "accuracy", "clean_accuracy")))
    return table
