"""The layout of ImageNet-C: a file for each image in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ...corruptions import ALL_CORRUPTIONS, SEVERITIES, Cell, cells_of
from ...errors import DataError, first_few
from ...progress import shown_if_slow
from .layout import Layout
from .listing import check_same_images, class_folders, list_images

GROUPS = ("", "noise", "blur", "weather", "digital", "extra")
"""Folders that the archives are often unpacked to, each with the folders of some corruptions."""


class FolderLayout(Layout):
    """`fog/3/CLASS/NAME.JPEG`, with any suffix of an image file; also with `fog` in `weather/`, and so on.

    The folder of each cell is listed once, when it is first asked for; no file is looked at. Images are sorted by
    `CLASS/NAME`, classes numbered in that order, as torchvision's `ImageFolder` does.
    """

    expected = "folders CORRUPTION/SEVERITY/CLASS with image files (fog/3/...)"

    def __init__(self, folder: Path, title: str, numbering: Sequence[str] | None = None) -> None:
        super().__init__(folder, title, numbering)
        self._suffixes: dict[Cell, str | list[str]] = {}
        self._places: dict[str, Path] = {}
        self._first: Cell | None = None

    @staticmethod
    def is_in(folder: Path, corruptions: Sequence[str]) -> bool:
        """Whether there is a folder of one of the corruptions."""
        return any((folder / group / name).is_dir() for group in GROUPS for name in corruptions)

    @staticmethod
    def entries(corruptions: Sequence[str]) -> list[str]:
        """A folder for each."""
        return list(corruptions)

    @staticmethod
    def is_whole(entry: Path) -> bool:
        """Whether all five severities are there, with classes."""
        return all((folder := entry / str(number)).is_dir() and class_folders(folder) for number in SEVERITIES)

    def missing(self, cell: Cell) -> str:
        """The cell's folder, if it isn't there."""
        return "" if self._folder_of(cell) is not None else f"{cell.name}/"

    def check(self, cells: Sequence[Cell]) -> None:
        """List each cell's folder and compare it with the first one's."""
        corrupted = [cell for cell in cells if not cell.is_clean]
        if self._first is None and corrupted:
            self._first = corrupted[0]
        for cell in shown_if_slow(corrupted, f"listing {self.title}"):
            self._list(cell)

    @property
    def names(self) -> list[str]:
        """`CLASS/NAME` of each image, in order."""
        return self._listed[0]

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        there = self._listed[1]
        if self.numbering is None:
            return self.usual_classes(there)
        if lacking := [name for name in there if name not in set(self.numbering)]:
            raise DataError(
                f"classes= lacks {first_few(lacking)}: {self.title} in {str(self.folder)!r} has such images"
            )
        return list(self.numbering)

    def usual_classes(self, there: list[str]) -> list[str]:
        """What classes to number the class folders that are there among: here themselves."""
        return there

    @cached_property
    def labels(self) -> list[int]:
        """The place of each image's class among the classes."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[name.partition("/")[0]] for name in self.names]

    @property
    def image_size(self) -> int:
        """The shorter side of the first image."""
        path = self.path(0, self._reference)
        try:
            with Image.open(path) as image:
                return int(min(image.size))
        except Exception as error:  # PIL raises many kinds
            raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error

    def read(self, number: int, cell: Cell) -> Any:
        """An image in a cell, as PIL opens it."""
        with Image.open(self.path(number, cell)) as image:
            return image.convert("RGB")

    def path(self, number: int, cell: Cell) -> str:
        """The file."""
        suffixes = self._list(cell)
        suffix = suffixes if isinstance(suffixes, str) else suffixes[number]
        return str(self._existing(cell) / (self.names[number] + suffix))

    @property
    def _reference(self) -> Cell:
        """The cell whose images the others must have: the first that was asked for, or else that there is."""
        if self._first is None:
            cells = cells_of(ALL_CORRUPTIONS, self.severities)
            self._first = next((cell for cell in cells if self._folder_of(cell) is not None), None)
        if self._first is None:
            raise DataError(f"{self.folder} has no images: expected {self.expected}")
        return self._first

    @cached_property
    def _listed(self) -> tuple[list[str], list[str], list[str]]:
        """Of the reference: `CLASS/NAME` of its images, the classes, and the suffixes."""
        folder = self._existing(self._reference)
        found = list_images(folder)
        if not found:
            raise DataError(f"{folder} has no class folders with images: expected {self.expected}")
        names = list(found)
        return names, list(dict.fromkeys(name.partition("/")[0] for name in names)), list(found.values())

    def _list(self, cell: Cell) -> str | list[str]:
        """The suffix of a cell's files, or of each of them where they differ."""
        if cell not in self._suffixes:
            if cell == self._reference:
                suffixes = self._listed[2]
            else:
                folder = self._existing(cell)
                found = list_images(folder)
                check_same_images(list(found), self.names, folder, str(self._existing(self._reference)))
                suffixes = list(found.values())
            one = suffixes[0]
            self._suffixes[cell] = one if suffixes.count(one) == len(suffixes) else suffixes
        return self._suffixes[cell]

    def _existing(self, cell: Cell) -> Path:
        folder = self._folder_of(cell)
        if folder is None:
            raise DataError(f"{self.title} in {str(self.folder)!r} lacks {cell.name}/")
        return folder

    def _folder_of(self, cell: Cell) -> Path | None:
        if cell.name not in self._places:
            places = (self.folder / group / cell.corruption / str(cell.severity) for group in GROUPS)
            place = next((place for place in places if place.is_dir()), None)
            if place is None:
                return None
            self._places[cell.name] = place
        return self._places[cell.name]
