"""What the tests of corrupted sets share: folders of small images, and a set as the bytes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynbn_lightning.corrupted_set import CorruptedSet, write_corrupted_set

CORRUPTIONS = ("gaussian_noise", "contrast", "jpeg_compression")
SEVERITIES = (1, 5)


def write_images(folder: Path, size: int = 32, count: int = 3, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size // 4, size // 4, 3)).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03}.png")
    return folder


def write_ice(folder: Path, size: int = 200, level: int = 200) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(level).integers(level - 100, level, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "frost1.png")
    return folder


def write_set(source: Any, output: Path, **options: Any) -> CorruptedSet:
    defaults: dict[str, Any] = {
        "corruptions": CORRUPTIONS,
        "severities": SEVERITIES,
        "batch_size": 4,
        "progress": False,
    }
    return write_corrupted_set(source, output, **{**defaults, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
