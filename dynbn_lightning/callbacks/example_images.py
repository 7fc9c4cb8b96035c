"""A few of the images that were tested, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..corruptions import Cell
from ..datamodules.batches import BatchInfo
from ..models.normalization import Normalization
from ..reporting.examples import read_examples, write_example

_SEVERITY = 3
"""Examples are of the severity nearest to this: seen by everyone, and not all that is to be seen."""


class ExampleImages:
    """Writes the first image that comes of each corruption at one severity, and a clean one.

    Args:
        folder: of the results; what is in it already is kept.
        data: the datamodule that the images come from.
    """

    def __init__(self, folder: Path, data: Any) -> None:
        self._folder, self._normalization = folder, data.normalization
        nearest: dict[str, Cell] = {}
        for cell in data.cells:
            best = nearest.get(cell.corruption)
            if best is None or abs(cell.severity - _SEVERITY) < abs(best.severity - _SEVERITY):
                nearest[cell.corruption] = cell
        there = {example.cell for example in read_examples(folder)}
        self._wanted = {cell.name for cell in nearest.values()} - {getattr(cell, "name", cell) for cell in there}

    def look(self, images: Tensor, info: BatchInfo) -> None:
        """Write those of a batch that are wanted, (N, C, H, W) as the model takes them."""
        if not self._wanted.intersection(info.names):
            return
        assert isinstance(self._normalization, Normalization)
        for position, name in enumerate(info.names):
            if name in self._wanted:
                self._wanted.remove(name)
                pixels = (self._normalization.stored_pixels(images[position]) * 255).round().byte().cpu()
                write_example(self._folder, Cell.parse(name), info.indices[position], pixels)
