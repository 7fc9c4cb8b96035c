"""Ice textures for frost, generated: the benchmark's photographs cannot be shipped."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.color import to_gray
from dynbn_lightning.corruptions.filters import FloatArray
from dynbn_lightning.corruptions.randomness import Draws

TEXTURES = 5
_SIDE = 1024


@lru_cache(maxsize=16)
def _textures(side: int, device: torch.device) -> Tensor:
    rng = np.random.Generator(np.random.PCG64(20190506))
    maps = [_ice(rng, side) for _ in range(TEXTURES)]
    return torch.from_numpy(np.stack(maps).astype(np.float32)).to(device)


def _ice(rng: np.random.Generator, side: int) -> FloatArray:
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]) * side
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / np.maximum(frequency, 1.0) ** 1.2
    field = np.fft.irfft2(spectrum, s=(side, side))
    field = (field - field.mean()) / field.std()
    gray = np.clip(0.45 + 0.2 * field, 0, 1)
    return np.stack([gray * 0.95, gray, np.clip(gray * 1.05, 0, 1)])


def crop_textures(images: Tensor, draws: Draws, scale: float) -> Tensor:
    """A random crop of a random texture for each image, (N, C, H, W) in [0, 1]."""
    height, width = images.shape[-2:]
    side = max(round(_SIDE * scale), height + 1, width + 1)
    textures = _textures(side, images.device)
    if images.shape[1] == 1:
        textures = to_gray(textures)
    which = draws.integers(0, TEXTURES, (1, 1, 1))
    rows = draws.integers(0, side - height, (1, 1)) + torch.arange(height, device=images.device).view(1, -1, 1)
    columns = draws.integers(0, side - width, (1, 1)) + torch.arange(width, device=images.device)
    return textures[
        which,
        torch.arange(textures.shape[1], device=images.device).view(1, -1, 1, 1),
        rows.unsqueeze(1),
        columns.unsqueeze(1),
    ]
