"""Blur: defocus, glass, motion, zoom and Gaussian.

Every function takes images (N, C, H, W), float32 in [0, 1], and returns new ones of the same shape, clipped to [0, 1]
and not yet quantised. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.filters import (
    PIXEL_UNITS,
    FloatArray,
    band_matrix,
    blur_gaussian,
    exact_product,
    fold,
    in_pixel_units,
    in_weight_units,
)
from dynbn_lightning.corruptions.geometry import blur_along, zoom_centre
from dynbn_lightning.corruptions.quantization import truncate_to_8_bits
from dynbn_lightning.corruptions.randomness import Draws

_CACHED_VALUES = 1 << 17
_ACCELERATOR_VALUES = 1 << 24


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with standard deviation `sigma`, out to four of them, edges repeated."""
    return blur_gaussian(images, sigma).clamp(0.0, 1.0)


def disk_kernel(radius: float, smoothing: float) -> FloatArray:
    """An even disk, normalised, its rim smoothed by a small Gaussian window of standard deviation `smoothing`."""
    reach = 8 if radius <= 8 else int(radius)
    window = 1 if radius <= 8 else 2
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares[None, :] <= radius**2).astype(np.float64)
    disk /= disk.sum()
    taps = np.exp(-0.5 * (np.arange(-window, window + 1) / smoothing) ** 2)
    matrix = band_matrix(taps / taps.sum(), len(disk), "mirror")
    return np.asarray(matrix @ disk @ matrix.T)


@lru_cache(maxsize=64)
def _disk_matrix(radius: float, smoothing: float, width: int, device: torch.device) -> tuple[int, Tensor]:
    """Half the height of the disk, and its rows from the middle outwards as one stack of band matrices."""
    kernel = disk_kernel(radius, smoothing)
    centre = len(kernel) // 2
    reach = max(offset for offset in range(centre + 1) if kernel[centre + offset].any())
    # The kernel is symmetric, so the rows of pixels above and below share a row of weights: one product for both.
    bands = [band_matrix(kernel[centre + offset], width, "mirror") for offset in range(reach + 1)]
    stacked = in_weight_units(np.concatenate(bands, axis=1))
    return reach, torch.from_numpy(np.ascontiguousarray(stacked.T)).to(device)


def defocus_blur(images: Tensor, radius: float, smoothing: float) -> Tensor:
    """Correlate with a disk of `radius` pixels, its rim smoothed; borders reflect without repeating the edge."""
    reach, matrix = _disk_matrix(radius, smoothing, images.shape[-1], images.device)
    parts = [_correlate(part, reach, matrix) for part in _in_parts(images)]
    return torch.cat(parts).clamp_(0.0, 1.0)


def _correlate(images: Tensor, reach: int, matrix: Tensor) -> Tensor:
    height = images.shape[-2]
    units = in_pixel_units(images)
    rows = np.arange(height)
    pairs = [units]
    for offset in range(1, reach + 1):
        above = torch.from_numpy(fold(rows - offset, height, "mirror")).to(images.device)
        below = torch.from_numpy(fold(rows + offset, height, "mirror")).to(images.device)
        pairs.append(units.index_select(2, above).add_(units.index_select(2, below)))
    return exact_product(torch.cat(pairs, dim=-1), matrix).div_(PIXEL_UNITS)


def glass_blur(images: Tensor, draws: Draws, sigma: float, reach: float, sweeps: float) -> Tensor:
    """Blur, let every pixel be overwritten by a near one, sweep after sweep, and blur again.

    A sweep goes from bottom right to top left, and a pixel that copies one which the sweep has passed already copies
    what was copied there. So where each pixel comes from in the end is found by following such chains to their ends.
    """
    count, channels, height, width = images.shape
    reach = int(reach)
    flat = truncate_to_8_bits(blur_gaussian(images, sigma)).reshape(count, channels, height * width)
    places = torch.arange(height * width, device=images.device).view(height, width)
    rows, columns = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    swept = places[rows, columns]
    for _ in range(int(sweeps)):
        if swept.numel() == 0:
            break
        offsets = draws.integers(-reach, reach, (2, *swept.shape))
        copied = swept + offsets[:, 0] * width + offsets[:, 1]
        source = places.expand(count, height, width).clone()
        source[:, rows, columns] = copied
        source = _follow_chains(source.view(count, -1), places.view(-1))
        flat = flat.gather(2, source.unsqueeze(1).expand(-1, channels, -1))
    return blur_gaussian(flat.view(images.shape), sigma).clamp(0.0, 1.0)


def _follow_chains(source: Tensor, places: Tensor) -> Tensor:
    """Replace every source that was overwritten before it was copied by what it was overwritten with."""
    # Later places are swept first, so only a source beyond its copy has been overwritten by then.
    goes_on = source > places
    while bool(goes_on.any()):
        further = source.gather(1, source)
        still = goes_on & goes_on.gather(1, source)
        source = torch.where(goes_on, further, source)
        goes_on = still
    return source


def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Blur one-sidedly along a random direction within 45 degrees of the horizontal; see `blur_along`."""
    degrees = draws.uniform((1,), -45.0, 45.0).squeeze(1)
    return blur_along(images, degrees, int(radius), sigma).clamp_(0.0, 1.0)


def zoom_blur(images: Tensor, start: float, stop: float, step: float) -> Tensor:
    """The mean of the image and of its centre zooms by every factor from `start` up to `stop` in `step`."""
    # As the benchmark counts them: rounding in float64 included, which for some entries takes the stop in.
    factors = np.arange(start, stop, step).tolist()
    total = images.clone()
    for part, part_total in zip(_in_parts(images), _in_parts(total), strict=True):
        for factor in factors:
            part_total += zoom_centre(part, factor)
    return total.div_(len(factors) + 1).clamp_(0.0, 1.0)


def _in_parts(images: Tensor) -> list[Tensor]:
    """Views of as many images at a time as a CPU's cache, or else an accelerator's memory, easily holds many times."""
    values = _CACHED_VALUES if images.device.type == "cpu" else _ACCELERATOR_VALUES
    size = max(1, values // images[0].numel())
    return [images[first : first + size] for first in range(0, len(images), size)]
