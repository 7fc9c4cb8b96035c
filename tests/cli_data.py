"""What the tests of the `dynbn` command share: a folder of tiny images with a network's checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dynbn_lightning.models import cifar_resnet8

DATA = ["--corruptions", "gaussian_noise,contrast", "--severities", "3,5", "--batch-size", "16"]


def write_folder(folder: Path) -> Path:
    """Images of two classes, dark and bright, and a checkpoint of a narrow network."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 6)):
        for name, level in (("dark", 60), ("bright", 180)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = (level + 20 * rng.standard_normal((8, 8, 3))).repeat(4, 0).repeat(4, 1).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number:03}.png")
    torch.manual_seed(0)
    torch.save({"state_dict": cifar_resnet8(num_classes=2, width=4).state_dict()}, folder / "net.pt")
    return folder


def model_options(folder: Path) -> list[str]:
    return ["--model", "cifar_resnet8", "--checkpoint", str(folder / "net.pt"), "--source", str(folder)]
