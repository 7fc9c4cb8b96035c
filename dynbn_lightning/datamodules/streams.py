"""The order that test images arrive in, as data sets and loaders of (image, cell) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corruptions import Cell
from ..errors import UnreadableImageError
from .batch_shares import ALONE, BatchShare, Share
from .batches import OddImage, PixelBatch, Skipped
from .images import PixelDataset

Stream = Literal["mixed", "sequential", "continual", "correlated"]
STREAMS: tuple[str, ...] = get_args(Stream)

Item = tuple[Tensor, int, int, int | None] | Skipped


Pairs = NDArray[np.int32]
"""Image numbers and `Cell.code`s, (N, 2); `LATER` for a cell that is drawn later. An array and not a list: millions of
Python objects would be copied into each loader process as soon as it counts its references to them."""
LATER = -1


def pairs_of(numbers: ArrayLike, codes: ArrayLike = LATER) -> Pairs:
    """Pairs of image numbers with a `Cell.code` each, or with one for all."""
    return np.stack(np.broadcast_arrays(np.asarray(numbers), codes), axis=1).astype(np.int32)


class CellItems(Dataset[Item]):
    """Pairs of an image's number and a cell, as items (pixels, label, number, `Cell.code` or None), or `Skipped`.

    Args:
        images: the images of a split.
        pairs: in the order of the stream.
    """

    def __init__(self, images: PixelDataset, pairs: Pairs) -> None:
        self.images = images
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Item:
        index, its_code = self.pairs[position].tolist()
        code = None if its_code == LATER else its_code
        try:
            pixels, label = self.images.read(index, code)
        except UnreadableImageError as error:  # whoever gets the batch raises it anew, if it is to be raised
            return Skipped(index, code, self.images.path_of(index, code), str(error.__cause__ or error))
        return pixels, label, index, code


class CellBatches(Dataset[list[Item]]):
    """Batches of such pairs, as lists of items.

    Args:
        images: the images of a split.
        batches: the pairs of each batch.
    """

    def __init__(self, images: PixelDataset, batches: Sequence[Pairs]) -> None:
        self.images = images
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> list[Item]:
        items = CellItems(self.images, self.batches[position])
        return [items[place] for place in range(len(items))]


def collate(items: Sequence[Item], *, split: str, form: str) -> PixelBatch:
    """Stack items into a batch, those that could not be read beside them.

    A batch that can't be made has no images, and says why: who gets it raises the error, since one that is raised in a
    loader process comes with its whole traceback for a message.
    """
    skipped = tuple(item for item in items if isinstance(item, Skipped))
    readable = [item for item in items if not isinstance(item, Skipped)]
    nothing = PixelBatch(torch.empty(0, dtype=torch.uint8), torch.empty(0).long(), (), (), split, form, skipped)
    if not readable:
        return nothing
    pixels, labels, indices, codes = zip(*readable, strict=True)
    for image, index, code in zip(pixels, indices, codes, strict=True):
        if image.shape != pixels[0].shape:
            odd = OddImage(index, code, tuple(image.shape), indices[0], tuple(pixels[0].shape))
            return nothing._replace(odd=odd)
    drawn_later = any(code is None for code in codes)
    cells = None if drawn_later else codes
    return PixelBatch(torch.stack(pixels), torch.tensor(labels), indices, cells, split, form, skipped, labels)


def make_loader(
    images: PixelDataset,
    parts: Sequence[Pairs],
    *,
    split: str,
    form: str,
    batch_size: int,
    num_workers: int,
    shuffle_seed: int | None = None,
    first_batch: int = 0,
    share: Share = ALONE,
) -> DataLoader[Any]:
    """A loader of `PixelBatch` over image and cell pairs.

    Args:
        images: the images of a split.
        parts: pairs in order; no batch has images of two parts.
        split: the split's name.
        form: what a batch becomes.
        batch_size: images per batch; the last one of each part may be smaller.
        num_workers: loader processes.
        shuffle_seed: shuffle the pairs, of one part, anew every epoch.
        first_batch: how many batches to leave out at the beginning.
        share: of one of several processes, see `BatchShare`.
    """
    options: dict[str, Any] = {
        "collate_fn": partial(collate, split=split, form=form),
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if len(parts) > 1:
        batches = [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]
        dealt = CellBatches(images, batches[first_batch:])
        return DataLoader(dealt, batch_size=None, sampler=_sampler(dealt, share, 1), **options)
    items = CellItems(images, parts[0][first_batch * batch_size :])
    return DataLoader(
        items,
        batch_size=batch_size,
        sampler=_sampler(items, share, batch_size),
        shuffle=shuffle_seed is not None,
        generator=None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed),
        # Only where a loader is used again: the sequential stream has dozens, and each would keep its processes.
        persistent_workers=num_workers > 0 and shuffle_seed is not None,
        **options,
    )


def _sampler(dataset: Dataset[Any], share: Share, batch_size: int) -> BatchShare | None:
    return None if share == ALONE else BatchShare(dataset, share, batch_size)


def loader_names(stream: Stream, cells: Sequence[Cell]) -> list[str]:
    """The names of a stream's loaders: of a cell each, or the stream's own where it has but one."""
    return [stream] if stream in ("mixed", "continual") else [cell.name for cell in cells]


def stream_pairs(
    numbers: Sequence[int],
    labels: Sequence[int],
    cells: Sequence[Cell],
    stream: Stream,
    seed: int,
    concentration: float,
) -> list[list[Pairs]]:
    """The pairs of every part of every loader of a stream.

    Args:
        numbers: of the images; every image is shown in every cell.
        labels: the class of each image, which the correlated stream asks for.
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
        pairs = np.concatenate([pairs_of(numbers, cell.code) for cell in cells])
        return [[pairs[torch.randperm(len(pairs), generator=generator).numpy()]]]
    if stream == "correlated":
        order = correlated_order(labels, concentration, seed)
    else:
        order = torch.randperm(len(numbers), generator=generator).tolist()
    shown = np.asarray(numbers)[order]
    parts = [pairs_of(shown, cell.code) for cell in cells]
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
