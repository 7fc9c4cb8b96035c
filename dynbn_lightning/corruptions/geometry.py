"""Moving pixels: bilinear sampling, zooming about the centre, blurring along a direction."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Weights under this change nothing: all of them together are far under a thousandth of a level.
_NEGLIGIBLE = 1e-7


def sample_bilinear(images: Tensor, rows: Tensor, columns: Tensor, border: Literal["reflect", "mirror"]) -> Tensor:
    """Values of (N, C, H, W) at fractional `rows` and `columns`, each (N, H', W'); (N, C, H', W').

    The images go on beyond their edges reflected, edge included (`reflect`) or without it (`mirror`).
    """
    mirror = border == "mirror"
    scaled = []
    for positions, size in ((columns, images.shape[-1]), (rows, images.shape[-2])):
        if mirror:
            scaled.append(positions * (2.0 / max(size - 1, 1)) - 1.0)
        else:
            scaled.append(positions * (2.0 / size) + (1.0 / size - 1.0))
    grid = torch.stack(scaled, dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=mirror)


@lru_cache(maxsize=1024)
def _zoom_taps(size: int, factor: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    crop = math.ceil(size / factor)
    start = (size - crop) // 2
    zoomed = round(crop * factor)
    trim = (zoomed - size) // 2
    step = (crop - 1) / (zoomed - 1) if zoomed > 1 else 0.0
    positions = np.arange(trim, trim + size) * step
    lower = np.minimum(np.floor(positions).astype(np.int64), crop - 1)
    upper = np.minimum(lower + 1, crop - 1)
    part = torch.from_numpy((positions - lower).astype(np.float32)[:, None])
    return torch.from_numpy(lower + start).to(device), torch.from_numpy(upper + start).to(device), part.to(device)


def _zoom_rows(images: Tensor, factor: float) -> Tensor:
    lower, upper, part = _zoom_taps(images.shape[-2], factor, images.device)
    first = images.index_select(-2, lower)
    return first.lerp_(images.index_select(-2, upper), part)


def zoom_transposed(images: Tensor, factor: float) -> Tensor:
    """`zoom_centre`, rows and columns exchanged: to pick whole rows is many times faster than to pick columns."""
    if factor == 1.0:
        return images.mT
    return _zoom_rows(_zoom_rows(images, factor).mT.contiguous(), factor)


def zoom_centre(images: Tensor, factor: float) -> Tensor:
    """Magnify the centre of (N, C, H, W) by `factor` >= 1, bilinearly and corner-aligned, and keep the size.

    The crop that is magnified has ceil(size / factor) pixels along each axis and starts at (size - crop) // 2.
    """
    return zoom_transposed(images, factor).mT.contiguous()


@lru_cache(maxsize=128)
def _half_gaussian(length: int, sigma: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * (np.arange(length) / sigma) ** 2)
    weights /= weights.sum()
    return tuple(weights[weights > _NEGLIGIBLE].tolist())


def blur_along(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Blur (N, C, H, W) one-sidedly along an angle per image.

    The mean of 2 * radius + 1 copies, shifted by 0, 1, 2, ... pixels along the angle (rounded to whole pixels) and
    weighted by a half Gaussian of standard deviation `sigma`; edges are repeated.
    """
    weights = _half_gaussian(2 * radius + 1, sigma)
    if images.device.type == "cpu":
        angles = degrees.double().deg2rad().tolist()
        return torch.cat([_blur_by_slices(images[n : n + 1], angle, weights) for n, angle in enumerate(angles)])
    return _blur_by_gathering(images, degrees, weights)


def _blur_by_slices(image: Tensor, angle: float, weights: tuple[float, ...]) -> Tensor:
    """One image (1, C, H, W): the shifts, known here, are views of the extended image."""
    height, width = image.shape[-2:]
    down = [math.ceil(step * math.sin(angle) - 0.5) for step in range(len(weights))]
    right = [math.ceil(step * math.cos(angle) - 0.5) for step in range(len(weights))]
    up, left = -min(down), -min(right)
    extended = F.pad(image, (left, max(right), up, max(down)), mode="replicate")
    blurred = image * weights[0]
    for weight, row, column in zip(weights[1:], down[1:], right[1:], strict=True):
        shifted = extended[..., up + row : up + row + height, left + column : left + column + width]
        blurred.add_(shifted, alpha=weight)
    return blurred


def _blur_by_gathering(images: Tensor, degrees: Tensor, weights: tuple[float, ...]) -> Tensor:
    """All images at once, on a device that should not be waited for to know the angles."""
    count, channels, height, width = images.shape
    angle = torch.deg2rad(degrees.double()).unsqueeze(0)
    steps = torch.arange(len(weights), device=images.device, dtype=torch.float64).unsqueeze(1)
    rows_moved = (steps * angle.sin() - 0.5).ceil_().long().unsqueeze(-1)
    columns_moved = (steps * angle.cos() - 0.5).ceil_().long().unsqueeze(-1)
    rows = (torch.arange(height, device=images.device) + rows_moved).clamp_(0, height - 1).mul_(width).unsqueeze(-1)
    columns = (torch.arange(width, device=images.device) + columns_moved).clamp_(0, width - 1).unsqueeze(-2)
    flat = images.reshape(count, channels, height * width)
    blurred = flat * weights[0]
    for tap in range(1, len(weights)):
        index = (rows[tap] + columns[tap]).reshape(count, 1, -1).expand(-1, channels, -1)
        blurred.add_(flat.gather(2, index), alpha=weights[tap])
    return blurred.view(images.shape)
