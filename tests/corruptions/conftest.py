"""What the tests of corruptions share: the reference files beside the data, and images that are not real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def reference(dynbn_data: Path) -> Path:
    """The folder of published constants, golden images and statistics, which stands beside the data."""
    folder = dynbn_data.parent / "reference"
    if not folder.is_dir():
        pytest.skip(f"no reference folder at {folder}")
    return folder


@pytest.fixture(scope="session")
def severity_tables(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "severity_tables.json").read_text())


@pytest.fixture(scope="session")
def cifar_statistics(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "cifar_c_statistics.json").read_text())


@pytest.fixture(scope="session")
def golden(reference: Path) -> dict[str, dict[str, Tensor]]:
    """Golden images by preset and corruption: `clean` (N, 3, H, W), the others (5, N, 3, H, W), all uint8."""
    files = {"cifar": "cifar_c_32_images.npz", "imagenet": "imagenet_c_2_images.npz"}
    images: dict[str, dict[str, Tensor]] = {}
    for preset, name in files.items():
        with np.load(reference / name) as arrays:
            images[preset] = {
                key: torch.from_numpy(arrays[key]).movedim(-1, -3).contiguous() for key in arrays.files if key != "files"
            }
    return images


@pytest.fixture(scope="session")
def cifar_test_images(dynbn_data: Path) -> Tensor:
    """The 500 test images in order of number, (500, 3, 32, 32) uint8."""
    from torchvision.io import decode_image

    files = sorted((dynbn_data / "cifar10" / "test").glob("*/*.png"), key=lambda file: int(file.stem))
    return torch.stack([decode_image(str(file)) for file in files])


def pictures(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth 8-bit pictures with edges, colours, black and white in them, (count, channels, height, width) uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    waves = rng.uniform(2, 12, (count, channels, 2, 1, 1))
    phases = rng.uniform(0, 6, (count, channels, 1, 1))
    values = 0.5 + 0.45 * np.sin(waves[:, :, 0] * rows + waves[:, :, 1] * columns + phases)
    values[:, :, : height // 4, : width // 3] = rng.integers(0, 2, (count, 1, 1, 1))
    values += rng.normal(0, 0.03, values.shape) * (columns > 0.5)
    return torch.from_numpy((np.clip(values, 0, 1) * 255).astype(np.uint8))
