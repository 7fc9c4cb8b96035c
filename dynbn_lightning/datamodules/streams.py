"""The order that test images arrive in, as data sets and loaders of (image, cell) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corruptions import Cell
from ..errors import DataError
from .batches import PixelBatch
from .images import PixelDataset

Stream = Literal["mixed", "sequential", "continual", "correlated"]
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


class CellBatches(Dataset[list[Item]]):
    """Batches of such pairs, as lists of items.

    Args:
        images: the images of a split.
        batches: the pairs of each batch.
    """

    def __init__(self, images: PixelDataset, batches: Sequence[Sequence[tuple[int, int | None]]]) -> None:
        self.images = images
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> list[Item]:
        items = CellItems(self.images, self.batches[position])
        return [items[place] for place in range(len(items))]


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
    parts: Sequence[Sequence[tuple[int, int | None]]],
    *,
    split: str,
    form: str,
    batch_size: int,
    num_workers: int,
    shuffle_seed: int | None = None,
    first_batch: int = 0,
) -> DataLoader[Any]:
    """A loader of `PixelBatch` over image and cell pairs.

    Args:
        images: the images of a split.
        parts: (image number, `Cell.code`) pairs in order; no batch has images of two parts.
        split: the split's name.
        form: what a batch becomes.
        batch_size: images per batch; the last one of each part may be smaller.
        num_workers: loader processes.
        shuffle_seed: shuffle the pairs, of one part, anew every epoch.
        first_batch: how many batches to leave out at the beginning.
    """
    options: dict[str, Any] = {
        "collate_fn": partial(collate, split=split, form=form),
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if len(parts) > 1:
        batches = [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]
        return DataLoader(CellBatches(images, batches[first_batch:]), batch_size=None, **options)
    return DataLoader(
        CellItems(images, parts[0][first_batch * batch_size :]),
        batch_size=batch_size,
        shuffle=shuffle_seed is not None,
        generator=None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed),
        # Only where a loader is used again: the sequential stream has dozens, and each would keep its processes.
        persistent_workers=num_workers > 0 and shuffle_seed is not None,
        **options,
    )


def stream_pairs(
    labels: Sequence[int], cells: Sequence[Cell], stream: Stream, seed: int, concentration: float
) -> list[list[list[tuple[int, int]]]]:
    """The (image number, `Cell.code`) pairs of every part of every loader of a stream.

    Args:
        labels: the class of each test image; every image is shown in every cell.
        cells: the cells, clean among them.
        stream: `"sequential"`, a loader per cell, its images shuffled (folders come class by class); `"mixed"`, all
            pairs shuffled into one loader; `"continual"`, the batches of the sequential stream in one loader, which
            tells nobody where a cell ends; or `"correlated"`, a loader per cell, its labels in runs, see
            `correlated_order`.
        seed: of the shuffles.
        concentration: of the correlated stream.
    """
    generator = torch.Generator().manual_seed(seed)
    if stream == "mixed":
        pairs = [(index, cell.code) for cell in cells for index in range(len(labels))]
        return [[[pairs[position] for position in torch.randperm(len(pairs), generator=generator).tolist()]]]
    if stream == "correlated":
        order = correlated_order(labels, concentration, seed)
    else:
        order = torch.randperm(len(labels), generator=generator).tolist()
    parts = [[(index, cell.code) for index in order] for cell in cells]
    return [parts] if stream == "continual" else [[part] for part in parts]


def correlated_order(labels: Sequence[int], concentration: float, seed: int) -> list[int]:
    """An order of images in which labels come in runs.

    As Gong et al. 2022, "NOTE: Robust Continual Test-time Adaptation Against Temporal Correlation", section 4: there
    are as many slots as classes; the images of each class are dealt to slots in shares drawn from a Dirichlet
    distribution, and within a slot they come class by class, in a random order of classes. Their code besides closes
    slots that have their share of all images, and draws again while a slot is nearly empty; here slots are as large as
    they are drawn.

    Args:
        labels: the class of each image.
        concentration: of the Dirichlet distribution; small ones put a class into few slots, large ones deal evenly.
        seed: of all draws.
    """
    random, known = np.random.default_rng(seed), np.asarray(labels)
    classes = np.unique(known)
    slots: list[list[np.ndarray]] = [[] for _ in classes]
    for label in classes:
        images = random.permutation(np.flatnonzero(known == label))
        ends = np.rint(np.cumsum(random.dirichlet([concentration] * len(slots))) * len(images)).astype(int)
        for slot, run in zip(slots, np.split(images, ends[:-1]), strict=True):
            slot.append(run)
    order: list[int] = []
    for slot in slots:
        for place in random.permutation(len(slot)):
            order += slot[place].tolist()
    return order
