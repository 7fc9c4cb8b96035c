"""The images of a released set as the streams read them: corrupted already, in the cell that they are shown in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from ..corruptions import Cell
from .image_files import OnError
from .images import SPREAD, PixelDataset
from .released import ReleasedSet


class ReleasedImages(PixelDataset):
    """Uint8 pixels (C, H, W) of a released set, read in each cell; `its[i]` is the image in the first cell.

    Args:
        released: the set.
        cells: those that are shown; each must hold the same images.
        image_size: if given, images of another size are resized and cropped to it.
        on_error: as for a `PixelDataset`.

    Raises:
        DataError: if cells hold different images.
    """

    def __init__(
        self, released: ReleasedSet, cells: Sequence[Cell], image_size: int | None = None, on_error: OnError = "raise"
    ) -> None:
        released.layout.check(cells)
        super().__init__(released, image_size, on_error)
        self.released, self.shown = released, list(cells)
        if any(cell.is_clean for cell in cells):
            released.open_clean()  # here, so that loader processes need not, each anew

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index, self.shown[0].code)

    def read(self, index: int, code: int | None) -> tuple[Tensor, int]:
        """An image in the cell of this `Cell.code`, and its class."""
        cell = self.shown[0] if code is None else Cell.from_code(code)
        return self.resized(self.released.image(index, cell)), self.labels[index]

    def path_of(self, index: int, code: int | None) -> str | None:
        """The file of an image in a cell."""
        return self.released.file_of(index, self.shown[0] if code is None else Cell.from_code(code))

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image."""
        return self.released.labels

    def _looked_at(self) -> list[tuple[int, int | None]]:
        """Images spread over all, in each cell in turn."""
        count = max(SPREAD, len(self.shown))
        return [(place * len(self) // count, self.shown[place % len(self.shown)].code) for place in range(count)]


def is_of_released_set(images: Any) -> bool:
    """Whether images come corrupted: then nothing is to be done to them but normalisation."""
    return isinstance(images, ReleasedImages)
