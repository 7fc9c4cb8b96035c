"""Linear filters as exact matrix products: what comes out of an image never depends on its batch.

A blur along one axis, with its border folded in, is a small matrix. Floating-point products depend, in the last bit, on
the order in which a library adds, and that order changes with the size of the batch and the number of threads;
truncation to 8 bits would make a whole level of such a bit. So pixels and weights are rounded to whole numbers of small
units and multiplied in float64, where all the sums are exact: 24 bits for a pixel (the levels of an 8-bit image are
whole numbers of units), 28 for a weight and less than 53 for any sum of their products, since the weights of an output
are positive and add up to one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Border = Literal["nearest", "reflect", "mirror"]
"""How an image goes on beyond its edge: with the edge repeated, reflected edge included, or reflected without it."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PIXEL_UNITS = 255 * 2.0**16
_WEIGHT_UNITS = 2.0**28


def fold(positions: IntArray, size: int, border: Border) -> IntArray:
    """The positions inside 0 to size - 1 that stand for `positions` anywhere on the line."""
    if border == "nearest" or size == 1:
        return np.clip(positions, 0, size - 1)
    period = 2 * size if border == "reflect" else 2 * size - 2
    wrapped = np.mod(positions, period)
    return np.where(wrapped < size, wrapped, (period - 1 if border == "reflect" else period) - wrapped)


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
    """Whole numbers of weight units, each row adding up to exactly what it did before, so that flat areas stay flat."""
    whole = np.rint(matrix * _WEIGHT_UNITS)
    missing = np.rint(matrix.sum(axis=1) * _WEIGHT_UNITS) - whole.sum(axis=1)
    whole[np.arange(len(whole)), whole.argmax(axis=1)] += missing
    return np.asarray(whole)


@lru_cache(maxsize=128)
def _gaussian_matrix(sigma: float, truncate: float, border: Border, size: int, device: torch.device) -> Tensor:
    matrix = in_weight_units(band_matrix(gaussian_taps(sigma, truncate), size, border))
    return torch.from_numpy(np.ascontiguousarray(matrix.T)).to(device)


def in_pixel_units(images: Tensor) -> Tensor:
    """Values in [-1, 1] as whole numbers of pixel units, in float64."""
    return images.to(torch.float64).mul_(PIXEL_UNITS).round_()


def exact_product(units: Tensor, transposed_matrix: Tensor) -> Tensor:
    """Pixel units (..., size) times a matrix in weight units, without rounding; the result is in pixel units."""
    return torch.matmul(units, transposed_matrix).mul_(1.0 / _WEIGHT_UNITS)


def apply_along_both_axes(images: Tensor, row_matrix: Tensor, column_matrix: Tensor) -> Tensor:
    """Filter (..., H, W) along H and W by transposed matrices in weight units; the result is float64."""
    across = exact_product(in_pixel_units(images), column_matrix).round_()
    both = exact_product(across.transpose(-1, -2), row_matrix)
    return both.div_(PIXEL_UNITS).transpose(-1, -2)


def blur_gaussian(images: Tensor, sigma: float, truncate: float = 4.0, border: Border = "nearest") -> Tensor:
    """Gaussian blur of (..., H, W), values in [-1, 1], along both axes; the result is float64."""
    height, width = images.shape[-2:]
    if int(truncate * sigma + 0.5) == 0:
        return images.to(torch.float64)
    rows = _gaussian_matrix(sigma, truncate, border, height, images.device)
    columns = _gaussian_matrix(sigma, truncate, border, width, images.device)
    return apply_along_both_axes(images, rows, columns)
