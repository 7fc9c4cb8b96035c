"""Weather: snow, frost and fog.

Every function takes images (N, C, H, W), uint8 or float32 in [0, 1], and returns new ones: uint8 truncated as the
benchmark does, float32 clipped to [0, 1] and not quantised. A constant is a number, or a tensor (N,) with one for each
image. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dynbn_lightning.corruptions.color import to_gray
from dynbn_lightning.corruptions.constants import Constant, by_constants, for_each_image
from dynbn_lightning.corruptions.geometry import blur_along, zoom_centre
from dynbn_lightning.corruptions.parts import on_levels
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, floor_levels
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.textures import Textures

_FIRST_DISPLACEMENT = 100.0


@by_constants
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

    def cover(levels: Tensor, draws: Draws) -> Tensor:
        noise = draws.normal((1, *levels.shape[2:])).mul_(deviation * HIGHEST_LEVEL).add_(mean * HIGHEST_LEVEL)
        layer = floor_levels(F.threshold(zoom_centre(noise, zoom), threshold * HIGHEST_LEVEL, 0.0))
        flakes = blur_along(layer, draws.uniform((1,), -135.0, -45.0).squeeze(1), int(radius), sigma)
        white = torch.maximum(levels, to_gray(levels).mul(1.5).add_(0.5 * HIGHEST_LEVEL))
        return levels.lerp_(white, 1.0 - kept).add_(flakes + flakes.flip((2, 3)))

    return on_levels(images, cover, draws, by_layer=True)


def frost(images: Tensor, draws: Draws, kept: Constant, strength: Constant, textures: Textures) -> Tensor:
    """Mix with a random crop of one of several ice textures, see `frost_textures`."""

    def freeze(levels: Tensor, draws: Draws, kept: Tensor, strength: Tensor) -> Tensor:
        return levels.mul_(kept).add_(textures.crops(levels, draws) * strength)

    return on_levels(images, freeze, draws, for_each_image(kept, images), for_each_image(strength, images))


def fog(images: Tensor, draws: Draws, density: Constant, decay: Constant) -> Tensor:
    """Add a cloud, `density` times a plasma fractal whose amplitude falls by `decay` squared from level to level."""
    height, width = images.shape[-2:]
    size = 1 << (max(height, width) - 1).bit_length()

    def cover(levels: Tensor, draws: Draws, density: Tensor, decay: Tensor) -> Tensor:
        brightest = levels.amax(dim=(1, 2, 3), keepdim=True)
        clouds = plasma_fractal(draws, size, decay)[:, None, :height, :width]
        fogged = levels.add_(clouds.mul(density * HIGHEST_LEVEL))
        return fogged.mul_(brightest / (brightest + density * HIGHEST_LEVEL))

    return on_levels(
        images, cover, draws, for_each_image(density, images), for_each_image(decay, images), by_layer=True
    )


def plasma_fractal(draws: Draws, size: int, decay: Tensor | float) -> Tensor:
    """Heights (N, size, size) in [0, 1] by the diamond-square method on a torus.

    Args:
        draws: Where random numbers come from, N images'.
        size: A power of two.
        decay: By how much the displacements' square root falls from level to level; for all, or (N, 1, 1, 1).
    """
    heights = torch.zeros((draws.count, size, size), dtype=torch.float32, device=draws.device)
    step = size
    wobble: Tensor | float = _FIRST_DISPLACEMENT
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
