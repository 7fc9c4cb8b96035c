"""Frost with photographs of one's own: crops of them as the benchmark takes them, and clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sample_pictures import pictures

from dynbn_lightning.corruptions import PRESETS, corrupt
from dynbn_lightning.errors import CorruptionError


def save_photograph(path: Path, height: int, width: int, channel: int) -> np.ndarray:
    """A photograph whose every pixel tells where it is, and which photograph it is by its brightest channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    levels = np.stack([rows % 200, columns % 200, np.full_like(rows, 10)], axis=-1).astype(np.uint8)
    levels[..., 2] = 100 + 20 * channel
    Image.fromarray(levels).save(path)
    return levels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(1, 6):
        save_photograph(tmp_path / f"frost{number}.png", 400 + 10 * number, 500, number)
    save_photograph(tmp_path / "frost6.png", 400, 500, 7)
    (tmp_path / "readme.txt").write_text("no photograph")
    return tmp_path


def test_crops_are_of_the_photographs(folder: Path) -> None:
    images = torch.zeros(60, 3, 224, 224, dtype=torch.uint8)
    made = corrupt(images, "frost", 1, "imagenet", seeds=range(60), frost_textures=folder)
    strength = PRESETS["imagenet"].constants("frost", 1)[1]
    numbers = ((made[:, 2, 0, 0] / strength - 100) / 20).round()
    assert sorted(numbers.unique().tolist()) == [1, 2, 3, 4, 5], "the sixth is never drawn"
    # Rows of a crop follow one another as in the photograph.
    corner = made[:, 0, 0, 0].float() / strength
    lower = (corner.round() + 100) % 200
    assert ((made[:, 0, 100, 0].float() / strength - lower).abs() <= 3).float().mean() > 0.9
    assert len(made.flatten(1).unique(dim=0)) == 60, "crops differ"


def test_small_images_get_small_textures(folder: Path) -> None:
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    made = corrupt(images, "frost", 5, "cifar", seeds=range(20), frost_textures=folder).float()
    strength = PRESETS["cifar"].constants("frost", 5)[1]
    # Scaled by 0.2, neighbours are five rows of the photograph apart.
    steps = made[:, 0].diff(dim=1)[:, :, 0] / strength
    assert steps.median() == pytest.approx(5, abs=3)


def test_they_take_the_place_of_generated_ones(folder: Path) -> None:
    images = pictures(3, 3, 32, 32)
    own = corrupt(images, "frost", 3, seeds=range(3), frost_textures=str(folder))
    assert not torch.equal(own, corrupt(images, "frost", 3, seeds=range(3)))
    assert torch.equal(own, corrupt(images, "frost", 3, seeds=range(3), frost_textures=folder))
    grey = corrupt(images[:, :1], "frost", 3, seeds=range(3), frost_textures=folder)
    assert grey.shape == (3, 1, 32, 32)


def test_what_cannot_be_used_is_refused(folder: Path, tmp_path: Path) -> None:
    images = pictures(1, 3, 32, 32)
    for nothing in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(CorruptionError, match="there are no frost textures at"):
            corrupt(images, "frost", 1, frost_textures=nothing)
    with pytest.raises(CorruptionError, match="500 x 410 pixels after scaling and the images are 600 x 500"):
        corrupt(pictures(40, 3, 500, 600), "frost", 1, frost_textures=folder)
    (folder / "frost0.png").write_text("no picture")
    with pytest.raises(CorruptionError, match=r"frost0\.png cannot be read"):
        corrupt(images, "frost", 1, frost_textures=folder)
    assert corrupt(images, "fog", 1, frost_textures=tmp_path / "nowhere").shape == images.shape
