"""What a corruption leaves in an image's Fourier spectrum: the log-amplitude of each spatial frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynbn_lightning.errors import DetectorError

QUANTISATION_NOISE = 1.0 / (255.0 * math.sqrt(12.0))
"""The amplitude that rounding to 8 bits alone leaves at every frequency, under the orthonormal transform.

Rounding errors are uniform over one step of 1/255, so their standard deviation is 1/255/sqrt(12), and an orthonormal
transform spreads white noise evenly without changing its size. Amplitudes below it say nothing about the image: added
before the logarithm, it keeps them from mattering, and the logarithm finite.
"""


def log_amplitude_spectrum(images: Tensor, floor: float = QUANTISATION_NOISE) -> Tensor:
    """The logarithm of the Fourier amplitude of each channel.

    The transform is orthonormal, and the zero frequency stands at row `H // 2`, column 0. Columns of negative
    frequency are left out: for real images they repeat the others. Computed in float32 (float64 for float64
    images), also under autocast.

    Args:
        images: Shape (N, C, H, W), floating point, in [0, 1].
        floor: What is added to the amplitudes before the logarithm, above 0.

    Returns:
        log(amplitude + floor), shape (N, C, H, W // 2 + 1).

    Raises:
        DetectorError: If `images` is not a floating-point tensor of that rank, or is empty.
    """
    check_spectral(images)
    with torch.autocast(images.device.type, enabled=False):
        pixels = images if images.dtype == torch.float64 else images.float()
        # Not `abs`, which guards against overflows that there are none of, at twice the time.
        real, imaginary = torch.view_as_real(torch.fft.rfft2(pixels, norm="ortho")).square().unbind(-1)
        spectrum = (real + imaginary).sqrt_().add_(floor).log_()
        shifted: Tensor = torch.fft.fftshift(spectrum, dim=2)
        return shifted


def check_spectral(images: Tensor) -> None:
    """Raise `DetectorError` if `images` is not a floating-point tensor of shape (N, C, H, W), or is empty."""
    if images.ndim != 4 or not images.is_floating_point() or images.numel() == 0:
        raise DetectorError(
            "a spectrum needs floating-point images of shape (N, C, H, W), at least one, got "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
