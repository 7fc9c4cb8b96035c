"""Digital: brightness, contrast, saturation, pixelation, JPEG compression and elastic deformation.

Every function takes images (N, C, H, W), float32 in [0, 1], and returns new ones of the same shape, clipped to [0, 1]
and not yet quantised. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dynbn_lightning.corruptions.color import from_hsv, to_hsv
from dynbn_lightning.corruptions.filters import blur_gaussian
from dynbn_lightning.corruptions.geometry import sample_bilinear
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, truncate_to_levels
from dynbn_lightning.corruptions.randomness import Draws

_MEAN_UNITS = 2.0**32
_FAR = 2.0**18
_RESAMPLING_UNITS = 2.0**22


def brightness(images: Tensor, shift: float) -> Tensor:
    """Add `shift` to the value (the V of HSV); for images of one channel that is their only channel."""
    if images.shape[1] == 1:
        return (images + shift).clamp_(0.0, 1.0)
    hue, saturation, value = to_hsv(images)
    return from_hsv(hue, saturation, value.add_(shift).clamp_(0.0, 1.0))


def contrast(images: Tensor, factor: float) -> Tensor:
    """Shrink the distance of every value to the mean of its image and channel by `factor`."""
    # Whole numbers add up exactly in any order, so that the mean of an image does not depend on its batch.
    units = (images.double() * _MEAN_UNITS).round_().to(torch.int64).sum(dim=(2, 3), keepdim=True)
    mean = (units.double() / (images.shape[2] * images.shape[3] * _MEAN_UNITS)).float()
    return (images - mean).mul_(factor).add_(mean).clamp_(0.0, 1.0)


def saturate(images: Tensor, factor: float, shift: float) -> Tensor:
    """Multiply the saturation (the S of HSV) by `factor` and add `shift`; images of one channel have none and stay."""
    if images.shape[1] == 1:
        return images.clone()
    hue, saturation, value = to_hsv(images)
    return from_hsv(hue, saturation.mul_(factor).add_(shift).clamp_(0.0, 1.0), value)


@lru_cache(maxsize=128)
def _box_matrix(size: int, resized: int, device: torch.device) -> Tensor:
    """The transposed matrix that resamples a line with a box filter, its weights in whole units of 22 bits."""
    scale = size / resized
    width = max(scale, 1.0)
    centres = (np.arange(resized) + 0.5) * scale
    first = np.maximum(np.floor(centres - width / 2 + 0.5), 0)
    last = np.minimum(np.floor(centres + width / 2 + 0.5), size)
    pixels = np.arange(size)
    offsets = (pixels - centres[:, None] + 0.5) / width
    inside = (pixels >= first[:, None]) & (pixels < last[:, None]) & (offsets > -0.5) & (offsets <= 0.5)
    weights = inside / inside.sum(axis=1, keepdims=True)
    return torch.from_numpy(np.ascontiguousarray(np.rint(weights * _RESAMPLING_UNITS).T)).to(device)


def _resample_box(levels: Tensor, height: int, width: int) -> Tensor:
    """Resize levels (float64) to (N, C, height, width), rounding to whole levels after each axis as 8-bit images do."""
    for size in (width, height):
        matrix = _box_matrix(levels.shape[-1], size, levels.device)
        levels = torch.matmul(levels, matrix).mul_(1.0 / _RESAMPLING_UNITS).add_(0.5).floor_()
        levels = levels.clamp_(0.0, HIGHEST_LEVEL).transpose(-1, -2)
    return levels


def pixelate(images: Tensor, factor: float) -> Tensor:
    """Shrink to int(size * factor) along each axis with a box filter, and enlarge again."""
    height, width = images.shape[-2:]
    levels = truncate_to_levels(images).double()
    small = _resample_box(levels, max(int(height * factor), 1), max(int(width * factor), 1))
    return _resample_box(small, height, width).float().div_(HIGHEST_LEVEL)


def jpeg_compression(images: Tensor, quality: float) -> Tensor:
    """Write as JPEG at `quality` and read again, image by image; from an accelerator by way of the host's memory."""
    levels = truncate_to_levels(images).to(torch.uint8).movedim(1, -1).cpu().contiguous().numpy()
    if images.shape[1] == 1:
        levels = levels[..., 0]
    decoded = torch.from_numpy(np.stack([_through_jpeg(image, int(quality)) for image in levels]))
    return decoded.to(images.device).view(len(images), *images.shape[2:], -1).movedim(-1, 1).float().div_(HIGHEST_LEVEL)


def _through_jpeg(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    # Pillow and not torchvision.io, whose coding of images is deprecated.
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


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
    rows, columns = _affine_positions(draws.uniform((3, 2), -jitter, jitter).double(), height, width)
    tilted = sample_bilinear(images, rows, columns, "mirror")
    field = draws.uniform((2, height, width), -1.0, 1.0)
    if strength == 0.0:
        return tilted.clamp_(0.0, 1.0)
    field = blur_gaussian(field, smoothness, truncate=3.0, border="reflect").mul(strength).float()
    rows = field[:, 0] + torch.arange(height, device=images.device).view(-1, 1)
    columns = field[:, 1] + torch.arange(width, device=images.device)
    return sample_bilinear(tilted, rows, columns, "reflect").clamp_(0.0, 1.0)


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
    columns = (yy * x - xy * y) / determinant + left
    rows = (xx * y - yx * x) / determinant + top
    return _to_32nds(rows), _to_32nds(columns)


def _to_32nds(positions: Tensor) -> Tensor:
    # A map that folds a tiny image flat sends pixels to infinity.
    return (positions * 32 + 0.5).floor_().div_(32).clamp_(-_FAR, _FAR).float()
