"""The fine detail of an image: what is left when every smooth gradient is taken away."""

from __future__ import annotations

from torch import Tensor

DETAIL_FLOOR = 2.0 / 255.0
"""Added to magnitudes of detail before the logarithm: about what rounding to 8 bits moves them by at most."""


def detail(images: Tensor) -> Tensor:
    """The second difference along both axes, a quarter of it, periodic at the borders.

    It is 0 wherever the image is a sum of a function of the row and one of the column, so plain surfaces and
    straight edges along the axes leave nothing, and white noise of deviation s is left with deviation 1.5 s.

    Args:
        images: Shape (N, C, H, W).

    Returns:
        Shape (N, C, H, W). Exact for whole numbers from 0 to 255.
    """
    # Shifts and not a convolution, which autocast and TF32 would round.
    for dim in (2, 3):
        # In place, on the copies that shifting makes: large batches are slow for the memory that they take anew.
        images = images.roll(1, dim).add_(images.roll(-1, dim)).sub_(images, alpha=2)
    return images.mul_(0.25)


def log_detail(details: Tensor) -> Tensor:
    """The logarithm of the magnitude of detail: where an image is rough, on a scale of ratios.

    Its spectrum shows what the image's own does not: whether the noise is as strong everywhere, is sparse, or goes
    with the brightness, and the period of the blocks that compression and pixelation leave.

    Args:
        details: What `detail` makes of images in [0, 1], or of differences of such; shape (N, C, H, W).

    Returns:
        Shape (N, C, H, W).
    """
    return details.abs().add_(DETAIL_FLOOR).log_()
