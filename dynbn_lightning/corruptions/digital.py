"""Digital: contrast, pixelation, JPEG compression and elastic deformation.

Every function takes images (N, C, H, W), uint8 or float32 in [0, 1], and returns new ones: uint8 truncated as the
benchmark does, float32 clipped to [0, 1] and not quantised. A constant is a number, or a tensor (N,) with one for each
image. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dynbn_lightning.corruptions.constants import Constant, by_constants, for_each_image
from dynbn_lightning.corruptions.filters import blur_gaussian
from dynbn_lightning.corruptions.geometry import sample_bilinear
from dynbn_lightning.corruptions.parts import on_levels, on_pixels
from dynbn_lightning.corruptions.quantization import to_floats, truncate_to_uint8
from dynbn_lightning.corruptions.randomness import Draws

# Means are taken of whole numbers of this many units a level, which add up exactly in any order.
_MEAN_UNITS = 2.0**20
# Pillow's weights for resampling have 22 bits after the point.
_RESAMPLING_BITS = 22
# The blur takes numbers up to 256; a field in [-1, 1] is brought near that, for the precision.
_FIELD_UNITS = 128.0
_FAR = 2.0**18


def contrast(images: Tensor, factor: Constant) -> Tensor:
    """Shrink the distance of every value to the mean of its image and channel by `factor`."""
    values = images.shape[2] * images.shape[3]

    def shrink(levels: Tensor, factor: Tensor) -> Tensor:
        units = levels.to(torch.float64).mul_(_MEAN_UNITS).round_()
        mean = units.sum(dim=(2, 3), keepdim=True).div_(values * _MEAN_UNITS).to(torch.float32)
        return levels.sub_(mean).mul_(factor).add_(mean)

    return on_levels(images, shrink, for_each_image(factor, images))


@lru_cache(maxsize=128)
def _box_taps(size: int, resized: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For resampling a line with a box filter: the places (taps, resized) and their weights in whole units, int32."""
    scale = size / resized
    width = max(scale, 1.0)
    centres = (np.arange(resized) + 0.5) * scale
    first = np.maximum(np.floor(centres - width / 2 + 0.5), 0)
    last = np.minimum(np.floor(centres + width / 2 + 0.5), size)
    taps = int((last - first).max())
    places = first + np.arange(taps)[:, None]
    offsets = (places - centres + 0.5) / width
    inside = (places < last) & (offsets > -0.5) & (offsets <= 0.5)
    weights = np.rint(inside / inside.sum(axis=0) * 2.0**_RESAMPLING_BITS).astype(np.int32)
    used = np.flatnonzero(weights.any(axis=1))
    places = np.minimum(places[used], size - 1).astype(np.int64)
    return torch.from_numpy(places).to(device), torch.from_numpy(weights[used]).to(device)


def _resample_rows(levels: Tensor, size: int) -> Tensor:
    """Resize int32 levels (N, C, H, W) to (N, C, size, W) with a box filter, rounding as 8-bit images do."""
    places, weights = _box_taps(levels.shape[-2], size, levels.device)
    if len(places) == 1:
        return levels.index_select(-2, places[0])
    total = torch.full((*levels.shape[:-2], size, levels.shape[-1]), 1 << (_RESAMPLING_BITS - 1), dtype=torch.int32)
    total = total.to(levels.device)
    for place, weight in zip(places, weights, strict=True):
        total += levels.index_select(-2, place).mul_(weight.unsqueeze(-1))
    return total.bitwise_right_shift_(_RESAMPLING_BITS)


@by_constants
def pixelate(images: Tensor, factor: float) -> Tensor:
    """Shrink to int(size * factor) along each axis with a box filter, and enlarge again; floats are truncated first."""
    height, width = images.shape[-2:]

    def resample(pixels: Tensor) -> Tensor:
        levels = pixels if pixels.dtype == torch.uint8 else truncate_to_uint8(pixels)
        # Rows are resampled many times faster than columns, which are therefore made rows.
        columns = _resample_rows(
            levels.mT.to(torch.int32, memory_format=torch.contiguous_format), max(int(width * factor), 1)
        )
        small = _resample_rows(columns.mT.contiguous(), max(int(height * factor), 1))
        columns = _resample_rows(small.mT.contiguous(), width)
        enlarged = _resample_rows(columns.mT.contiguous(), height)
        return enlarged.to(torch.uint8) if pixels.dtype == torch.uint8 else to_floats(enlarged, pixels.dtype)

    return on_pixels(images, resample)


@by_constants
def jpeg_compression(images: Tensor, quality: float) -> Tensor:
    """Write as JPEG at `quality` and read again; floats are truncated first.

    Pillow does that image by image in the host's memory, which an accelerator has to be waited for.
    """
    if images.device.type != "cpu":
        return jpeg_compression(images.cpu(), quality).to(images.device)

    def compress(pixels: Tensor) -> Tensor:
        levels = pixels if pixels.dtype == torch.uint8 else truncate_to_uint8(pixels)
        made = torch.from_numpy(np.stack([_through_jpeg(image, int(quality)) for image in levels.numpy()]))
        return made if pixels.dtype == torch.uint8 else to_floats(made, pixels.dtype)

    return on_pixels(images, compress)


def _through_jpeg(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """One image (C, H, W); band by band, as Pillow brings them together faster than torch or numpy could."""
    bands = [Image.fromarray(band) for band in image]
    file = io.BytesIO()
    # Pillow and not torchvision.io, whose coding of images is deprecated.
    (Image.merge("RGB", bands) if len(bands) == 3 else bands[0]).save(file, "JPEG", quality=quality)
    with Image.open(file, formats=("JPEG",)) as decoded:
        return np.stack([np.asarray(band) for band in decoded.split()])


@by_constants
def elastic_transform(images: Tensor, draws: Draws, strength: float, smoothness: float, jitter: float) -> Tensor:
    """Tilt by a random affine map, then displace every pixel by a smooth random field.

    Args:
        images: Images (N, C, H, W).
        draws: Where random numbers come from.
        strength: What the field, uniform in [-1, 1] before it is smoothed, is multiplied by; in pixels.
        smoothness: Standard deviation of the Gaussian that smooths the field; 0 leaves it as it is.
        jitter: How far, in pixels, each of three corner points of the centred square may move along each axis.
    """
    height, width = images.shape[-2:]

    def deform(levels: Tensor, draws: Draws) -> Tensor:
        rows, columns = _affine_positions(draws.uniform((3, 2), -jitter, jitter).double(), height, width)
        tilted = sample_bilinear(levels, rows, columns, "mirror")
        if strength == 0.0:
            return tilted
        field = draws.uniform((2, height, width), -_FIELD_UNITS, _FIELD_UNITS)
        field = blur_gaussian(field, smoothness, truncate=3.0, border="reflect").mul_(strength / _FIELD_UNITS).float()
        rows = field[:, 0].add_(torch.arange(height, device=levels.device).view(-1, 1))
        columns = field[:, 1].add_(torch.arange(width, device=levels.device))
        return sample_bilinear(tilted, rows, columns, "reflect")

    return on_levels(images, deform, draws)


def _affine_positions(moves: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where to sample for the affine map that moves three corners of the centred square.

    Args:
        moves: How far, (N, 3, (x, y)) float64, the corners at the lower right, upper right and upper left go.
        height: Height of the images.
        width: Width of the images.

    Returns:
        Rows and columns (N, H, W) of the pixels' origins, to a 32nd of a pixel as in the benchmark's warp.
    """
    half = min(height, width) // 3
    left, top = width // 2 - half, height // 2 - half
    lower_right, upper_right, upper_left = moves.view(-1, 3, 2, 1, 1).unbind(1)
    # The square's sides are parallel to the axes: what a step along x or y becomes is read off its sides.
    side = max(2 * half, 1)
    step_x = (upper_right - upper_left) / side
    step_y = (lower_right - upper_right) / side
    xx, yx = step_x[:, 0] + 1, step_x[:, 1]
    xy, yy = step_y[:, 0], step_y[:, 1] + 1
    determinant = xx * yy - xy * yx
    x = torch.arange(width, device=moves.device) - left - upper_left[:, 0]
    y = torch.arange(height, device=moves.device).view(-1, 1) - top - upper_left[:, 1]
    columns = _sum_to_32nds(yy / determinant * x + left, -xy / determinant * y)
    rows = _sum_to_32nds(xx / determinant * y + top, -yx / determinant * x)
    return rows, columns


def _sum_to_32nds(first: Tensor, second: Tensor) -> Tensor:
    thirty_seconds = (first * 32 + 0.5).add(second * 32).floor_().to(torch.float32)
    # A map that folds a tiny image flat sends pixels to infinity.
    return thirty_seconds.div_(32).clamp_(-_FAR, _FAR)
