"""The layout of CIFAR-10-C: an array for each corruption."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...corruptions import Cell
from ...errors import DataError
from .layout import Layout


class ArrayLayout(Layout):
    """`fog.npy`, uint8 (severities * N, H, W, 3), all images at the first severity, then all at the next.

    `labels.npy`, whole numbers, is as long. N may be any. Arrays are mapped into memory where they are first read, anew
    in each process.
    """

    expected = "labels.npy and an array for each corruption (fog.npy ...)"

    def __init__(self, folder: Path, title: str, numbering: Sequence[str] | None = None) -> None:
        super().__init__(folder, title, numbering)
        if numbering is not None:
            raise DataError(
                f"{title} has its labels in labels.npy: classes= is for sets of class folders, leave it out"
            )
        self._arrays: dict[str, NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": {}}  # a map of a file would be sent as all its bytes

    @staticmethod
    def is_in(folder: Path, corruptions: Sequence[str]) -> bool:
        """Whether there are labels, as an array."""
        return (folder / "labels.npy").is_file()

    @staticmethod
    def hint(folder: Path, corruptions: Sequence[str]) -> str:
        """The labels, where there are arrays."""
        arrays = [name for name in corruptions if (folder / f"{name}.npy").is_file()]
        return f"{str(folder)!r} has {arrays[0]}.npy, but no labels.npy" if arrays else ""

    @staticmethod
    def entries(corruptions: Sequence[str]) -> list[str]:
        """A file for each, and the labels."""
        return ["labels.npy", *(f"{name}.npy" for name in corruptions)]

    @staticmethod
    def is_whole(entry: Path) -> bool:
        """Whether it is a file."""
        return entry.is_file()

    def missing(self, cell: Cell) -> str:
        """The corruption's file, if it isn't there; the severity is in the file."""
        name = f"{cell.corruption}.npy"
        return "" if (self.folder / name).is_file() else name

    def check(self, cells: Sequence[Cell]) -> None:
        """Look at the shape and type of each corruption's array."""
        for corruption in dict.fromkeys(cell.corruption for cell in cells if not cell.is_clean):
            self._array(corruption)

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image: the labels of all severities must be the same."""
        path = self.folder / "labels.npy"
        labels = _load(path)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{path} holds {labels.dtype} {labels.shape}: expected whole numbers, one for each image")
        blocks, rest = len(self.severities), len(labels) % len(self.severities)
        if rest or not len(labels):
            raise DataError(
                f"{path} has {len(labels)} labels, which is no multiple of its {blocks} severities: expected the same "
                "number of images at each severity"
            )
        by_severity = np.asarray(labels).reshape(blocks, -1)
        if (by_severity != by_severity[0]).any():
            raise DataError(f"{path} has other labels at one severity than at another: it is not of such a set")
        found: list[int] = by_severity[0].tolist()
        return found

    @property
    def names(self) -> None:
        """None: images are known by their place."""
        return None

    @property
    def classes(self) -> None:
        """None: there are numbers alone."""
        return None

    @property
    def image_size(self) -> int:
        """The shorter side of the first array's images."""
        for path in sorted(self.folder.glob("*.npy")):
            if path.name != "labels.npy" and (array := _load(path)).ndim == 4:
                return int(min(array.shape[1:3]))
        raise DataError(f"{self.folder} has no array of images: expected {self.expected}")

    def read(self, number: int, cell: Cell) -> NDArray[np.uint8]:
        """An image in a cell, (H, W, 3)."""
        return np.array(self._array(cell.corruption)[self._row(number, cell)])

    def path(self, number: int, cell: Cell) -> str:
        """The array, and the row in it."""
        return f"{self.folder / cell.corruption}.npy[{self._row(number, cell)}]"

    def _row(self, number: int, cell: Cell) -> int:
        if cell.severity not in self.severities:
            raise DataError(f"{self.folder} has severities {', '.join(map(str, self.severities))}, not {cell.severity}")
        return self.severities.index(cell.severity) * len(self.labels) + number

    def _array(self, corruption: str) -> NDArray[np.uint8]:
        if corruption not in self._arrays:
            path, rows = self.folder / f"{corruption}.npy", len(self.labels) * len(self.severities)
            array = _load(path)
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] != rows or array.shape[3] != 3:
                raise DataError(
                    f"{path} holds {array.dtype} {array.shape}: expected uint8 ({rows}, height, width, 3), as many "
                    "images as there are labels in labels.npy; it is of another set, or was not written to its end"
                )
            self._arrays[corruption] = array
        return self._arrays[corruption]


def _load(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"there is no {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no array, or only a part of one ({error}): get it anew") from error
    return array
