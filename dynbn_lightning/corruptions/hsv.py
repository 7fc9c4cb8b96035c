"""Brightness and saturation, in the HSV model.

Every function takes images (N, C, H, W), uint8 or float32 in [0, 1], and returns new ones: uint8 truncated as the
benchmark does, float32 clipped to [0, 1] and not quantised. A constant is a number, or a tensor (N,) with one for each
image. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019).

No hue is needed for 8-bit images: what becomes of the largest and the smallest channel of a pixel follows from these
two alone, of which there are 65,536 pairs, and the middle one keeps its place between them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dynbn_lightning.corruptions.color import from_hsv, to_hsv
from dynbn_lightning.corruptions.constants import by_constants
from dynbn_lightning.corruptions.parts import on_levels, on_pixels
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, floor_levels, floor_to_uint8

_LEVELS = HIGHEST_LEVEL + 1
# What takes a value that lies on a whole level, in levels, to the other side of it, float32 notwithstanding.
_NUDGE = 4e-4


@by_constants
def brightness(images: Tensor, shift: float) -> Tensor:
    """Add `shift` to the value (the V of HSV); for images of one channel that is their only channel."""
    if images.shape[1] == 1:
        return on_levels(images, lambda levels: levels.add_(shift * HIGHEST_LEVEL))
    if images.dtype != torch.uint8:
        return on_pixels(images, lambda pixels: _brightened(pixels, shift))
    table = _brighter_levels(shift, images.device)

    def look_up(pixels: Tensor) -> Tensor:
        largest = _largest(pixels).to(torch.int32).mul_(_LEVELS)
        return table.index_select(0, (largest.unsqueeze(1) + pixels).view(-1)).view(pixels.shape)

    return on_pixels(images, look_up)


@by_constants
def saturate(images: Tensor, factor: float, shift: float) -> Tensor:
    """Multiply the saturation (the S of HSV) by `factor` and add `shift`; images of one channel have none and stay."""
    if images.shape[1] == 1:
        return images.clone(memory_format=torch.contiguous_format)
    if images.dtype != torch.uint8:
        return on_pixels(images, lambda pixels: _saturated(pixels, factor, shift))
    table = _shrinking(factor, shift, images.device)

    def look_up(pixels: Tensor) -> Tensor:
        largest, smallest = _largest(pixels), _smallest(pixels)
        pair = largest.to(torch.int32).mul_(_LEVELS).add_(smallest)
        factors = table.index_select(0, pair.view(-1)).view(pair.shape).unsqueeze(1)
        top = largest.to(torch.float32).unsqueeze(1)
        below = top - pixels
        if shift != 0.0:
            # Grey has no hue and is taken for red: the other two channels shall lie one level below it.
            grey = 1 - (largest - smallest).clamp_(max=1)
            below[:, 1:] += grey.unsqueeze(1)
        return floor_to_uint8(top - below.mul_(factors))

    return on_pixels(images, look_up)


def _largest(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return torch.maximum(torch.maximum(red, green), blue)


def _smallest(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return torch.minimum(torch.minimum(red, green), blue)


def _brightened(pixels: Tensor, shift: float) -> Tensor:
    """Floating pixels (N, 3, H, W)."""
    hue, saturation, value = to_hsv(pixels.to(torch.float64))
    return from_hsv(hue, saturation, value.add_(shift).clamp_(0.0, 1.0))


def _saturated(pixels: Tensor, factor: float, shift: float) -> Tensor:
    """Floating pixels (N, 3, H, W)."""
    hue, saturation, value = to_hsv(pixels.to(torch.float64))
    return from_hsv(hue, saturation.mul_(factor).add_(shift).clamp_(0.0, 1.0), value)


@lru_cache(maxsize=32)
def _brighter_levels(shift: float, device: torch.device) -> Tensor:
    """What level a channel gets, (256 * 256) uint8, by the largest channel of the pixel and its own level."""
    return _levels(_brightened(_pairs(device), shift)[0, 1])


@lru_cache(maxsize=32)
def _shrinking(factor: float, shift: float, device: torch.device) -> Tensor:
    """How the distances to the largest channel grow, (256 * 256) float32, by the largest and the smallest channel.

    They are what saturation becomes over what it was, but for as little as makes the smallest channel fall on the same
    side of a whole level as the formulas do step by step in float64.
    """
    exact = _levels(_saturated(_pairs(device), factor, shift)[0, 1]).view(_LEVELS, _LEVELS).to(torch.float64)
    levels = torch.arange(_LEVELS, dtype=torch.float64, device=device)
    largest, spread = levels.view(-1, 1), (levels.view(-1, 1) - levels).clamp_(min=0.0)
    saturation = (spread / largest.clamp(min=1.0)).mul_(factor).add_(shift).clamp_(0.0, 1.0)
    # Grey is spread over one level here.
    grown = largest * saturation / spread.clamp(min=1.0)
    made = floor_levels((largest - spread.clamp(min=1.0) * grown).to(torch.float32))
    return grown.add_((made - exact) * _NUDGE / spread.clamp(min=1.0)).to(torch.float32).flatten()


def _pairs(device: torch.device) -> Tensor:
    """A pixel for each largest channel and each level under it, (1, 3, 256, 256) float64; green and blue are alike."""
    levels = torch.arange(_LEVELS, dtype=torch.float64, device=device) / HIGHEST_LEVEL
    largest, other = levels.view(-1, 1), levels.view(1, -1)
    green = torch.minimum(largest, other)
    return torch.stack((largest.expand_as(green), green, green)).unsqueeze(0)


def _levels(values: Tensor) -> Tensor:
    return values.clamp(0.0, 1.0).mul_(HIGHEST_LEVEL).to(torch.uint8).flatten()
