"""The 256 levels of an 8-bit image: the benchmark stores what it made by truncation, not by rounding."""

from __future__ import annotations

import torch
from torch import Tensor

HIGHEST_LEVEL = 255

# A value that is a whole level in exact arithmetic may come out of float32 a few units in the last place lower, and
# truncation would make a whole level of that. One unit is 1.5e-5 of a level near white and the longest chains of
# operations here lose a few of them. A value that truly lies this little under a level is as rare as 1 in 5,000.
# Float64 loses next to nothing, and the benchmark, in float64 too, truncates what lies ever so little under a level.
_SLACK = {torch.float32: 2e-4, torch.float64: 1e-10}

# How far from a whole level, in levels, float32 may put k / 255.
_FLOAT32_SPACING = 2e-5


def floor_levels(levels: Tensor) -> Tensor:
    """Clip float32 levels to 0 to 255 and truncate them to whole ones, in place."""
    return levels.clamp_(0.0, HIGHEST_LEVEL).add_(_SLACK[levels.dtype]).floor_()


def floor_to_uint8(levels: Tensor) -> Tensor:
    """Clip float32 or float64 levels to 0 to 255, which happens in place, and truncate them to uint8."""
    # By way of int16: the direct conversion takes twice the time of both.
    return levels.clamp_(0.0, HIGHEST_LEVEL).add_(_SLACK[levels.dtype]).to(torch.int16).to(torch.uint8)


def truncate_to_uint8(images: Tensor) -> Tensor:
    """Float32 images in [0, 1] moved down to whole levels, uint8."""
    return floor_to_uint8(images * HIGHEST_LEVEL)


def lie_on_levels(images: Tensor) -> Tensor:
    """Whether all that float32 images (N, C, H, W) hold is k / 255, as near as float32 can have it; (N,) bool."""
    levels = images * HIGHEST_LEVEL
    return levels.sub_(levels.round()).abs_().amax(dim=(1, 2, 3)) < _FLOAT32_SPACING


def to_uint8(images: Tensor) -> Tensor:
    """Float32 images that lie on the levels, as uint8."""
    return images.mul(HIGHEST_LEVEL).round_().to(torch.uint8)


def to_floats(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 levels as floats k / 255, as near as `dtype` can have them."""
    # Half precisions are rounded once, at the end.
    return levels.to(torch.promote_types(dtype, torch.float32)).div_(HIGHEST_LEVEL).to(dtype)
