"""Moving pixels: bilinear sampling, zooming about the centre, blurring along a direction."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.filters import Border

# Weights under this change nothing: all of them together are far under a thousandth of a level.
_NEGLIGIBLE = 1e-7


def fold_positions(positions: Tensor, size: int, border: Border) -> Tensor:
    """The positions (int64) inside 0 to size - 1 that stand for `positions` anywhere on the line."""
    if border == "nearest" or size == 1:
        return positions.clamp(0, size - 1)
    period = 2 * size if border == "reflect" else 2 * size - 2
    wrapped = positions.remainder(period)
    return torch.minimum(wrapped, (period - 1 if border == "reflect" else period) - wrapped)


def sample_bilinear(images: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """Values of (N, C, H, W) at fractional `rows` and `columns`, each (N, H', W'); (N, C, H', W')."""
    count, channels, height, width = images.shape
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).unsqueeze(1), (columns - left).unsqueeze(1)
    top_row, left_column = top.long(), left.long()
    row_starts = [fold_positions(top_row + step, height, border) * width for step in (0, 1)]
    columns_used = [fold_positions(left_column + step, width, border) for step in (0, 1)]
    flat = images.reshape(count, channels, height * width)
    shape = (count, channels, *rows.shape[1:])

    def corner(row: int, column: int) -> Tensor:
        index = (row_starts[row] + columns_used[column]).reshape(count, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, index).view(shape)

    upper = corner(0, 0).mul_(1.0 - right).add_(corner(0, 1).mul_(right))
    lower = corner(1, 0).mul_(1.0 - right).add_(corner(1, 1).mul_(right))
    return upper.mul_(1.0 - down).add_(lower.mul_(down))


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
    part = torch.from_numpy((positions - lower).astype(np.float32))
    return torch.from_numpy(lower + start).to(device), torch.from_numpy(upper + start).to(device), part.to(device)


def zoom_centre(images: Tensor, factor: float) -> Tensor:
    """Magnify the centre of (..., H, W) by `factor` >= 1, bilinearly and corner-aligned, and keep the size.

    The crop that is magnified has ceil(size / factor) pixels along each axis and starts at (size - crop) // 2.
    """
    height, width = images.shape[-2:]
    if factor == 1.0:
        return images
    lower, upper, part = _zoom_taps(height, factor, images.device)
    first = images.index_select(-2, lower)
    rows = images.index_select(-2, upper).sub_(first).mul_(part.unsqueeze(-1)).add_(first)
    lower, upper, part = _zoom_taps(width, factor, images.device)
    first = rows.index_select(-1, lower)
    return rows.index_select(-1, upper).sub_(first).mul_(part).add_(first)


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
    count, channels, height, width = images.shape
    weights = _half_gaussian(2 * radius + 1, sigma)
    angle = torch.deg2rad(degrees.double()).unsqueeze(0)
    steps = torch.arange(len(weights), device=images.device, dtype=torch.float64).unsqueeze(1)
    rows_moved = (steps * angle.sin() - 0.5).ceil_().long().unsqueeze(-1)
    columns_moved = (steps * angle.cos() - 0.5).ceil_().long().unsqueeze(-1)
    row_starts = (
        (torch.arange(height, device=images.device) + rows_moved).clamp_(0, height - 1).mul_(width).unsqueeze(-1)
    )
    columns = (torch.arange(width, device=images.device) + columns_moved).clamp_(0, width - 1).unsqueeze(-2)
    flat = images.reshape(count, channels, height * width)
    blurred = flat * weights[0]
    for tap in range(1, len(weights)):
        index = (row_starts[tap] + columns[tap]).reshape(count, 1, -1).expand(-1, channels, -1)
        blurred.add_(flat.gather(2, index).mul_(weights[tap]))
    return blurred.view(images.shape)
