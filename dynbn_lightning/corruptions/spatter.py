"""Spatter: drops of water or mud on the lens, after Hendrycks and Dietterich (ICLR 2019)."""

from __future__ import annotations

from torch import Tensor

from dynbn_lightning.corruptions.color import color_like
from dynbn_lightning.corruptions.drops import relief
from dynbn_lightning.corruptions.filters import blur_gaussian
from dynbn_lightning.corruptions.quantization import truncate_to_levels
from dynbn_lightning.corruptions.randomness import Draws

_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_SOLID_MUD = 0.8

# The blur takes values in [-1, 1]; normal noise is brought there, and back, by a power of two, which is exact.
_NOISE_RANGE = 8.0


def spatter(
    images: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Splash water or mud on the images.

    Args:
        images: Images (N, C, H, W), float32 in [0, 1].
        draws: Where random numbers come from.
        mean: Mean of the normal noise that becomes the drops.
        deviation: Standard deviation of that noise.
        sigma: Standard deviation of the blur that joins the noise to drops.
        threshold: What lies under it is dry.
        strength: How bright water is; for mud, the standard deviation of the blur of its outline.
        mud: 1 for mud, 0 for water.

    Returns:
        The images, clipped to [0, 1] and not yet quantised.
    """
    noise = draws.normal((1, *images.shape[2:])).mul_(deviation).add_(mean)
    noise = noise.clamp_(-_NOISE_RANGE, _NOISE_RANGE).div_(_NOISE_RANGE)
    layer = blur_gaussian(noise, sigma).float().mul_(_NOISE_RANGE)
    if mud:
        cover = blur_gaussian((layer > threshold).float(), strength).float()
        cover = cover.masked_fill(cover < _SOLID_MUD, 0.0)
        return (images * (1.0 - cover)).add_(cover * color_like(images, _MUD)).clamp_(0.0, 1.0)
    levels = truncate_to_levels(layer.masked_fill(layer < threshold, 0.0)).contiguous()
    water = relief(levels).mul_(levels)
    # A dry image has no brightest drop to divide by.
    water = water.div_(water.amax(dim=(2, 3), keepdim=True).clamp_(min=1.0)).mul_(strength)
    return (water * color_like(images, _WATER)).add_(images).clamp_(0.0, 1.0)
