"""Which cell a training image is shown in: drawn for it, by hashes that depend on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ..corruptions import CLEAN, Cell
from ..errors import DataError
from .seeds import hashed_random

Part = Literal["fit", "choose", "check"]


def cell_of_row(row: str, severities: Sequence[int], *, seed: int, index: int, epoch: int = -1) -> Cell:
    """The cell that an image is shown in for a row: the row's own, or of a corruption with a severity drawn for it."""
    if row == CLEAN or "/" in row:
        return Cell.parse(row)
    return Cell(row, hashed_random("severity", seed, row, index, epoch).choice(severities))


def drawn_cell(corruptions: Sequence[str], severities: Sequence[int], *, seed: int, index: int, epoch: int) -> Cell:
    """A cell drawn for an image in an epoch; clean as often as each corruption, for most images a model meets are."""
    corruption = hashed_random("row", seed, index, epoch).choice((CLEAN, *corruptions))
    return cell_of_row(corruption, severities, seed=seed, index=index, epoch=epoch)


def draw_pair(
    position: int, *, indices: Sequence[int], rows: Sequence[str], severities: Sequence[int], seed: int, part: str
) -> tuple[int, int]:
    """The number of a training image and a `Cell.code`, drawn for a place among those that are looked at of a part."""
    random = hashed_random("drawn", seed, part, position)
    index = random.choice(indices)
    return index, cell_of_row(random.choice(rows), severities, seed=seed, index=index, epoch=position).code


def split_of(count: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the training images to fit on and of those held out, in an order drawn for the seed.

    Args:
        count: of the training images.
        held_out: the share that is held out.
        seed: of the draw.

    Raises:
        DataError: if one of the two parts would be empty.
    """
    number = round(count * held_out)
    if not 0 < number < count:
        raise DataError(f"{count} training images are too few to hold {held_out:.0%} out")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[number:], order[:number]


def images_of_part(fit: Sequence[int], held_out: Sequence[int], part: Part) -> Sequence[int]:
    """The training images of a part: those to fit on, three quarters of the held-out ones, or the last quarter.

    Raises:
        DataError: if there are none.
    """
    checked = max(1, len(held_out) // 4)
    images = {"fit": fit, "choose": held_out[checked:], "check": held_out[:checked]}[part]
    if not images:
        raise DataError(f"{len(held_out)} held-out training images are too few: raise validation_fraction")
    return images
