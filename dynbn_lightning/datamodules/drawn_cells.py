"""Which cell a training image is shown in: drawn for it, by hashes that depend on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..corruptions import CLEAN, Cell
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


def images_of_part(fit: Sequence[int], held_out: Sequence[int], part: Part) -> Sequence[int]:
    """The training images of a part: those to fit on, three quarters of the held-out ones, or the last quarter."""
    checked = max(1, len(held_out) // 4)
    return {"fit": fit, "choose": held_out[checked:], "check": held_out[:checked]}[part]
