"""The order that test images arrive in, as data sets and loaders of (image, cell) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corruptions import Cell
from ..errors import DataError
from .batches import PixelBatch
from .images import PixelDataset

Stream = Literal["mixed", "sequential"]
STREAMS: tuple[str, ...] = get_args(Stream)

Item = tuple[Tensor, int, int, int | None]


class CellItems(Dataset[Item]):
    """Pairs of an image's number and a cell, as items (pixels, label, number, `Cell.code` or None).

    Args:
        images: the images of a split.
        pairs: (image number, `Cell.code`), in the order of the stream; None for a cell that is drawn later.
    """

    def __init__(self, images: PixelDataset, pairs: Sequence[tuple[int, int | None]]) -> None:
        self.images = images
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Item:
        index, code = self.pairs[position]
        pixels, label = self.images[index]
        return pixels, label, index, code


def collate(items: Sequence[Item], *, split: str, form: str) -> PixelBatch:
    """Stack items into a batch; `DataError` names the first image whose size differs."""
    pixels, labels, indices, codes = zip(*items, strict=True)
    for image, index in zip(pixels, indices, strict=True):
        if image.shape != pixels[0].shape:
            raise DataError(
                f"image {index} of the {split} images has shape {tuple(image.shape)}, image {indices[0]} has "
                f"{tuple(pixels[0].shape)}: pass image_size= to resize and crop them all to one size"
            )
    drawn_later = any(code is None for code in codes)
    return PixelBatch(torch.stack(pixels), torch.tensor(labels), indices, None if drawn_later else codes, split, form)


def make_loader(
    images: PixelDataset,
    pairs: Sequence[tuple[int, int | None]],
    *,
    split: str,
    form: str,
    batch_size: int,
    num_workers: int,
    shuffle_seed: int | None = None,
) -> DataLoader[Item]:
    """A loader of `PixelBatch` over image and cell pairs, shuffled anew every epoch where a seed is given."""
    return DataLoader(
        CellItems(images, pairs),
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed),
        collate_fn=partial(collate, split=split, form=form),
        num_workers=num_workers,
        # Only where a loader is used again: the sequential stream has dozens, and each would keep its processes.
        persistent_workers=num_workers > 0 and shuffle_seed is not None,
        pin_memory=torch.cuda.is_available(),
    )


def stream_pairs(num_images: int, cells: Sequence[Cell], stream: Stream, seed: int) -> list[list[tuple[int, int]]]:
    """The (image number, `Cell.code`) pairs of every loader of a stream.

    Args:
        num_images: how many test images there are; each one is shown in every cell.
        cells: the cells, clean among them.
        stream: `"sequential"`, a loader per cell, its images shuffled (folders come class by class, and batches of a
            few classes are another test, the correlated stream); or `"mixed"`, all pairs shuffled into one loader.
        seed: of the shuffle.
    """
    generator = torch.Generator().manual_seed(seed)
    if stream == "sequential":
        order = torch.randperm(num_images, generator=generator).tolist()
        return [[(index, cell.code) for index in order] for cell in cells]
    pairs = [(index, cell.code) for cell in cells for index in range(num_images)]
    return [[pairs[position] for position in torch.randperm(len(pairs), generator=generator).tolist()]]
