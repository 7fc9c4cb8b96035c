"""Blur: defocus, glass, motion, zoom and Gaussian.

Every function takes images (N, C, H, W), uint8 or float32 in [0, 1], and returns new ones: uint8 truncated as the
benchmark does, float32 clipped to [0, 1] and not quantised. A constant is a number, or a tensor (N,) with one for each
image. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.constants import by_constants
from dynbn_lightning.corruptions.filters import FloatArray, band_matrix, blur_gaussian, extend
from dynbn_lightning.corruptions.geometry import blur_along, zoom_transposed
from dynbn_lightning.corruptions.parts import on_levels
from dynbn_lightning.corruptions.quantization import floor_levels
from dynbn_lightning.corruptions.randomness import Draws

_ROUNDS_BEFORE_LOOKING = 5


@by_constants
def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with standard deviation `sigma`, out to four of them, edges repeated."""
    return on_levels(images, partial(blur_gaussian, sigma=sigma))


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


def _fast_length(least: int) -> int:
    """A length that a Fourier transform is fast at: a multiple of 4 whose prime factors are 2, 3 and 5."""
    length = -(-least // 4) * 4
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 4


@lru_cache(maxsize=64)
def _disk_spectrum(
    radius: float, smoothing: float, height: int, width: int, device: torch.device
) -> tuple[int, tuple[int, int], Tensor]:
    """How far the disk reaches, the size to transform at, and the disk's spectrum, which is real as it is symmetric."""
    kernel = disk_kernel(radius, smoothing)
    centre = len(kernel) // 2
    reach = int(np.abs(np.nonzero(kernel)[0] - centre).max())
    size = (_fast_length(height + 2 * reach), _fast_length(width + 2 * reach))
    around_corner = np.zeros(size)
    offsets = np.arange(-reach, reach + 1)
    around_corner[np.ix_(offsets % size[0], offsets % size[1])] = kernel[centre + offsets[:, None], centre + offsets]
    spectrum = np.fft.rfft2(around_corner).real
    return reach, size, torch.from_numpy(np.ascontiguousarray(spectrum)).to(device)


@by_constants
def defocus_blur(images: Tensor, radius: float, smoothing: float) -> Tensor:
    """Correlate with a disk of `radius` pixels, its rim smoothed; borders reflect without repeating the edge."""
    height, width = images.shape[-2:]
    reach, size, spectrum = _disk_spectrum(radius, smoothing, height, width, images.device)

    def correlate(levels: Tensor) -> Tensor:
        # Float64 errs by 1e-13, too little to show in a level.
        extended = extend(levels, reach, "mirror").to(torch.float64)
        correlated: Tensor = torch.fft.irfft2(torch.fft.rfft2(extended, s=size).mul_(spectrum), s=size)
        return correlated[..., reach : reach + height, reach : reach + width]

    return on_levels(images, correlate)


@by_constants
def glass_blur(images: Tensor, draws: Draws, sigma: float, reach: float, sweeps: float) -> Tensor:
    """Blur, let every pixel be overwritten by a near one, sweep after sweep, and blur again.

    A sweep goes from bottom right to top left, and a pixel that copies one which the sweep has passed already copies
    what was copied there. So where each pixel comes from in the end is found by following such chains to their ends.
    """

    def scatter(levels: Tensor, draws: Draws) -> Tensor:
        count, channels, height, width = levels.shape
        blurred = floor_levels(blur_gaussian(levels, sigma)).to(torch.float32).reshape(count, channels, -1)
        source = _scattered(draws, height, width, int(reach), int(sweeps))
        copied = blurred.gather(2, source.unsqueeze(1).expand(-1, channels, -1))
        return blur_gaussian(copied.view(levels.shape), sigma)

    return on_levels(images, scatter, draws)


def _scattered(draws: Draws, height: int, width: int, reach: int, sweeps: int) -> Tensor:
    """For each pixel the place (N, height * width) that it comes from after all the sweeps."""
    places = torch.arange(height * width, device=draws.device)
    rows, columns = slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    swept = places.view(height, width)[rows, columns]
    found = places.expand(draws.count, -1)
    for _ in range(sweeps if swept.numel() else 0):
        offsets = draws.integers(-reach, reach, (2, *swept.shape))
        source = places.repeat(draws.count, 1).view(-1, height, width)
        source[:, rows, columns] += offsets[:, 0].mul_(width).add_(offsets[:, 1])
        found = found.gather(1, _follow_chains(source.view(draws.count, -1), places))
    return found


def _follow_chains(source: Tensor, places: Tensor) -> Tensor:
    """Replace every source that was overwritten before it was copied by what it was overwritten with.

    Places further on are swept first: a source beyond its copy has been overwritten by then, one before it has not. So
    chains of copies lead on and on until they step back. Every round doubles the steps taken at once.
    """
    count = len(places)
    # What was there at first is found at `count` + place, where a chain ends; a branch per pixel would be slow.
    steps_back = (places - source).bitwise_right_shift_(63).add_(1)
    chains = torch.cat((steps_back.mul_(count).add_(source), (places + count).expand(len(source), -1)), dim=1)
    open_ends = chains[:, :count]
    for rounds in range(count.bit_length()):
        # Most chains are short; an accelerator is not asked, for the sake of not waiting for its answer.
        looks = rounds >= _ROUNDS_BEFORE_LOOKING and chains.device.type == "cpu"
        if looks and int(open_ends.amin()) >= count:
            break
        open_ends.copy_(chains.gather(1, open_ends))
    return open_ends - count


@by_constants
def motion_blur(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Blur one-sidedly along a random direction within 45 degrees of the horizontal; see `blur_along`."""

    def blur(levels: Tensor, draws: Draws) -> Tensor:
        return blur_along(levels, draws.uniform((1,), -45.0, 45.0).squeeze(1), int(radius), sigma)

    return on_levels(images, blur, draws)


@by_constants
def zoom_blur(images: Tensor, start: float, stop: float, step: float) -> Tensor:
    """The mean of the image and of its centre zooms by every factor from `start` up to `stop` in `step`."""
    # As the benchmark counts them: rounding in float64 included, which for some entries takes the stop in.
    factors = np.arange(start, stop, step).tolist()

    def blur(levels: Tensor) -> Tensor:
        total = torch.zeros_like(levels.mT, memory_format=torch.contiguous_format)
        for factor in factors:
            total += zoom_transposed(levels, factor)
        return levels.add_(total.mT).div_(len(factors) + 1)

    return on_levels(images, blur)
