"""Weather: snow, frost and fog.

Every function takes images (N, C, H, W), float32 in [0, 1], and returns new ones of the same shape, clipped to [0, 1]
and not yet quantised. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynbn_lightning.corruptions.color import to_gray
from dynbn_lightning.corruptions.frost_textures import crop_textures
from dynbn_lightning.corruptions.geometry import blur_along, zoom_centre
from dynbn_lightning.corruptions.quantization import truncate_to_8_bits
from dynbn_lightning.corruptions.randomness import Draws

_FIRST_DISPLACEMENT = 100.0


def snow(
    images: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Tensor:
    """Whiten the image and add flakes, drawn out by the wind, from above and from below.

    Args:
        images: Images (N, C, H, W).
        draws: Where random numbers come from.
        mean: Mean of the normal noise that becomes the flakes.
        deviation: Standard deviation of that noise.
        zoom: By how much it is magnified.
        threshold: What lies under it is no flake.
        radius: Reach of the motion blur in pixels, see `blur_along`.
        sigma: Standard deviation of the motion blur.
        kept: Share of the image that is not whitened.
    """
    noise = draws.normal((1, *images.shape[2:])).mul_(deviation).add_(mean)
    layer = zoom_centre(noise, zoom)
    layer = truncate_to_8_bits(layer.masked_fill(layer < threshold, 0.0))
    flakes = blur_along(layer, draws.uniform((1,), -135.0, -45.0).squeeze(1), int(radius), sigma)
    white = torch.maximum(images, to_gray(images) * 1.5 + 0.5)
    return (images * kept).add_(white.mul_(1.0 - kept)).add_(flakes).add_(flakes.flip((2, 3))).clamp_(0.0, 1.0)


def frost(images: Tensor, draws: Draws, kept: float, strength: float, texture_scale: float) -> Tensor:
    """Mix with a random crop of one of five ice textures, generated in place of the benchmark's photographs."""
    ice = crop_textures(images, draws, texture_scale)
    return (images * kept).add_(ice.mul_(strength)).clamp_(0.0, 1.0)


def fog(images: Tensor, draws: Draws, density: float, decay: float) -> Tensor:
    """Add a cloud, `density` times a plasma fractal whose amplitude falls by `decay` squared from level to level."""
    height, width = images.shape[-2:]
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    clouds = plasma_fractal(draws, 1 << (max(height, width) - 1).bit_length(), decay)[:, None, :height, :width]
    return (images + clouds * density).mul_(brightest).div_(brightest + density).clamp_(0.0, 1.0)


def plasma_fractal(draws: Draws, size: int, decay: float) -> Tensor:
    """Heights (N, size, size) in [0, 1] by the diamond-square method on a torus; `size` is a power of two."""
    heights = torch.zeros((draws.count, size, size), dtype=torch.float32, device=draws.device)
    step, wobble = size, _FIRST_DISPLACEMENT
    while step >= 2:
        half, cells = step // 2, size // step
        displacement = draws.uniform((3, cells, cells), -1.0, 1.0).mul_(wobble * wobble)
        corners = heights[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)).mul_(0.25).add_(displacement[:, 0])
        heights[:, half::step, half::step] = centres
        sides = centres + centres.roll(1, 1) + corners + corners.roll(-1, 2)
        heights[:, ::step, half::step] = sides.mul_(0.25).add_(displacement[:, 1])
        sides = centres + centres.roll(1, 2) + corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = sides.mul_(0.25).add_(displacement[:, 2])
        step, wobble = half, wobble / decay
    heights -= heights.amin(dim=(1, 2), keepdim=True)
    # A map of a single point is flat and has no highest one.
    return heights.div_(heights.amax(dim=(1, 2), keepdim=True).clamp_(min=1e-30))
