"""Linear filters of images (..., H, W), computed so that what comes out of an image never depends on its batch.

Floating-point sums depend, in the last bit, on the order in which a library adds, and that order changes with the size
of the batch and the number of threads; truncation to 8 bits would make a whole level of such a bit. So a blur along an
axis, which is a product with a band matrix, is made of whole numbers of small units in float64, where all the sums are
exact: 16 bits under a level, 28 for a weight, and the weights of an output are positive and add up to one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Border = Literal["nearest", "reflect", "mirror"]
"""How an image goes on beyond its edge: with the edge repeated, reflected edge included, or reflected without it."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_WEIGHT_UNITS = 2.0**28
# A float64 of this size has no room for bits under 2^-16: adding and taking it away again rounds to such units.
_ROUNDING = 1.5 * 2.0**36
# Blocks of a band matrix that many outputs high waste few products on zeros, and still multiply fast.
_BLOCK = 32


def fold(positions: IntArray, size: int, border: Border) -> IntArray:
    """The positions inside 0 to size - 1 that stand for `positions` anywhere on the line."""
    if border == "nearest" or size == 1:
        return np.clip(positions, 0, size - 1)
    period = 2 * size if border == "reflect" else 2 * size - 2
    wrapped = np.mod(positions, period)
    return np.where(wrapped < size, wrapped, (period - 1 if border == "reflect" else period) - wrapped)


def extend(images: Tensor, reach: int, border: Literal["nearest", "mirror"]) -> Tensor:
    """Images (N, C, H, W) that go on for `reach` pixels beyond each edge."""
    height, width = images.shape[-2:]
    if border == "nearest" or reach < min(height, width):
        return F.pad(images, (reach,) * 4, mode="replicate" if border == "nearest" else "reflect")
    for axis, size in ((-2, height), (-1, width)):
        places = torch.from_numpy(fold(np.arange(-reach, size + reach), size, border))
        images = images.index_select(axis, places.to(images.device))
    return images


def band_matrix(taps: FloatArray, size: int, border: Border) -> FloatArray:
    """The matrix (size, size) whose product with a line is its correlation with the centred `taps`."""
    radius = len(taps) // 2
    matrix = np.zeros((size, size))
    outputs = np.arange(size)
    for offset, weight in zip(range(-radius, radius + 1), taps, strict=True):
        np.add.at(matrix, (outputs, fold(outputs + offset, size, border)), weight)
    return matrix


def gaussian_taps(sigma: float, truncate: float) -> FloatArray:
    """Normalised Gaussian weights out to `truncate` standard deviations, rounded to whole pixels."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return np.ones(1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def in_weight_units(matrix: FloatArray) -> FloatArray:
    """Weights rounded to units, each row adding up to exactly what it did before, so that flat areas stay flat."""
    whole = np.rint(matrix * _WEIGHT_UNITS)
    missing = np.rint(matrix.sum(axis=1) * _WEIGHT_UNITS) - whole.sum(axis=1)
    whole[np.arange(len(whole)), whole.argmax(axis=1)] += missing
    return np.asarray(whole / _WEIGHT_UNITS)


@lru_cache(maxsize=128)
def _gaussian_block(
    sigma: float, truncate: float, border: Border, size: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The matrix that blurs a block of a line, and the places on the line that its first columns stand for."""
    taps = gaussian_taps(sigma, truncate)
    radius = len(taps) // 2
    if _BLOCK + 2 * radius >= size:
        return torch.from_numpy(in_weight_units(band_matrix(taps, size, border))).to(device), None
    block = np.zeros((_BLOCK, _BLOCK + 2 * radius))
    for output in range(_BLOCK):
        block[output, output : output + len(taps)] = taps
    places = fold(np.arange(-radius, size + radius), size, border)
    return torch.from_numpy(in_weight_units(block)).to(device), torch.from_numpy(places).to(device)


def _blur_lines(lines: Tensor, sigma: float, truncate: float, border: Border) -> Tensor:
    """Blur (size, lines), float64, along the first dimension."""
    matrix, places = _gaussian_block(sigma, truncate, border, len(lines), lines.device)
    if places is None:
        return matrix @ lines
    extended = lines.index_select(0, places)
    radius = (matrix.shape[1] - _BLOCK) // 2
    blurred = torch.empty_like(lines)
    for first in range(0, len(lines), _BLOCK):
        outputs = blurred[first : first + _BLOCK]
        used = extended[first : first + len(outputs) + 2 * radius]
        torch.mm(matrix[: len(outputs), : len(used)], used, out=outputs)
    return blurred


def round_to_units(values: Tensor) -> Tensor:
    """Round float64 values in [-256, 256] to multiples of 2^-16, in place."""
    return values.add_(_ROUNDING).sub_(_ROUNDING)


def blur_gaussian(values: Tensor, sigma: float, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Gaussian blur of (N, C, H, W) along both axes, as scipy's `gaussian_filter`.

    Args:
        values: Numbers in [-256, 256], which are rounded to multiples of 2^-16 before they are blurred.
        sigma: Standard deviation in pixels.
        truncate: At how many standard deviations the weights end.
        border: How the images go on beyond their edges.

    Returns:
        The blurred values (N, C, H, W), float64.
    """
    if int(truncate * sigma + 0.5) == 0:
        return values.to(torch.float64, copy=True)
    count, channels, height, width = values.shape
    columns = values.permute(3, 0, 1, 2).to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    if values.is_floating_point():
        round_to_units(columns)
    across = round_to_units(_blur_lines(columns.view(width, -1), sigma, truncate, border))
    rows = across.view(width, count, channels, height).permute(3, 1, 2, 0).reshape(height, -1)
    blurred = _blur_lines(rows, sigma, truncate, border).view(height, count, channels, width)
    return blurred.permute(1, 2, 0, 3)
