"""What the tests of corruptions share: the reference files beside the data, and images that are not real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corruption_fidelity import read_test_images
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
                key: torch.from_numpy(arrays[key]).movedim(-1, -3).contiguous()
                for key in arrays.files
                if key != "files"
            }
    return images


@pytest.fixture(scope="session")
def cifar_test_images(dynbn_data: Path) -> Tensor:
    """The 500 test images in order of number, (500, 3, 32, 32) uint8."""
    return read_test_images(dynbn_data)[0]
