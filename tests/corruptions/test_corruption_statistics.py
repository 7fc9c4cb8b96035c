"""The random corruptions against statistics of the published generator's residuals (corrupted minus clean)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from corruption_fidelity import SEEDS, ResidualStatistics, draw_corruption, misfits, residual_statistics
from sample_pictures import RANDOM
from torch import Tensor

from dynbn_lightning.corruptions import SEVERITIES, corrupt
from dynbn_lightning.corruptions.digital import elastic_transform
from dynbn_lightning.corruptions.randomness import Draws

Golden = dict[str, dict[str, Tensor]]

# They differ in their reach alone, where the weights of both have long come to nothing.
ALIKE_IN_MOTION = {3, 4}


@pytest.fixture(scope="module")
def statistics_of(cifar_test_images: Tensor) -> Callable[[str, int], list[ResidualStatistics]]:
    """The statistics of every draw of a cell, drawn once."""

    @cache
    def statistics(name: str, severity: int) -> list[ResidualStatistics]:
        draws = draw_corruption(cifar_test_images, name, severity, SEEDS)
        return [residual_statistics(draw, cifar_test_images) for draw in draws]

    return statistics


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_residuals_have_the_published_statistics(
    name: str,
    severity: int,
    statistics_of: Callable[[str, int], list[ResidualStatistics]],
    cifar_statistics: dict[str, Any],
) -> None:
    assert misfits(statistics_of(name, severity), cifar_statistics[f"{name}/{severity}"]) == []


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", RANDOM)
def test_the_comparison_tells_severities_apart(
    name: str,
    severity: int,
    statistics_of: Callable[[str, int], list[ResidualStatistics]],
    cifar_statistics: dict[str, Any],
) -> None:
    for other in SEVERITIES:
        if other != severity and not (name == "motion_blur" and {severity, other} == ALIKE_IN_MOTION):
            assert misfits(statistics_of(name, severity), cifar_statistics[f"{name}/{other}"]), other


def deviation(corrupted: Tensor, clean: Tensor) -> float:
    """The standard deviation of the residual within an image, over all images (..., 3, H, W)."""
    residual = corrupted.float() - clean.float()
    return float(residual.flatten(-3).var(dim=-1).mean().sqrt())


# Each golden image is a single draw. Left out are what can't be compared: elastic_transform, made with other constants,
# see below; and spatter at severity 1, where both draws are among the driest 4 % of the published generator's own (100
# draws of it: 6.0 levels with a standard deviation of 1.8, ours 6.1 and 1.7, the golden images 2.3).
COMPARABLE = [
    (name, severity)
    for name in RANDOM
    for severity in SEVERITIES
    if name != "elastic_transform" and (name, severity) != ("spatter", 1)
]


@pytest.mark.parametrize(("name", "severity"), COMPARABLE)
def test_golden_images_at_224_pixels_are_as_strongly_corrupted(name: str, severity: int, golden: Golden) -> None:
    images = golden["imagenet"]
    clean = images["clean"].repeat(4, 1, 1, 1)
    made = deviation(corrupt(clean, name, severity, seeds=range(len(clean))), clean)
    published = deviation(images[name][severity - 1], images["clean"])
    # Frost depends on which of the photographs it drew.
    assert made == pytest.approx(published, rel=0.3 if name == "frost" else 0.15)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_golden_images_at_224_pixels_are_displaced_as_far(severity: int, golden: Golden) -> None:
    # The package that made them has constants of its own for elastic_transform, by the side of the image: a field of
    # 0.5 % smoothed by 1 % and multiplied by these, and no tilt.
    multiple = (12.5, 16.25, 21.25, 25.0, 30.0)[severity - 1]
    clean = golden["imagenet"]["clean"]
    side = clean.shape[-1]
    draws = Draws(len(clean), torch.device("cpu"), seeds=range(len(clean)))
    made = elastic_transform(clean.float() / 255, draws, multiple * 0.005 * side, 0.01 * side, 0.0)
    published = deviation(golden["imagenet"]["elastic_transform"][severity - 1], clean)
    assert deviation(made * 255, clean) == pytest.approx(published, rel=0.05)


def test_textures_of_frost_are_the_same_every_time() -> None:
    from dynbn_lightning.corruptions.frost_textures import frost_textures

    first = frost_textures(0.2, torch.device("cpu")).clone()
    frost_textures.cache_clear()
    second = frost_textures(0.2, torch.device("cpu"))
    assert torch.equal(first, second)
    assert first.shape == (5, 3, 204, 204)
