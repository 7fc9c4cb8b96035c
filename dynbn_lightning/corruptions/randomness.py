"""Random numbers for a batch of images: a stream of random bits for each, by one generator or by a seed per image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BITS = {torch.uint8: 8, torch.int16: 16, torch.int32: 32}
_SEEDS = 2**63 - 1


class Draws:
    """Draws tensors of random numbers whose first dimension is the image.

    Every image has a stream of random bits of its own, and what is drawn for it depends on its seed and on nothing
    else: not on the batch that it is in, nor on the device, because the bits are drawn on the CPU and then moved. With
    a `generator` the seeds are drawn from that. Only a generator that lives on an accelerator, like torch's global one
    there, is drawn from directly, without a stream for each image: nothing then has to be moved or waited for.

    Args:
        count: Number of images.
        device: Where the tensors are wanted.
        generator: Where the seeds come from; `None` is the global one of the device.
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
        self._streams: list[np.random.SFC64] | None = None
        source = device if generator is None else generator.device
        if seeds is None and source.type == "cpu":
            seeds = torch.randint(_SEEDS, (count,), generator=generator).tolist()
        if seeds is not None:
            self._streams = [np.random.SFC64(seed) for seed in seeds]

    def __getitem__(self, images: slice) -> Draws:
        """Draws for some of the images, from the same streams."""
        some = object.__new__(Draws)
        some.count = len(range(self.count)[images])
        some.device, some._generator = self.device, self._generator
        some._streams = None if self._streams is None else self._streams[images]
        return some

    def pick(self, images: Sequence[int]) -> Draws:
        """Draws for some of the images, by their numbers, from the same streams."""
        some = self[:0]
        some.count = len(images)
        some._streams = None if self._streams is None else [self._streams[image] for image in images]
        return some

    def bits(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Random bits: uniform numbers (count, *shape) over the whole range of `dtype`, uint8, int16 or int32."""
        if self._streams is None:
            limits = torch.iinfo(dtype)
            size, low, high = (self.count, *shape), limits.min, limits.max + 1
            return torch.randint(low, high, size, dtype=dtype, device=self.device, generator=self._generator)
        numbers = math.prod(shape)
        words = -(-numbers * _BITS[dtype] // 64)
        if len(self._streams) == 1:
            drawn = self._streams[0].random_raw(words)[None]
        else:
            drawn = np.stack([stream.random_raw(words) for stream in self._streams])
        bits = torch.from_numpy(drawn.view(np.int64)).view(dtype)[:, :numbers]
        return bits.reshape(self.count, *shape).to(self.device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 numbers (count, *shape), from pairs of 16 bits (Box and Muller, 1958)."""
        numbers = math.prod(shape)
        pairs = self.bits((2, (numbers + 1) // 2), torch.int16).float()
        # The 65,536 values lie in the middles of as many equal steps from 0 to 1, so that none is 0.
        radius = pairs[:, 0].add_(32768.5).mul_(2.0**-16).log_().mul_(-2.0).sqrt_()
        angle = pairs[:, 1].mul_(math.pi * 2.0**-15)
        normal = torch.empty_like(pairs)
        torch.mul(radius, angle.cos(), out=normal[:, 0])
        torch.mul(radius, angle.sin_(), out=normal[:, 1])
        return normal.view(self.count, -1)[:, :numbers].reshape(self.count, *shape)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 numbers (count, *shape) in [low, high), one of 2^24 each."""
        steps = self.bits(shape, torch.int32).bitwise_right_shift_(8).float()
        return steps.mul_((high - low) * 2.0**-24).add_((high + low) / 2)

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Uniform int64 numbers (count, *shape) from low to high - 1."""
        steps = self.bits(shape, torch.int32).to(torch.int64)
        return steps.add_(2**31).mul_(high - low).bitwise_right_shift_(32).add_(low)

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson numbers with these rates (count, ...), float32."""
        if self._streams is None:
            return torch.poisson(rates, generator=self._generator)
        drawn = [
            torch.poisson(rate, generator=torch.Generator().manual_seed(int(stream.random_raw())))
            for rate, stream in zip(rates.cpu(), self._streams, strict=True)
        ]
        return torch.stack(drawn).to(self.device)
