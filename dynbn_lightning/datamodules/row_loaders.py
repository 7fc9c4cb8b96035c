"""The image batches that the rows of a bank are measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

Batch = TypeVar("Batch")


class Batches(Generic[Batch]):
    """A known number of batches; every iteration gives the same ones."""

    def __init__(self, make_batches: Callable[[], Iterator[Batch]], length: int) -> None:
        self._make_batches = make_batches
        self._length = length

    def __iter__(self) -> Iterator[Batch]:
        return self._make_batches()

    def __len__(self) -> int:
        return self._length


class RowLoaders(Mapping[str, Batches[Tensor]]):
    """Row name -> normalised image batches (N, C, H, W); `provenance` says what they are, for the bank's metadata."""

    def __init__(self, batches: Mapping[str, Batches[Tensor]], provenance: dict[str, Any]) -> None:
        self._batches = dict(batches)
        self.provenance = provenance

    def __getitem__(self, row: str) -> Batches[Tensor]:
        return self._batches[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
