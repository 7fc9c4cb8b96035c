"""Counting the images that could not be read and were left out."""

from __future__ import annotations

import warnings
from typing import NamedTuple

from ..corruptions import Cell
from ..errors import DataError, UnreadableImageError, first_few
from .batches import OddImage, PixelBatch
from .images import PixelDataset
from .released_images import is_of_released_set


class SkippedImage(NamedTuple):
    """An image that was left out of the cell that it was to be shown in."""

    cell: str | None
    """The cell's name; None where cells are drawn anew every epoch."""
    number: int
    """Its number in its split."""
    path: str | None
    """Its file, if it is known."""


class SkippedImages:
    """Which images were left out, each once in each cell; warns of each file once."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, SkippedImage], None] = {}
        self._now: dict[SkippedImage, None] = {}
        self._warned_of: set[tuple[str, str]] = set()

    def begin(self) -> None:
        """Begin a run, which `now` tells of."""
        self._now = {}

    def note(self, batch: PixelBatch, images: PixelDataset) -> None:
        """Take note of those of a batch; raise what is wrong with it as `check_batch` does."""
        check_batch(batch, images)
        split = batch.split
        for one in batch.skipped:
            cell = None if one.code is None else Cell.from_code(one.code).name
            image = SkippedImage(cell, one.number, one.path)
            self._all.setdefault((split, image))
            self._now.setdefault(image)
            file = one.path or f"image {one.number}"
            if (split, file) not in self._warned_of:
                self._warned_of.add((split, file))
                warnings.warn(f"{file} of the {split} images can't be read and is left out: {one.why}", stacklevel=2)

    def all(self) -> list[SkippedImage]:
        """Those of all runs and splits, in the order that they came in."""
        return [image for _, image in self._all]

    def now(self) -> list[SkippedImage]:
        """Those of the present run, or of the last one."""
        return list(self._now)


def check_batch(batch: PixelBatch, images: PixelDataset) -> None:
    """Raise what is wrong with a batch, here and not in a loader process.

    Args:
        batch: as a loader gave it.
        images: of its split.

    Raises:
        UnreadableImageError: for the first image that could not be read, where such images are not to be left out.
        DataError: if none of the batch could be read, or one has another size.
    """
    names = [one.path or f"image {one.number}" for one in batch.skipped]
    if batch.skipped and images.on_error == "raise":
        one = batch.skipped[0]
        images.read(one.number, one.code)  # raises anew what the loader met
        raise UnreadableImageError(
            f"{names[0]} of the {batch.split} images could not be read ({one.why}), and a moment later could be: look "
            "at the disk or network that it is on"
        )
    if batch.odd is not None:
        raise _of_odd_size(batch.odd, batch.split, images)
    if not batch.indices:
        raise DataError(
            f"none of the {len(names)} images of a batch of the {batch.split} images can be read "
            f"({first_few(names, 3)}; {batch.skipped[0].why}): raise the batch size, so that others are left in it, or "
            "replace these"
        )


def _of_odd_size(odd: OddImage, split: str, images: PixelDataset) -> DataError:
    path = images.path_of(odd.number, odd.code)
    what = f"image {odd.number} of the {split} images" + ("" if path is None else f", {path},")
    advice = "pass image_size= to resize and crop them all to one size"
    if is_of_released_set(images):
        advice = "the images of a released set are of one size: replace it"
        what += "" if odd.code is None else f" in {Cell.from_code(odd.code).name}"
    return DataError(f"{what} has shape {odd.shape}, image {odd.first} has {odd.expected}: {advice}")
