"""Spatter: drops of water or mud on the lens, after Hendrycks and Dietterich (ICLR 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dynbn_lightning.corruptions.color import color_like
from dynbn_lightning.corruptions.constants import by_constants
from dynbn_lightning.corruptions.drops import relief
from dynbn_lightning.corruptions.filters import blur_gaussian
from dynbn_lightning.corruptions.parts import on_levels
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, floor_levels
from dynbn_lightning.corruptions.randomness import Draws

_WATER = (175, 238, 238)
_MUD = (63, 42, 20)
_SOLID_MUD = 0.8

# The blur takes numbers up to 256, more precisely the larger they are. Normal noise comes to 4.
_NOISE_UNITS = 64.0


@by_constants
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

    def splash(levels: Tensor, draws: Draws) -> Tensor:
        noise = draws.normal((1, *levels.shape[2:])).mul_(deviation * _NOISE_UNITS).add_(mean * _NOISE_UNITS)
        layer = blur_gaussian(noise.clamp_(-256.0, 256.0), sigma).div_(_NOISE_UNITS).float().contiguous()
        if mud:
            cover = F.threshold(blur_gaussian((layer > threshold).float(), strength).float(), _SOLID_MUD, 0.0)
            return levels.add_(cover * (color_like(levels, _MUD) - levels))
        drops = floor_levels(F.threshold(layer, threshold, 0.0).mul_(HIGHEST_LEVEL))
        water = relief(drops).mul_(drops)
        # A dry image has no brightest drop to divide by.
        water.div_(water.amax(dim=(2, 3), keepdim=True).clamp_(min=1.0)).mul_(strength)
        return levels.add_(water * color_like(levels, _WATER))

    return on_levels(images, splash, draws, by_layer=True)
