"""What a `CorruptionDataModule` makes of the pixels that its loaders yield, on the device: pure but for the draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..corruptions import Cell
from .batches import BatchInfo, DrawnBatch, PixelBatch, corrupt_pixels, shift_and_flip
from .classes import number_of_classes
from .drawn_cells import drawn_cell
from .images import PixelDataset
from .released import ReleasedSet

if TYPE_CHECKING:
    from .corruption import CorruptionDataModule


def images_of(data: CorruptionDataModule, batch: PixelBatch) -> PixelDataset:
    """The images that a batch is of."""
    return data.test_images if batch.split == "test" else data.train_images


def in_cells(data: CorruptionDataModule, batch: PixelBatch, epoch: int) -> PixelBatch:
    """The batch with each image's cell, drawn anew where a fit leaves it open; a classifier's are moved about, too."""
    if batch.cells is not None:
        return batch
    if batch.form == "classifier":
        if batch.split == "train":
            batch = batch._replace(pixels=shift_and_flip(batch.pixels, batch.indices, seed=data.seed, epoch=epoch))
        return batch._replace(cells=(Cell.clean().code,) * len(batch.indices))
    assert batch.form == "detector", f"a batch for {batch.form} comes in its cells"
    options: dict[str, Any] = {"seed": data.seed, "epoch": _epoch_of_draws(batch, epoch)}
    cells = [drawn_cell(data.corruptions, data.severities, index=index, **options) for index in batch.indices]
    return batch._replace(cells=tuple(cell.code for cell in cells))


def info_of(data: CorruptionDataModule, batch: PixelBatch) -> BatchInfo:
    """What is known of each image of a batch in cells."""
    codes = batch.cells or ()
    names = tuple(Cell.from_code(code).name for code in codes)
    labels = batch.classes if batch.form == "classifier" else ()  # a detector's are rows
    classes = number_of_classes(images_of(data, batch).dataset)
    return BatchInfo(batch.indices, torch.tensor(codes, device=batch.pixels.device), names, labels, classes)


def made_batch(data: CorruptionDataModule, batch: PixelBatch, epoch: int) -> Any:
    """What a step gets: (pixels, rows) for a detector, (images, labels) for a classifier, images for predicting."""
    if batch.form == "detector":
        pixels = _corrupted(data, batch, _epoch_of_draws(batch, epoch))
        return pixels.float() / 255, _rows_of(data, batch).to(pixels.device)
    images = data.normalization.apply(_corrupted(data, batch, epoch=-1).float() / 255)
    return images if batch.form == "predict" else (images, batch.labels)


def drawn_batch(data: CorruptionDataModule, batch: PixelBatch, number: int) -> DrawnBatch:
    """What calibrating and refining get: the `number`-th batch of images in cells drawn at random."""
    pairs = (_corrupted(data, batch, epoch=number), batch.pixels)
    images, clean = (data.normalization.apply(pixels.float() / 255) for pixels in pairs)
    return DrawnBatch(images, clean, batch.labels, _rows_of(data, batch).to(batch.pixels.device), batch.indices)


def _epoch_of_draws(batch: PixelBatch, epoch: int) -> int:
    return epoch if batch.split == "train" else -1


def _rows_of(data: CorruptionDataModule, batch: PixelBatch) -> Tensor:
    cells = [Cell.from_code(code) for code in batch.cells or ()]
    names = [cell.name if data.row_per == "cell" else cell.corruption for cell in cells]
    return torch.tensor([data.rows.index(name) for name in names])


def _corrupted(data: CorruptionDataModule, batch: PixelBatch, epoch: int) -> Tensor:
    assert batch.cells is not None
    if batch.split == "test" and isinstance(data.test, ReleasedSet):
        return batch.pixels  # read in their cells
    return corrupt_pixels(
        batch.pixels,
        batch.cells,
        batch.indices,
        seed=data.seed,
        # Held-out images are training images by number, so their draws must not follow the split's name.
        split="test" if batch.split == "test" else "train",
        preset=data.preset,
        epoch=epoch,
        frost_textures=data.frost_textures,
    )
