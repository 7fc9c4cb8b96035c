"""All that the detector looks at in an image: two kinds of spectrum and two histograms, as one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from dynbn_lightning.detection.detail import detail, log_detail
from dynbn_lightning.detection.histograms import DETAIL_EDGES, LEVEL_EDGES, log_histogram
from dynbn_lightning.detection.spectrum import SPECTRUM_COLUMNS, SPECTRUM_ROWS, log_amplitude_spectrum, pool_spectrum

HIGHEST_LEVEL = 255.0


def opponent_channels(images: Tensor) -> Tensor:
    """Brightness and two colour differences of RGB images; images of other than 3 channels as they are.

    In natural images the three colours rise and fall together. A spectrum of each alone shows mostly that, three
    times; in the differences it is gone, and what noise, compression and blur did to the colours is left.

    Args:
        images: Shape (N, C, H, W), in [0, 1].

    Returns:
        Shape (N, C, H, W): for RGB (r + g + b) / 3, (r - b) / 2 and (r - 2 g + b) / 4.
    """
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)  # spelt out: a matrix product may be rounded to TF32
    return torch.stack([(red + green + blue) / 3, (red - blue) / 2, (red - 2 * green + blue) / 4], dim=1)


def corruption_features(images: Tensor) -> Tensor:
    """Describe images by what corruptions change and content changes little.

    The vector is made of the pooled log-amplitude spectra of the opponent channels and of their log-detail, then the
    log-histograms of the levels and of the detail of each channel. It is computed in float32 (float64 for float64
    images), also under autocast, from pixels rounded to 8 bits: that changes nothing in images as they are stored,
    and takes away what a normalisation and its undoing leave in them, to which high frequencies are sensitive.

    Args:
        images: Shape (N, C, H, W), floating point, in [0, 1].

    Returns:
        Shape (N, `num_features(C, H, W)`).

    Raises:
        DetectorError: If `images` is not a floating-point tensor of that rank, or is empty.
    """
    with torch.autocast(images.device.type, enabled=False):
        pixels = images if images.dtype == torch.float64 else images.float()
        levels = pixels.mul(HIGHEST_LEVEL).round().clamp(0, HIGHEST_LEVEL)
        opponents = opponent_channels(levels / HIGHEST_LEVEL)
        parts = [
            pool_spectrum(log_amplitude_spectrum(opponents)),
            pool_spectrum(log_amplitude_spectrum(log_detail(opponents))),
            log_histogram(levels, LEVEL_EDGES),
            log_histogram(detail(levels).abs(), DETAIL_EDGES),
        ]
        return torch.cat([part.flatten(1).to(pixels.dtype) for part in parts], dim=1)


def num_features(channels: int, height: int, width: int) -> int:
    """The length of the vector that `corruption_features` makes of an image of this size."""
    spectrum = min(SPECTRUM_ROWS, height) * min(SPECTRUM_COLUMNS, width // 2 + 1)
    histograms = len(LEVEL_EDGES) + 1 + len(DETAIL_EDGES) + 1
    return channels * (2 * spectrum + histograms)
