"""Colours of images (N, C, H, W): grey values, colours given as 8-bit RGB, and the HSV model.

HSV is computed in float64 by its usual formulas, step by step: many results are whole levels in exact arithmetic, and
whether truncation keeps them hangs on the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)

# Which of value, falling, low and rising the channels red, green and blue are in each sextant of the colour wheel.
_SEXTANT_LEVELS = ((0, 3, 2), (1, 0, 2), (2, 0, 3), (2, 1, 0), (3, 2, 0), (0, 2, 1))


def to_gray(images: Tensor) -> Tensor:
    """The grey value of every pixel, (N, 1, H, W); images of one channel are grey already."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * _LUMA[0]).add_(green * _LUMA[1]).add_(blue * _LUMA[2])


def color_like(images: Tensor, rgb: Sequence[int]) -> Tensor:
    """An 8-bit RGB colour as float32 levels (C, 1, 1), as its grey value where images have one channel."""
    levels = list(rgb) if images.shape[1] == 3 else [sum(part * level for part, level in zip(_LUMA, rgb, strict=True))]
    return torch.tensor(levels, dtype=torch.float32, device=images.device).view(-1, 1, 1)


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value of float64 (N, 3, H, W), each (N, H, W) in [0, 1]; grey has hue and saturation 0."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    colored = spread > 0
    saturation = torch.where(colored, spread / value, 0.0)
    from_red, from_green, from_blue = (green - blue) / spread, (blue - red) / spread + 2.0, (red - green) / spread + 4.0
    sextants = torch.where(value == blue, from_blue, torch.where(value == green, from_green, from_red))
    hue = torch.where(colored, sextants.div_(6.0).remainder_(1.0), 0.0)
    return hue, saturation, value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The RGB image (N, 3, H, W), float64, of hue, saturation and value, each (N, H, W)."""
    sextants = hue * 6.0
    sextant = sextants.floor()
    past = sextants - sextant
    low = value * (1.0 - saturation)
    falling = value * (1.0 - past * saturation)
    rising = value * (1.0 - (1.0 - past) * saturation)
    levels = torch.stack((value, falling, low, rising), dim=1)
    order = torch.tensor(_SEXTANT_LEVELS, device=hue.device)[sextant.long().remainder_(6)]
    return levels.gather(1, order.movedim(-1, 1))
