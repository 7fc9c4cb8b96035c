"""Results on disk: `results.json`, and the records of images and example images beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynbn_lightning.errors import DataError
from dynbn_lightning.files import whole_file
from dynbn_lightning.metrics import CellScores, mean_over_corruptions
from dynbn_lightning.reporting.records import ImageRecords

SCHEMA_VERSION = 3


def write_results(results: Mapping[str, Any], output: Path) -> Path:
    """Write `output/results.json`; a file there is replaced as a whole or, on failure, left alone.

    The schema is in docs/reports.md. A number that is not finite is written as null.
    """
    path = output / "results.json"
    with whole_file(path) as temporary, temporary.open("w") as file:
        json.dump(_finite(results), file, indent=1, allow_nan=False)
        file.write("\n")
    return path


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a `results.json`, or the one in a folder; `DataError` if there is none of this schema."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no results: {error}") from error
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} is not results of schema {SCHEMA_VERSION}"
            + ("" if version is None else f" but of schema {version}: run `dynbn evaluate` again")
        )
    checked: dict[str, Any] = results
    return checked


def is_complete(folder: Path) -> bool:
    """Whether a folder has results of which nothing is missing."""
    return (folder / "results.json").is_file() and not read_results(folder).get("missing")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(its) for key, its in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(its) for its in value]
    return value


def block_of(records: ImageRecords) -> dict[str, Any]:
    """The numbers of a method: of each corrupted cell, their mean over these, and of clean images."""
    scores = records.scores()
    mean = mean_over_corruptions(scores)
    clean = scores.pop("clean", None)
    detection = records.detection_accuracy()
    return {
        "clean": None if clean is None else _numbers(clean),
        "mean": None if mean is None else _numbers(mean),
        "cells": {name: _numbers(its) for name, its in scores.items()},
        **({} if detection is None else {"detection": detection}),
    }


def _numbers(scores: CellScores) -> dict[str, Any]:
    return {
        "images": scores.images,
        "accuracy": scores.accuracy,
        "error": scores.error,
        "top5_accuracy": scores.top5_accuracy,
        "nll": scores.nll,
        "calibration_error": scores.calibration_error,
    }


def method_blocks(results: Mapping[str, Any]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Each (stream, batch size, method, block) of some results."""
    for run in results["runs"]:
        for method, numbers in run["methods"].items():
            yield run["stream"], run["batch_size"], method, numbers


def methods_of(results: Mapping[str, Any], stream: str | None = None, batch_size: int | None = None) -> dict[str, Any]:
    """The blocks by method of the first run on this stream with this batch size; any if not given.

    Raises:
        DataError: if there is none.
    """
    for run in results["runs"]:
        if stream in (None, run["stream"]) and batch_size in (None, run["batch_size"]):
            methods: dict[str, Any] = run["methods"]
            return methods
    raise DataError(f"there are no results of stream {stream!r} with batches of {batch_size}")


def accuracies(block: Mapping[str, Any]) -> dict[str, float]:
    """The top-1 accuracy of each corrupted cell of a block, from 0 to 1."""
    return {cell: numbers["accuracy"] for cell, numbers in block["cells"].items()}


def errors(block: Mapping[str, Any]) -> dict[str, float]:
    """The top-1 error of each cell of a block, clean too if it was shown, from 0 to 1."""
    clean = {} if block["clean"] is None else {"clean": block["clean"]["error"]}
    return {**clean, **{cell: numbers["error"] for cell, numbers in block["cells"].items()}}
