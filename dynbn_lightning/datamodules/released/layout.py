"""`Layout`: how the images of a corrupted set lie in its folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...corruptions import SEVERITIES, Cell
from ...errors import DataError
from .manifest import WrittenSet

FULL = 10_000
"""How many images a set of CIFAR's layout has in each cell where it is no part of one."""


class Layout(ABC):
    """The images of a set in a folder; nothing is opened before it is asked for.

    Args:
        folder: of the set.
        title: what the set is called in messages.
        numbering: the names of the classes in the order of the labels, where that is not the usual one.
    """

    expected: ClassVar[str]
    """What such a folder holds, in words."""

    def __init__(self, folder: Path, title: str, numbering: Sequence[str] | None = None) -> None:
        self.folder, self.title, self.numbering = folder, title, numbering
        self.written = WrittenSet.read(folder)

    @property
    def severities(self) -> tuple[int, ...]:
        """Those that the set has, in the order of its files."""
        return SEVERITIES if self.written is None else self.written.severities

    @staticmethod
    @abstractmethod
    def is_in(folder: Path, corruptions: Sequence[str]) -> bool:
        """Whether a set with some of these corruptions lies in a folder so."""

    @staticmethod
    def hint(folder: Path, corruptions: Sequence[str]) -> str:
        """What a folder lacks that is nearly such a set, in words; empty if it is none."""
        return ""

    @staticmethod
    @abstractmethod
    def entries(corruptions: Sequence[str]) -> list[str]:
        """The files or folders that corruptions need."""

    @staticmethod
    @abstractmethod
    def is_whole(entry: Path) -> bool:
        """Whether one of them, just unpacked, has what it should."""

    @abstractmethod
    def missing(self, cell: Cell) -> str:
        """What a cell lacks, by name; empty if it is there."""

    def lacking(self, corruptions: Sequence[str]) -> list[str]:
        """Those of some corruptions of which something is missing.

        Raises:
            DataError: if a part of one is there: it would have to be put together from two sources.
        """
        found = []
        for name in corruptions:
            missing = [self.missing(Cell(name, severity)) for severity in self.severities]
            if any(missing):
                found.append(name)
            if any(missing) and not all(missing):
                raise DataError(
                    f"{self.folder} has only a part of {name}, it lacks {', '.join(filter(None, missing))}: put the "
                    "rest there, or remove that part to download it whole"
                )
        return found

    def absent(self, corruptions: Sequence[str]) -> list[str]:
        """Those of some corruptions of which nothing is there."""
        return [name for name in corruptions if all(self.missing(Cell(name, severity)) for severity in self.severities)]

    def severities_of(self, corruptions: Sequence[str]) -> tuple[int, ...]:
        """The severities that all these corruptions have, those left out of which nothing is there.

        All that a set may have, where they have none in common.
        """
        absent = self.absent(corruptions)
        cells = [[Cell(name, one) for name in corruptions if name not in absent] for one in self.severities]
        common = [its[0].severity for its in cells if its and not any(map(self.missing, its))]
        return tuple(common) or self.severities

    def check_labels(self, count: int) -> None:
        """Raise `DataError` unless all labels are of so many classes, and of all of them if the set is of full size."""
        if len(self.labels) == FULL and 0 <= max(self.labels) < count - 1:
            raise DataError(
                f"{self.folder} has labels of {max(self.labels) + 1} classes, and {self.title} has {count}: it is "
                "another set, for which there is another reader"
            )
        if not all(0 <= label < count for label in self.labels):
            raise DataError(
                f"{self.folder} has labels from {min(self.labels)} to {max(self.labels)}: {self.title} has 0 to "
                f"{count - 1}, so these are other images"
            )

    @abstractmethod
    def check(self, cells: Sequence[Cell]) -> None:
        """Raise `DataError`, which names what differs, unless all these cells hold the same images."""

    @property
    @abstractmethod
    def labels(self) -> list[int]:
        """The class of each image."""

    @property
    @abstractmethod
    def names(self) -> list[str] | None:
        """`CLASS/NAME` of each image; None if images have no names."""

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """The names of the classes; None if they have none."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """The shorter side of its first image, in pixels."""

    @abstractmethod
    def read(self, number: int, cell: Cell) -> Any:
        """An image in a cell, as `to_pixels` takes it."""

    @abstractmethod
    def path(self, number: int, cell: Cell) -> str:
        """Its file, and where in the file it is."""
