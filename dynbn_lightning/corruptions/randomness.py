"""Random numbers for a batch of images: from one generator, or from a seed per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Draws tensors of random numbers whose first dimension is the image.

    With `seeds` every image has a generator of its own, and what it draws depends on its seed and on nothing else: not
    on the batch that it is in, nor on the device, because the numbers are drawn on the CPU and then moved.

    Args:
        count: Number of images.
        device: Where the tensors are wanted.
        generator: One generator for the whole batch; `None` is the global one of the device.
        seeds: A seed per image, in place of the generator.
    """

    def __init__(
        self,
        count: int,
        device: torch.device,
        generator: torch.Generator | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.count = count
        self.device = device
        self._generator = generator
        self._source = generator.device if generator is not None else device
        self._per_image: list[torch.Generator] | None = None
        if seeds is not None:
            self._source = torch.device("cpu")
            self._per_image = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 numbers (count, *shape)."""
        numbers = self._empty(shape, torch.float32)
        for row, generator in self._rows(numbers):
            row.normal_(generator=generator)
        return numbers.to(self.device)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 numbers (count, *shape) in [low, high)."""
        numbers = self._empty(shape, torch.float32)
        for row, generator in self._rows(numbers):
            row.uniform_(low, high, generator=generator)
        return numbers.to(self.device)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform int64 numbers (count, *shape) from low to high - 1."""
        numbers = self._empty(shape, torch.int64)
        for row, generator in self._rows(numbers):
            row.random_(low, high, generator=generator)
        return numbers.to(self.device)

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson numbers with these rates (count, ...), of the same dtype."""
        rates = rates.to(self._source)
        if self._per_image is None:
            return torch.poisson(rates, generator=self._generator).to(self.device)
        rows = [torch.poisson(rate, generator=own) for rate, own in zip(rates, self._per_image, strict=True)]
        return torch.stack(rows).to(self.device)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty((self.count, *shape), dtype=dtype, device=self._source)

    def _rows(self, numbers: Tensor) -> list[tuple[Tensor, torch.Generator | None]]:
        if self._per_image is None:
            return [(numbers, self._generator)]
        return list(zip(numbers, self._per_image, strict=True))
