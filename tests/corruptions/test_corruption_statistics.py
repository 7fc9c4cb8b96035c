"""The random corruptions against statistics of the published generator's residuals (corrupted minus clean).

Here on a part of the severities and with bounds that one draw of 500 images stays well within.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sample_pictures import RANDOM
from torch import Tensor

from dynbn_lightning.corruptions import corrupt

SIDE = 32
ROWS, COLUMNS = np.mgrid[-SIDE // 2 : SIDE // 2, -SIDE // 2 : SIDE // 2]
RADIUS = np.hypot(ROWS, COLUMNS).astype(int)
RADII = range(SIDE // 2)
PIXELS_AT_RADIUS = np.array([(radius == RADIUS).sum() for radius in RADII])


def residual(corrupted: Tensor, clean: Tensor) -> np.ndarray:
    return (corrupted.int() - clean.int()).numpy().astype(np.float64)


def radial_power(difference: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fftshift(np.fft.fft2(difference.mean(axis=1)), axes=(1, 2))
    power = (np.abs(spectrum) ** 2 / SIDE**2).mean(axis=0)
    return np.array([power[radius == RADIUS].mean() for radius in RADII])


def misfits(difference: np.ndarray, published: dict[str, Any]) -> list[str]:
    """What of a residual is off: mean and std by more than 5 % and a level, weighty power by more than 25 %."""
    found = []
    for what, axes in (("mean", difference.mean(axis=(0, 2, 3))), ("std", difference.std(axis=(0, 2, 3)))):
        expected = np.array(published[f"residual_{what}"])
        allowed = np.maximum(0.05 * np.abs(expected), 1.0)
        if (np.abs(axes - expected) > allowed).any():
            found.append(f"{what} {axes.round(2)} for {expected}")
    expected = np.array(published["residual_radial_power"])
    weight = expected * PIXELS_AT_RADIUS
    weighty = weight > 0.01 * weight.sum()
    # The lowest bin is one number per image, the square of its mean: of little weight, its average over 500 strays.
    weighty[0] &= weight[0] > 0.05 * weight.sum()
    ratio = radial_power(difference)[weighty] / expected[weighty]
    if (np.abs(ratio - 1) > 0.25).any():
        found.append(f"power by {ratio.round(2)}")
    return found


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("name", RANDOM)
def test_residuals_have_the_published_statistics(
    name: str, severity: int, cifar_test_images: Tensor, cifar_statistics: dict[str, Any]
) -> None:
    corrupted = corrupt(cifar_test_images, name, severity, seeds=range(severity * 1000, severity * 1000 + 500))
    assert misfits(residual(corrupted, cifar_test_images), cifar_statistics[f"{name}/{severity}"]) == []


@pytest.mark.parametrize("name", RANDOM)
def test_the_comparison_tells_severities_apart(
    name: str, cifar_test_images: Tensor, cifar_statistics: dict[str, Any]
) -> None:
    corrupted = corrupt(cifar_test_images, name, 2, seeds=range(500))
    assert misfits(residual(corrupted, cifar_test_images), cifar_statistics[f"{name}/5"])


@pytest.mark.parametrize("name", RANDOM)
def test_golden_images_at_224_pixels_are_as_strongly_corrupted(name: str, golden: dict[str, dict[str, Tensor]]) -> None:
    # Severity 5 only: the golden elastic_transform at severities 1 and 2 was made with other constants than published.
    images = golden["imagenet"]
    clean = images["clean"].repeat(3, 1, 1, 1)
    made = residual(corrupt(clean, name, 5, seeds=range(6)), clean).std()
    published = residual(images[name][4], images["clean"]).std()
    # There is one draw for each of two images, and frost depends on which of the photographs it drew.
    assert made == pytest.approx(published, rel=0.3 if name == "frost" else 0.15)


def test_textures_of_frost_are_the_same_every_time() -> None:
    from dynbn_lightning.corruptions.frost_textures import frost_textures

    first = frost_textures(0.2, torch.device("cpu")).clone()
    frost_textures.cache_clear()
    second = frost_textures(0.2, torch.device("cpu"))
    assert torch.equal(first, second)
    assert first.shape == (5, 3, 204, 204)
