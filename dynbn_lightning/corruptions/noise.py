"""Noise: Gaussian, shot, impulse and speckle.

Every function takes images (N, C, H, W), uint8 or float32 in [0, 1], and returns new ones: uint8 truncated as the
benchmark does, float32 clipped to [0, 1] and not quantised. A constant is a number, or a tensor (N,) with one for each
image. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.constants import Constant, by_constants, for_each_image
from dynbn_lightning.corruptions.filters import FloatArray
from dynbn_lightning.corruptions.parts import on_levels, on_pixels
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL
from dynbn_lightning.corruptions.randomness import Draws

_LEVELS = HIGHEST_LEVEL + 1
_CHANCES = 1 << 16


def gaussian_noise(images: Tensor, draws: Draws, scale: Constant) -> Tensor:
    """Add normal noise of standard deviation `scale` to every value."""

    def add(levels: Tensor, draws: Draws, scale: Tensor) -> Tensor:
        return levels.add_(draws.normal(levels.shape[1:]).mul_(scale * HIGHEST_LEVEL))

    return on_levels(images, add, draws, for_each_image(scale, images))


def speckle_noise(images: Tensor, draws: Draws, scale: Constant) -> Tensor:
    """Add normal noise of standard deviation `scale` times the value itself."""

    def multiply(levels: Tensor, draws: Draws, scale: Tensor) -> Tensor:
        return levels.mul_(draws.normal(levels.shape[1:]).mul_(scale).add_(1.0))

    return on_levels(images, multiply, draws, for_each_image(scale, images))


def impulse_noise(images: Tensor, draws: Draws, share: Constant) -> Tensor:
    """Replace a `share` of the values, each pixel and channel apart, half of them by 1 and half by 0."""

    def replace(pixels: Tensor, draws: Draws, replaced: Tensor) -> Tensor:
        # In whole numbers without a branch, many times faster than comparing and masking: 1 where a value is salt, 1
        # where it is not pepper. `chance` is uniform from 0 to 65,535.
        chance = draws.bits(pixels.shape[1:], torch.int16).to(torch.int32).add_(_CHANCES // 2)
        kept = chance.sub(replaced).bitwise_right_shift_(31).add_(1)
        salt = chance.sub_(_CHANCES - replaced).bitwise_right_shift_(31).add_(1)
        if pixels.dtype == torch.uint8:
            return (pixels * kept.to(torch.uint8)).bitwise_or_(-salt.to(torch.uint8))
        return pixels.mul(kept).maximum(salt.to(pixels.dtype))

    replaced = (for_each_image(share, images) * (_CHANCES / 2)).round().to(torch.int32)
    return on_pixels(images, replace, draws, replaced)


@by_constants
def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Count photons: a Poisson number with mean `photons` times the value, divided by `photons`."""
    if images.dtype != torch.uint8:
        return draws.poisson(images * photons).div_(photons).clamp_(0.0, 1.0)
    table = _photon_table(photons, images.device)

    def count(levels: Tensor, draws: Draws) -> Tensor:
        return _draw_levels(levels, table, draws)

    return on_pixels(images, count, draws)


@lru_cache(maxsize=32)
def _photon_table(photons: float, device: torch.device) -> Tensor:
    """The distribution of the noisy level for each of the 256 levels, to draw from with `_draw_levels`.

    By the alias method of Walker (1977): a uniform column holds two levels, and with which chance it is the first. An
    entry (256 levels * 256 columns) has that chance in its upper 16 bits, less 2^15, and the second level in the lower.
    """
    rates = np.arange(_LEVELS) * (photons / HIGHEST_LEVEL)
    highest = int(np.ceil(photons))
    counts = np.arange(highest)
    # Poisson chances in logarithms, which do not overflow; a rate of 0 gives no photon.
    logarithms = counts * np.log(np.maximum(rates, 1e-300))[:, None] - rates[:, None]
    logarithms -= np.concatenate(([0.0], np.cumsum(np.log(np.maximum(counts[1:], 1)))))
    chances = np.zeros((_LEVELS, _LEVELS))
    noisy = np.floor(counts / photons * HIGHEST_LEVEL + 1e-9).astype(np.int64)
    for count, level in enumerate(noisy):
        chances[:, level] += np.exp(logarithms[:, count])
    # All counts that are at or over white.
    chances[:, HIGHEST_LEVEL] += np.maximum(1.0 - chances.sum(axis=1), 0.0)
    return torch.from_numpy(np.concatenate([_alias_columns(row) for row in chances])).to(device)


def _alias_columns(chances: FloatArray) -> np.ndarray:
    share = chances / chances.sum() * len(chances)
    first_chance, second = np.ones(len(share)), np.arange(len(share))
    short = [column for column in range(len(share)) if share[column] < 1.0]
    long = [column for column in range(len(share)) if share[column] >= 1.0]
    while short and long:
        column, giver = short.pop(), long[-1]
        first_chance[column], second[column] = share[column], giver
        share[giver] -= 1.0 - share[column]
        if share[giver] < 1.0:
            short.append(long.pop())
    chance = np.minimum(np.rint(first_chance * _CHANCES), _CHANCES - 1).astype(np.int64)
    return np.asarray((chance - _CHANCES // 2) * _CHANCES + second, dtype=np.int32)


def _draw_levels(levels: Tensor, table: Tensor, draws: Draws) -> Tensor:
    column = draws.bits(levels.shape[1:], torch.uint8)
    chance = draws.bits(levels.shape[1:], torch.int16).to(torch.int32)
    places = levels.to(torch.int32).mul_(_LEVELS).add_(column)
    entry = table.index_select(0, places.view(-1)).view(levels.shape)
    # All ones where the chance falls short of the entry's, which takes the column's own level, else the second.
    takes_first = chance.sub_(entry.bitwise_right_shift(16)).bitwise_right_shift_(31).to(torch.uint8)
    second = entry.to(torch.uint8)
    return (column ^ second).bitwise_and_(takes_first).bitwise_xor_(second)
