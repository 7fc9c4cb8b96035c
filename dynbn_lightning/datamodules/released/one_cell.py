"""One cell of a released set as a plain data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import Dataset

from ...corruptions import Cell

if TYPE_CHECKING:
    from .released_set import ReleasedSet


class OneCell(Dataset[tuple[Tensor, int]]):
    """Images of a released set in one cell: items (uint8 pixels (3, H, W), label), for a plain DataLoader.

    Attributes:
        targets: the class of each image.
        classes: the names of the classes; None where they are not known.
    """

    def __init__(self, released: ReleasedSet, cell: Cell) -> None:
        self.released, self.shown_in = released, cell
        self.targets = released.labels
        self.classes = released.classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = range(len(self))[index]  # IndexError ends a loop over it
        return self.released[place, self.shown_in]

    def __repr__(self) -> str:
        return f"{self.released!r}.cell({self.shown_in.name!r})"
