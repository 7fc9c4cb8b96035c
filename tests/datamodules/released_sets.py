"""Small sets in the layouts of the released ones, of random pixels: what the tests of their readers share."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
NAMES = tuple(f"n0{number}/ILSVRC_{place}" for number in (3, 1, 2) for place in (20, 10))
"""Six images of three classes, not in order."""


def write_arrays(
    folder: Path,
    corruptions: Sequence[str] = ("fog", "contrast"),
    count: int = 12,
    dtype: Any = np.uint8,
    size: int = 32,
) -> dict[str, Pixels]:
    """The layout of CIFAR-10-C; image i has label 3 i % 10."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    written = {name: rng.integers(0, 256, (5 * count, size, size, 3), dtype=np.uint8) for name in corruptions}
    for name, array in written.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "labels.npy", np.tile(labels_of(count), 5).astype(dtype))
    return written


def labels_of(count: int) -> NDArray[np.int64]:
    return np.arange(count) * 3 % 10


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, labels: Sequence[int]) -> Pixels:
    """torchvision's test set of CIFAR-10 with these labels; returns its pixels, (N, 32, 32, 3)."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(77).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    content = {"data": pixels, "labels": [int(label) for label in labels]}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    # torchvision compares with the checksums of the published files, which these are not.
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    images: Pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images


def write_folders(
    folder: Path,
    corruptions: Sequence[str] = ("fog", "contrast"),
    names: Sequence[str] = NAMES,
    size: int = 32,
    suffix: str = ".png",
    severities: Sequence[int] = (1, 2, 3, 4, 5),
) -> dict[tuple[str, str], Pixels]:
    """The layout of ImageNet-C, lossless: (cell, name) -> pixels."""
    rng = np.random.default_rng(size)
    written = {}
    for cell in (f"{name}/{severity}" for name in corruptions for severity in severities):
        for name in names:
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            save(folder / cell / (name + suffix), pixels)
            written[cell, name] = pixels
    return written


def write_clean(folder: Path, names: Sequence[str] = NAMES, size: int = 32, suffix: str = ".bmp") -> dict[str, Pixels]:
    """A folder of clean images, `CLASS/NAME`, lossless."""
    rng = np.random.default_rng(1000 + size)
    written = {name: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in names}
    for name, pixels in written.items():
        save(folder / (name + suffix), pixels)
    return written


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def chw(pixels: Pixels) -> torch.Tensor:
    """(H, W, 3) as a tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
