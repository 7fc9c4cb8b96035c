"""The images of a datamodule, each kind opened when it is first asked for and shared by copies of the datamodule."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..corruptions import Cell, cells_of
from ..errors import DataError
from .images import PixelDataset
from .released import ReleasedSet
from .released_images import ReleasedImages
from .sources import NAMED_SOURCES, Source, open_source, open_training_images

if TYPE_CHECKING:
    from .corruption import CorruptionDataModule


class OpenedImages:
    """Training and test images; those of a released set are read in their cells.

    Args:
        data: whose source, test images and options these are of.
    """

    def __init__(self, data: CorruptionDataModule) -> None:
        self._source, self._test, self._root = data.source, data.test, data.root
        self._image_size, self._on_error = data.image_size, data.on_error
        self._corruptions = data.corruptions
        self._corrupted = cells_of(data.corruptions, data.severities)
        self.released = data.test if isinstance(data.test, ReleasedSet) else None

    @property
    def cells(self) -> list[Cell]:
        """Those that test images are shown in: clean, if there are clean images, and the corrupted ones."""
        has_clean = self.released is None or self.released.has_clean
        return [*([Cell.clean()] if has_clean else []), *self._corrupted]

    @cached_property
    def opened(self) -> Source:
        """Both kinds; of a released set without the training images."""
        return open_source(self._source, self._test, self._root)

    @cached_property
    def training(self) -> Source:
        """Where the training images come from."""
        if self.released is None:
            return self.opened
        return open_training_images(self._source, self.released, self._root)

    def prepare(self) -> None:
        """Download what is missing."""
        if self.released is not None:
            self.released.prepare(self._corruptions)
        _ = self.training if str(self._source) in NAMED_SOURCES[1:] else self.opened

    @cached_property
    def train(self) -> PixelDataset:
        """All training images."""
        if self.training.train is None:
            raise DataError("there are no training images: pass them as source=")
        return PixelDataset(self.training.train, self._image_size, self._on_error)

    @cached_property
    def test(self) -> PixelDataset:
        """The test images."""
        if self.released is not None:
            self.released.prepare(self._corruptions)
            return ReleasedImages(self.released, self.cells, self._image_size, self._on_error)
        if self.opened.test is None:
            raise DataError("there are no test images: pass them as test=")
        return PixelDataset(self.opened.test, self._image_size, self._on_error)
