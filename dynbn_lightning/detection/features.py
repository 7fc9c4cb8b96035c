"""All that the detector looks at in an image: two kinds of spectrum and two histograms, as one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from dynbn_lightning.detection.detail import detail, log_detail
from dynbn_lightning.detection.histograms import DETAIL_BINS, LEVEL_BINS, log_histogram
from dynbn_lightning.detection.spectrum import check_spectral, log_amplitude_spectrum
from dynbn_lightning.detection.tiles import TILE, cut_tiles

HIGHEST_LEVEL = 255.0
TILES_AT_A_TIME = 64
"""On the CPU: about what its cache holds."""


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
    return torch.stack([(red + green + blue) / 3, (red - blue) * 0.5, (red - 2 * green + blue) * 0.25], dim=1)


def corruption_features(images: Tensor, random_tiles: bool = False) -> Tensor:
    """Describe images by what corruptions change and content changes little.

    The vector is made of the log-amplitude spectra of the opponent channels and of their log-detail, then the
    log-histograms of the levels and of the detail of each channel. Larger images are looked at in tiles (`cut_tiles`):
    spectra are averages over the tiles (Welch's method, IEEE Transactions on Audio and Electroacoustics 1967, on
    logarithms), histograms count the pixels of all tiles. So each feature means the same, a frequency in cycles per
    pixel, and a few tiles cost the same, at any image size.

    It is computed in float32 (float64 for float64 images), also under autocast, from pixels rounded to 8 bits: that
    changes nothing in images as they are stored, and takes away what a normalisation and its undoing leave in them, to
    which high frequencies are sensitive.

    Args:
        images: Shape (N, C, H, W), floating point, in [0, 1].
        random_tiles: Look at tiles drawn with torch's global generator, the same ones in all the images. For fitting on
            few images, which then look different each time; changes nothing in images that are a single tile.

    Returns:
        Shape (N, `num_features(C, H, W)`).

    Raises:
        DetectorError: If `images` is not a floating-point tensor of that rank, or is empty.
    """
    check_spectral(images)
    with torch.autocast(images.device.type, enabled=False):
        tiles = cut_tiles(images, random_tiles)
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return _tile_features(tiles)
        some = max(1, TILES_AT_A_TIME // tiles.shape[1])
        return torch.cat([_tile_features(tiles[first : first + some]) for first in range(0, len(tiles), some)])


def _tile_features(tiles: Tensor) -> Tensor:
    """The features of images that are cut in tiles, (N, T, C, H, W)."""
    images, count, channels, height, width = tiles.shape
    pixels = tiles.reshape(images * count, channels, height, width)
    pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
    levels = pixels.mul(HIGHEST_LEVEL).round_().clamp_(0, HIGHEST_LEVEL)
    details = detail(levels)  # of whole numbers, so exact; opponent channels are sums, so theirs are the sums of these
    rough = log_detail(opponent_channels(details) / HIGHEST_LEVEL)
    parts = [log_amplitude_spectrum(opponent_channels(levels / HIGHEST_LEVEL)), log_amplitude_spectrum(rough)]
    if count > 1:
        parts = [spectrum.view(images, count, *spectrum.shape[1:]).mean(1) for spectrum in parts]
    for values, bins in ((levels, LEVEL_BINS), (details.abs_(), DETAIL_BINS)):
        together = values.view(images, count, channels, height * width).transpose(1, 2)
        parts.append(log_histogram(together, bins))
    return torch.cat([part.flatten(1).to(pixels.dtype) for part in parts], dim=1)


def num_features(channels: int, height: int, width: int) -> int:
    """The length of the vector that `corruption_features` makes of an image of this size."""
    spectrum = min(TILE, height) * (min(TILE, width) // 2 + 1)
    return channels * (2 * spectrum + LEVEL_BINS.size + DETAIL_BINS.size)


def split_features(features: Tensor, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The spectra, shape (N, 2 channels, rows, columns), and the histograms, shape (N, bins), in such vectors."""
    rows, columns = min(TILE, height), min(TILE, width) // 2 + 1
    spectra, histograms = features.tensor_split([2 * channels * rows * columns], dim=1)
    return spectra.reshape(-1, 2 * channels, rows, columns), histograms
