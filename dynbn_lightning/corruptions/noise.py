"""Noise: Gaussian, shot, impulse and speckle.

Every function takes images (N, C, H, W), float32 in [0, 1], and returns new ones of the same shape, clipped to [0, 1]
and not yet quantised. The procedures are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

from torch import Tensor

from dynbn_lightning.corruptions.randomness import Draws


def gaussian_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise of standard deviation `scale` to every value."""
    return draws.normal(images.shape[1:]).mul_(scale).add_(images).clamp_(0.0, 1.0)


def shot_noise(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Count photons: a Poisson number with mean `photons` times the value, divided by `photons`."""
    return draws.poisson(images * photons).div_(photons).clamp_(0.0, 1.0)


def impulse_noise(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Replace a `share` of the values, each pixel and channel apart, half of them by 1 and half by 0."""
    chance = draws.uniform(images.shape[1:])
    peppered = images.masked_fill(chance < share / 2, 0.0)
    return peppered.masked_fill_(chance >= 1.0 - share / 2, 1.0)


def speckle_noise(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise of standard deviation `scale` times the value itself."""
    return draws.normal(images.shape[1:]).mul_(scale).mul_(images).add_(images).clamp_(0.0, 1.0)
