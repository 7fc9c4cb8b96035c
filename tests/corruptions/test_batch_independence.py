"""With seeds, what comes out of an image depends on that image and its seed alone, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from sample_pictures import pictures
from torch import Tensor

from dynbn_lightning.corruptions import CORRUPTIONS, corrupt


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_independent(images: Tensor, name: str, severity: int, preset: str, sizes: tuple[int, ...]) -> None:
    # Unquantised, so that a difference in the last bit shows.
    seeds = [7 * image + 3 for image in range(len(images))]
    torch.set_num_threads(1)
    together = corrupt(images, name, severity, preset, seeds=seeds, quantize=False)
    for size in sizes:
        for first in (0, len(images) // 2, len(images) - size):
            part = slice(first, first + size)
            alone = corrupt(images[part], name, severity, preset, seeds=seeds[part], quantize=False)
            assert torch.equal(alone, together[part]), f"batches of {size}"
    torch.set_num_threads(2)
    turned = corrupt(images.flip(0), name, severity, preset, seeds=seeds[::-1], quantize=False)
    assert torch.equal(turned.flip(0), together), "another order and two threads"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("severity", "count"), [(1, 20), (3, 64), (5, 20)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_comes_out_the_same_in_every_batch(name: str, severity: int, count: int) -> None:
    assert_independent(pictures(count, 3, 32, 32).float() / 255, name, severity, "cifar", (1, 3, 17))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_odd_sizes_and_values_between_the_levels(name: str) -> None:
    images = torch.rand((11, 1, 37, 29), generator=torch.Generator().manual_seed(0))
    assert_independent(images, name, 2, "tiny_imagenet", (1, 4))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_large_images(name: str) -> None:
    assert_independent(pictures(3, 3, 224, 224).float() / 255, name, 3, "imagenet", (1, 2))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seeds_may_be_a_tensor_and_large_or_negative(name: str) -> None:
    images = pictures(3, 3, 16, 16)
    seeds = [0, 2**63 - 1, -5]
    expected = corrupt(images, name, 3, seeds=seeds)
    assert torch.equal(corrupt(images, name, 3, seeds=torch.tensor(seeds)), expected)
