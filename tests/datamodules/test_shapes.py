from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dynbn_lightning.datamodules import shapes
from dynbn_lightning.datamodules.shapes import SHAPE_CLASSES, ShapesDataset, shape_images
from dynbn_lightning.errors import DataError

# Change them only where the data set is meant to change: whatever was measured on it changes too.
GOLDEN_MEANS = [[147.5, 108.28, 101.76], [142.18, 119.24, 125.52], [123.8, 144.35, 129.99], [144.82, 125.8, 127.46]]


@pytest.fixture(scope="module")
def train():
    return ShapesDataset("train", size=1000)


def test_items_are_uint8_images_and_labels(train):
    image, label = train[13]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert type(label) is int
    assert train.classes[label] == "triangle"
    assert len(train) == len(train.targets) == 1000
    assert len(train.classes) == 10
    images, labels = next(iter(DataLoader(train, batch_size=7, shuffle=True)))
    assert images.shape == (7, 3, 32, 32)
    assert labels.dtype == torch.int64


def test_every_class_is_equally_frequent(train):
    assert np.bincount(train.targets).tolist() == [100] * 10


def test_the_default_sizes_are_as_documented(monkeypatch):
    monkeypatch.setattr(
        shapes, "shape_images", lambda split, indices, seed: torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)
    )
    assert (len(ShapesDataset()), len(ShapesDataset("test"))) == (6000, 1000)


def test_an_image_depends_on_seed_split_and_index_alone(train):
    assert torch.equal(ShapesDataset("train", size=30).images, train.images[:30])
    # Vectorised code may round differently at another batch size: at most one level of 256, and hardly ever.
    alone = torch.cat([shape_images("train", range(i, i + 1), 0) for i in (0, 7, 501, 999)])
    together = train.images[[0, 7, 501, 999]]
    assert (alone.int() - together.int()).abs().max() <= 1
    assert (alone != together).float().mean() < 1e-3
    torch.manual_seed(5)
    assert torch.equal(ShapesDataset("train", size=30).images, train.images[:30])


def test_images_are_those_of_every_machine_and_version():
    draw = shapes._Draws(0, 0, np.arange(2, dtype=np.uint64))
    # SplitMix64 from 0 begins with 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4 (the published reference's output).
    expected = [((first >> 41) + 0.5) / 2**23 for first in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4)]
    assert draw.uniform(2)[0].tolist() == expected
    means = ShapesDataset("train", size=4).images.float().mean(dim=(2, 3))
    torch.testing.assert_close(means, torch.tensor(GOLDEN_MEANS), atol=0.02, rtol=0)


def test_train_test_and_seeds_share_no_image(train):
    sets = [train.images, ShapesDataset("test", size=1000).images, ShapesDataset("train", size=1000, seed=1).images]
    seen = {image.numpy().tobytes() for images in sets for image in images}
    assert len(seen) == 3000


def test_negative_and_large_seeds_work():
    first, second = (ShapesDataset("train", size=2, seed=seed).images for seed in (-1, 2**64 - 2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "tests"}, "did you mean 'test'"), ({"size": 0}, "at least 1"), ({"size": -3}, "at least 1")],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        ShapesDataset(**arguments)


def test_draws_are_uniform_normal_and_independent():
    draw = shapes._Draws(0, 0, np.arange(20_000, dtype=np.uint64))
    uniform, normal = draw.uniform(4).double(), draw.normal(4).double()
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert (uniform.mean(0) - 0.5).abs().max() < 0.01
    assert (uniform.var(0) - 1 / 12).abs().max() < 0.003
    assert (normal.mean(0)).abs().max() < 0.03
    assert (normal.var(0) - 1).abs().max() < 0.05
    assert torch.isfinite(normal).all()
    both = torch.cat([uniform, normal], dim=1)
    correlation = torch.corrcoef(both.T) - torch.eye(8, dtype=torch.double)
    assert correlation.abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack([uniform[:-1, 0], uniform[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.03


@pytest.mark.parametrize(("label", "area"), [("disk", math.pi * 0.85**2), ("square", 1.48**2)])
def test_coverage_has_the_area_of_the_shape_and_soft_edges(monkeypatch, label, area):
    monkeypatch.setattr(shapes, "RADIUS", (10.0, 10.0))
    count = 200
    draw = shapes._Draws(0, 0, np.arange(count, dtype=np.uint64))
    cover = shapes._coverage(draw, torch.full((count,), SHAPE_CLASSES.index(label)))
    assert cover.min() == 0
    assert cover.max() == 1
    assert ((cover > 0) & (cover < 1)).float().mean() > 0.03  # anti-aliased outline
    assert cover.sum(dim=(1, 2)).mean() == pytest.approx(area * 100, rel=0.03)


def test_shapes_lie_inside_and_differ():
    draw = shapes._Draws(0, 0, np.zeros(10, dtype=np.uint64))
    cover = shapes._coverage(draw, torch.arange(10))  # one draw, so one place, size and turn
    assert (cover.sum(dim=(1, 2)) > 30).all()
    differences = [(cover[i] - cover[j]).abs().sum() for i in range(10) for j in range(i)]
    assert min(differences) > 20


def test_spectra_fall_like_those_of_photographs(train):
    spectrum = torch.fft.rfft2(train.images[:500].float().mean(dim=1)).abs().square().mean(dim=0)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None, :])
    chosen = (frequency > 0.05) & (frequency < 0.4)
    x, y = frequency[chosen].log(), spectrum[chosen].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert -4 < slope < -1.5


def test_few_pixels_are_clipped(train):
    assert ((train.images == 0) | (train.images == 255)).float().mean() < 0.02
