"""Moments per channel of many batches, on one process or several, merged exactly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dynbn_lightning.batchnorm.ranks import do_on_ranks
from dynbn_lightning.errors import DataError


class MomentAccumulator:
    """Mean and unbiased variance per channel over many batches, merged without losing the between-batch variance.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances": counts,
    means and sums of squared deviations of two sets give those of their union. Kept in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Merge `count` values per channel with this mean and unbiased variance, both (C,)."""
        if mean.device.type == "mps":  # has no float64
            mean, var = mean.cpu(), var.cpu()
        self._merge(count, mean.double(), var.double() * (count - 1))

    def merge(self, other: MomentAccumulator) -> None:
        """Merge what another accumulator has seen."""
        if other._mean is not None and other._squares is not None:
            self._merge(other.count, other._mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def cpu(self) -> MomentAccumulator:
        """The same on the CPU."""
        moved = MomentAccumulator()
        if self._mean is not None and self._squares is not None:
            moved.count, moved._mean, moved._squares = self.count, self._mean.cpu(), self._squares.cpu()
        return moved

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of what was seen, both (C,) in float32; the variance of a single value is 0.

        Raises:
            DataError: if nothing was seen.
        """
        if self._mean is None or self._squares is None:
            raise DataError("no activations were seen, so there are no statistics")
        return self._mean.float(), (self._squares / max(1, self.count - 1)).float()

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, both (C,) in float32.

        Raises:
            DataError: if fewer than two values per channel were seen, which have no variance.
        """
        if self.count == 1:
            raise DataError("one value per channel has no variance: more images are needed")
        return self.moments()


def merged_over_ranks(measure: Callable[[], dict[str, MomentAccumulator]]) -> dict[str, MomentAccumulator]:
    """What `measure` finds on the ranks, merged in their order, so the same to the last bit on all of them."""
    merged: dict[str, MomentAccumulator] = {}
    for found in do_on_ranks(lambda: {name: moments.cpu() for name, moments in measure().items()}):
        for name, moments in found.items():
            merged.setdefault(name, MomentAccumulator()).merge(moments)
    return merged
