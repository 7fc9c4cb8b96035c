"""Results on disk and as tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.errors import DataError
from dynbn_lightning.files import whole_file

SCHEMA_VERSION = 2


def write_results(results: dict[str, Any], output: Path) -> Path:
    """Write `output/results.json`; a file there is replaced as a whole or, on failure, left alone.

    Schema 2: `{"schema_version": 2, "protocol": {...}, "runs": [{"stream": "mixed", "batch_size": 200, "methods":
    {method: block}}, ...]}`. A block has accuracies from 0 to 1, `"clean"`, `"cells": {"fog/3": accuracy, ...}` and
    `"mean"` over the cells; `"needs"`, what the method takes beside the model and an image; `"ms_per_image"`, the
    median over steps, and `"memory_mib"`, the peak above what there was at the first step; `"same_as"`, the stream
    whose numbers these are, for methods that look at each image alone; and, where each image's outcome was kept,
    `"correct": {cell: bits in hexadecimal}`, see `pack_correct`.
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


def method_blocks(results: dict[str, Any]) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Each (stream, batch size, method, block) of some results."""
    for run in results["runs"]:
        for method, numbers in run["methods"].items():
            yield run["stream"], run["batch_size"], method, numbers


def methods_of(results: dict[str, Any], stream: str | None = None, batch_size: int | None = None) -> dict[str, Any]:
    """The blocks by method of the first run on this stream with this batch size; any if not given.

    Raises:
        DataError: if there is none.
    """
    for run in results["runs"]:
        if stream in (None, run["stream"]) and batch_size in (None, run["batch_size"]):
            methods: dict[str, Any] = run["methods"]
            return methods
    raise DataError(f"there are no results of stream {stream!r} with batches of {batch_size}")


def pack_correct(correct: Mapping[str, Tensor]) -> dict[str, str]:
    """Which images were classified rightly, cell by cell, (images,) bool each: packed bits in hexadecimal."""
    return {cell: np.packbits(right.cpu().numpy()).tobytes().hex() for cell, right in correct.items()}


def unpack_correct(packed: Mapping[str, str], images: int) -> dict[str, Tensor]:
    """What `pack_correct` was given, for so many images."""
    bits = {cell: np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8)) for cell, text in packed.items()}
    return {cell: torch.from_numpy(values[:images].astype(bool)) for cell, values in bits.items()}
