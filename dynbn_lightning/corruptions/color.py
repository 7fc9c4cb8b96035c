"""Colours of images (N, C, H, W) with three channels or one: grey values, and colours given as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def to_gray(images: Tensor) -> Tensor:
    """The grey value of every pixel, (N, 1, H, W); images of one channel are grey already."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * _LUMA[0]).add_(green * _LUMA[1]).add_(blue * _LUMA[2])


def color_like(images: Tensor, rgb: Sequence[int]) -> Tensor:
    """An 8-bit RGB colour as (C, 1, 1) in [0, 1], as its grey value where images have one channel."""
    levels = list(rgb) if images.shape[1] == 3 else [sum(part * level for part, level in zip(_LUMA, rgb, strict=True))]
    return (torch.tensor(levels, dtype=torch.float64) / 255).to(images).view(-1, 1, 1)
