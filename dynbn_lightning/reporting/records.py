"""A record of each image: what a method made of it in each cell, from which every number of a report comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.errors import DataError
from dynbn_lightning.files import whole_file
from dynbn_lightning.metrics import NUM_CELLS, CellScores, Outcomes, count_outcomes, scores_of

NOT_DETECTED = -1
"""Stands for a row where nothing was detected, or for a true row that is not among the rows."""

_KEY, _VERSION = "dynbn_records", 1
_DTYPES = {
    "indices": torch.int64,
    "cells": torch.uint8,
    "labels": torch.int32,
    "predictions": torch.int32,
    "correct": torch.bool,
    "top5": torch.bool,
    "confidences": torch.float32,
    "nll": torch.float32,
    "detected": torch.int16,
    "detection_confidences": torch.float32,
}


class _InCell(NamedTuple):
    indices: Tensor
    correct: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageRecords:
    """What one method made of each image of a stream: columns of one length N, and the names of the detector's rows.

    Attributes:
        indices: the image's number in its split, int64.
        cells: `Cell.code` of the cell it was shown in, uint8.
        labels: its class, int32.
        predictions: the class it was taken for, int32.
        correct: whether that is right, bool.
        top5: whether the label is among the five most probable classes, bool.
        confidences: the probability of the prediction, float32.
        nll: the negative log likelihood of the label in nats, float32.
        detected: the most probable row, a number into `rows`, int16; -1 where nothing was detected.
        detection_confidences: the weight of that row, float32; 0 where nothing was detected.
        rows: the names of the rows; empty where nothing was detected.
    """

    indices: Tensor
    cells: Tensor
    labels: Tensor
    predictions: Tensor
    correct: Tensor
    top5: Tensor
    confidences: Tensor
    nll: Tensor
    detected: Tensor
    detection_confidences: Tensor
    rows: tuple[str, ...] = ()

    @classmethod
    def of_batch(
        cls,
        outcomes: Outcomes,
        *,
        indices: Sequence[int],
        cells: Tensor,
        labels: Tensor,
        rows: tuple[str, ...] = (),
        detected: Tensor | None = None,
        detection_confidences: Tensor | None = None,
    ) -> ImageRecords:
        """The records of a batch, on its device but for the numbers; every argument but `rows` is of its N images."""
        if detected is None or detection_confidences is None:
            detected = torch.full_like(labels, NOT_DETECTED)
            detection_confidences = torch.zeros(len(labels), device=labels.device)
        columns: dict[str, Any] = {
            **outcomes._asdict(),
            "indices": torch.tensor(indices),  # on the host: to send them would wait for the device
            "cells": cells,
            "labels": labels,
            "detected": detected,
            "detection_confidences": detection_confidences,
        }
        typed: dict[str, Any] = {name: columns[name].detach().to(dtype) for name, dtype in _DTYPES.items()}
        return cls(**typed, rows=rows)

    @classmethod
    def of_nothing(cls) -> ImageRecords:
        """No records."""
        columns: dict[str, Any] = {name: torch.zeros(0, dtype=dtype) for name, dtype in _DTYPES.items()}
        return cls(**columns)

    @classmethod
    def together(cls, parts: Sequence[ImageRecords]) -> ImageRecords:
        """The records of several parts, one after another.

        Raises:
            DataError: if images were detected as rows of different detectors.
        """
        rows = {part.rows for part in parts if part.rows}
        if len(rows) > 1:
            raise DataError("these records are of different detectors: their rows differ")
        if not parts:
            return cls.of_nothing()
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _DTYPES}
        return cls(**columns, rows=next(iter(rows), ()))

    def __len__(self) -> int:
        return len(self.indices)

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageRecords:
        """These records with every column changed."""
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in _DTYPES}
        return replace(self, **changed)

    def unique(self) -> ImageRecords:
        """In the order of cells and images, each image once in each cell: the first record that there is of it.

        Samplers repeat images so that every process gets as many as the others; here they are counted once.
        """
        keys = self.cells.long() * (int(self.indices.max()) + 1 if len(self) else 1) + self.indices
        keys, order = keys.sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        return self.map(lambda column: column[order[first]])

    def scores(self) -> dict[str, CellScores]:
        """The scores of each cell, by its name; clean first, then in the literature's order."""
        outcomes = Outcomes(*(getattr(self, name) for name in Outcomes._fields))
        return scores_of(count_outcomes(outcomes, self.cells.long()))

    def correct_by_cell(self, cells: Sequence[str]) -> Tensor | None:
        """Whether each image was right in each of these cells, (images, cells) bool, images in order of their numbers.

        None unless the same images were shown in each of them, each once: then nothing can be paired.
        """
        shown = [self._by_cell[Cell.parse(name).code] for name in cells]
        if not shown or any(not torch.equal(one.indices, shown[0].indices) for one in shown):
            return None
        if (shown[0].indices.diff() == 0).any():
            return None
        return torch.stack([one.correct for one in shown], dim=1)

    def images_of(self, cell: str) -> Tensor:
        """The number and the class of each image shown in a cell, (images, 2) int64, in order of their numbers."""
        shown = self._by_cell[Cell.parse(cell).code]
        return torch.stack([shown.indices, shown.labels.long()], dim=1)

    @cached_property
    def _by_cell(self) -> list[_InCell]:
        """What was shown in each cell, by its code, in the order of the images' numbers."""
        order = self.indices.argsort(stable=True)
        order = order[self.cells[order].long().argsort(stable=True)]
        sizes = torch.bincount(self.cells.long(), minlength=NUM_CELLS).tolist()
        columns = (self.indices, self.correct, self.labels)
        return [
            _InCell(*parts) for parts in zip(*(torch.split(column[order], sizes) for column in columns), strict=True)
        ]

    def true_rows(self) -> Tensor:
        """The row of each image's cell, a number into `rows`, (N,) int64; -1 where there is none for it."""
        names = [Cell.from_code(code) for code in range(NUM_CELLS)]
        row_of = [
            next((self.rows.index(name) for name in (cell.name, cell.corruption) if name in self.rows), NOT_DETECTED)
            for cell in names
        ]
        return torch.tensor(row_of)[self.cells.long()]

    def detection_accuracy(self) -> float | None:
        """The share of images whose most probable row is the true one, of those that have one; None without any."""
        true = self.true_rows()
        known = (true != NOT_DETECTED) & (self.detected != NOT_DETECTED)
        return float((self.detected == true)[known].double().mean()) if known.any() else None

    def confusion(self) -> Tensor:
        """How many images of each true row (first) were detected as each row (second), (rows, rows) int64."""
        true, count = self.true_rows(), len(self.rows)
        known = (true != NOT_DETECTED) & (self.detected != NOT_DETECTED)
        pairs = torch.bincount(true[known] * count + self.detected[known].long(), minlength=count**2)
        return pairs.reshape(count, count)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write a safetensors file of the columns, as a whole or not at all; `about` is kept with them, as JSON."""
        described = json.dumps({"format_version": _VERSION, "rows": list(self.rows), "about": about}, allow_nan=False)
        columns = {name: getattr(self, name).cpu().contiguous() for name in _DTYPES}
        with whole_file(path) as temporary:
            temporary.write_bytes(save(columns, metadata={_KEY: described}))

    @classmethod
    def load(cls, path: str | Path) -> tuple[ImageRecords, dict[str, Any]]:
        """Read what `save` wrote: the records, and what was kept with them.

        Raises:
            DataError: if the file is missing, damaged or not of records.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"there are no records of images at {path}")
        try:
            with safe_open(str(path), framework="pt") as file:
                described = json.loads((file.metadata() or {})[_KEY])
                if described["format_version"] != _VERSION:
                    raise ValueError(f"format {described['format_version']!r}, this version reads {_VERSION}")
                columns = {name: file.get_tensor(name) for name in _DTYPES}
            if any(columns[name].dtype != dtype for name, dtype in _DTYPES.items()):
                raise ValueError("columns of unexpected types")
            if len({column.shape for column in columns.values()}) != 1:
                raise ValueError("columns of unequal lengths")
            return cls(**columns, rows=tuple(described["rows"])), described["about"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} holds no records of images, or is damaged: {error}") from error
