"""Pictures made by a formula, for tests that need no real images, and which corruptions draw at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RANDOM = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "speckle_noise",
    "spatter",
]


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
