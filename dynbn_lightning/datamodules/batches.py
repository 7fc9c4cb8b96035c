"""Turning a batch of stored pixels into what a model or a detector takes, on the device it is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..corruptions import Cell, corrupt
from .seeds import hashed_random, hashed_seed

Split = Literal["train", "validation", "test"]
Form = Literal["detector", "classifier", "predict"]


class Skipped(NamedTuple):
    """An image that could not be read and was left out of its batch."""

    number: int
    """Its number in its split."""
    code: int | None
    """`Cell.code` of the cell that it was to be shown in; None where that is drawn later."""
    path: str | None
    """Its file, if it is known."""
    why: str
    """What is wrong with it."""


class OddImage(NamedTuple):
    """An image whose size is not that of the first one of its batch."""

    number: int
    """Its number in its split."""
    code: int | None
    """`Cell.code` of the cell that it is shown in; None where that is drawn later."""
    shape: tuple[int, ...]
    first: int
    """The number of the first one."""
    expected: tuple[int, ...]
    """The shape of the first one."""


class PixelBatch(NamedTuple):
    """What a loader yields: moved to the device as it is, corrupted and normalised there.

    Numbers and cell codes are plain Python sequences, so they stay on the host, where the corruptions are chosen.
    """

    pixels: Tensor
    """(N, C, H, W) uint8."""
    labels: Tensor
    """(N,) int64."""
    indices: tuple[int, ...]
    """Each image's number in its split."""
    cells: tuple[int, ...] | None
    """Each image's `Cell.code`; None while fitting, where cells are drawn anew every epoch."""
    split: str
    form: str
    skipped: tuple[Skipped, ...] = ()
    """The images that belong here and could not be read."""
    classes: tuple[int, ...] = ()
    """The labels once more, for those who ask on the host."""
    odd: OddImage | None = None
    """An image that can't be stacked on the others; then there are none in the batch."""


class DrawnBatch(NamedTuple):
    """Training images in cells drawn at random, for calibrating and refining a bank."""

    images: Tensor
    """Corrupted and normalised, (N, C, H, W)."""
    clean: Tensor
    """The same images uncorrupted, (N, C, H, W)."""
    labels: Tensor
    """Their classes, (N,) int64."""
    rows: Tensor
    """The rows of their cells, (N,) int64."""
    indices: tuple[int, ...]
    """Their numbers among the training images."""


@dataclass(frozen=True)
class BatchInfo:
    """What is known of each image of the present batch; travels beside the batch, not inside it.

    Attributes:
        indices: each image's number in its split.
        cells: each image's `Cell.code`, (N,) int64 on the batch's device.
        names: each image's cell by name.
        labels: each image's class, on the host; empty where the batch has none.
        classes: how many classes the data set says there are; None if it doesn't.
    """

    indices: tuple[int, ...]
    cells: Tensor
    names: tuple[str, ...]
    labels: tuple[int, ...] = ()
    classes: int | None = None


def batch_info_of(trainer: Any) -> BatchInfo | None:
    """What is known of the images that a Trainer is processing; None where they come from no `CorruptionDataModule`."""
    return getattr(getattr(trainer, "datamodule", None), "batch_info", None)


def knows_cells(trainer: Any) -> bool:
    """Whether a Trainer's datamodule tells cells; the same on every process, whatever images these have seen."""
    return hasattr(getattr(trainer, "datamodule", None), "batch_info")


def corrupt_pixels(
    pixels: Tensor,
    codes: Sequence[int],
    indices: Sequence[int],
    *,
    seed: int,
    split: str,
    preset: str,
    epoch: int = -1,
    frost_textures: str | Path | None = None,
) -> Tensor:
    """Corrupt every image of a batch by its own cell.

    An image's pixels depend on (seed, split, index, cell), and while fitting the epoch, alone.

    Args:
        pixels: (N, C, H, W) uint8; not changed.
        codes: `Cell.code` of each image.
        indices: number of each image in its split.
        seed: of the run.
        split: the split that `indices` count in.
        preset: severity constants.
        epoch: -1 where pixels do not change from epoch to epoch.
        frost_textures: folder of photographs of ice; None takes generated ones.

    Returns:
        (N, C, H, W) uint8.
    """
    cells = [Cell.from_code(code) for code in codes]
    return corrupt(
        pixels,
        [cell.corruption for cell in cells],
        [cell.severity for cell in cells],
        preset,
        seeds=[hashed_seed(seed, split, epoch, index, code) for index, code in zip(indices, codes, strict=True)],
        frost_textures=frost_textures,
    )


def shift_and_flip(pixels: Tensor, indices: Sequence[int], *, seed: int, epoch: int) -> Tensor:
    """Shift every image by up to an eighth of its size, edges reflected, and mirror half of them.

    He et al. 2016, section 4.2, pad and crop CIFAR images so, with zeros. An image's draw depends on (seed, index,
    epoch) alone.

    Args:
        pixels: (N, C, H, W).
        indices: number of each image among the training images.
        seed: of the run.
        epoch: of the fit.

    Returns:
        (N, C, H, W), the dtype of `pixels`.
    """
    height, width = pixels.shape[-2:]
    draws = [hashed_random("shift_and_flip", seed, epoch, index) for index in indices]
    down = [draw.randint(-(height // 8), height // 8) for draw in draws]
    right = [draw.randint(-(width // 8), width // 8) for draw in draws]
    mirrored = [draw.random() < 0.5 for draw in draws]
    rows = _reflect(torch.arange(height) + torch.tensor(down).unsqueeze(1), height)
    columns = _reflect(torch.arange(width) + torch.tensor(right).unsqueeze(1), width)
    columns = torch.where(torch.tensor(mirrored).unsqueeze(1), columns.flip(1), columns)
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels.permute(0, 2, 3, 1)[batch, rows.to(pixels.device)[:, :, None], columns.to(pixels.device)[:, None]]
    return moved.permute(0, 3, 1, 2).contiguous()


def _reflect(positions: Tensor, size: int) -> Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
