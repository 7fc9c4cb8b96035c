"""The 256 levels of an 8-bit image: the benchmark stores what it made by truncation, not by rounding."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST_LEVEL = 255

# A value that is a whole level in exact arithmetic may come out of float32 a few units in the last place lower, and
# truncation would make a whole level of that. One unit is 1.5e-5 of a level near white and the longest chains of
# operations here lose a few of them. A value that truly lies this little under a level is as rare as 1 in 5,000.
# What was computed in float64 is truncated as it is: the benchmark, in float64 too, drops the same levels.
_FLOAT32_SLACK = 2e-4

# How far from a whole level, in levels, float32 may put k / 255.
_FLOAT32_SPACING = 2e-5


def truncate_to_levels(images: Tensor) -> Tensor:
    """Clip float32 or float64 images to [0, 1] and give the 8-bit levels, 0.0 to 255.0, as float32."""
    levels = images.clamp(0.0, 1.0).mul_(HIGHEST_LEVEL)
    if levels.dtype == torch.float64:
        return levels.floor_().to(torch.float32)
    return levels.add_(_FLOAT32_SLACK).floor_()


def truncate_to_8_bits(images: Tensor) -> Tensor:
    """Clip float32 or float64 images to [0, 1] and move every value down to one of the 256 levels, float32 k / 255."""
    return truncate_to_levels(images).div_(HIGHEST_LEVEL)


def to_float64(images: Tensor) -> Tensor:
    """Float32 images as float64, where the levels k / 255 are as exact as float64 can have them."""
    levels = images.to(torch.float64).mul_(HIGHEST_LEVEL)
    whole = levels.round()
    return torch.where((levels - whole).abs_() < _FLOAT32_SPACING, whole, levels).div_(HIGHEST_LEVEL)
