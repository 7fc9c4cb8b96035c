"""How deep water drops look: their outlines found, distances to the outlines, and a relief made of the distances.

Everything here is on layers (N, 1, H, W) of whole numbers held as float32, so that it is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_FARTHEST = 20
_DIAGONAL_STEP = 1.4
_KNIGHT_STEP = 2.1969
_SLACK = 1e-4
_STEPS_BETWEEN_LOOKS = 4
# Tangents of 22.5 and 67.5 degrees, which part horizontal, diagonal and vertical gradients, in 1 / 2^15.
_TANGENT_UNITS = 1 << 15
_TANGENT_22 = 13573
_TANGENT_67 = _TANGENT_22 + 2 * _TANGENT_UNITS
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def _window(padded: Tensor, row: int, column: int) -> Tensor:
    """The neighbours at offset (row - 1, column - 1) of the pixels of an image that was padded by one."""
    height, width = padded.shape[-2] - 2, padded.shape[-1] - 2
    return padded[..., row : row + height, column : column + width]


def _mirrored(layers: Tensor) -> Tensor:
    # An axis of a single pixel has nothing to mirror.
    for axis, pad in ((-2, (0, 0, 1, 1)), (-1, (1, 1, 0, 0))):
        layers = F.pad(layers, pad, mode="reflect" if layers.shape[axis] > 1 else "replicate")
    return layers


def _sum_of_nine(layers: Tensor) -> Tensor:
    padded = _mirrored(layers)
    height, width = layers.shape[-2:]
    rows = padded[..., :height, :] + padded[..., 1 : height + 1, :] + padded[..., 2:, :]
    return rows[..., :width] + rows[..., 1 : width + 1] + rows[..., 2:]


def edges(levels: Tensor, low: float, high: float) -> Tensor:
    """Canny edges of 8-bit levels, as booleans: Sobel gradients, |dx| + |dy|, thinned, joined between two levels."""
    padded = F.pad(levels, (1, 1, 1, 1), mode="replicate")
    height, width = levels.shape[-2:]
    smooth_down = padded[..., :height, :] + padded[..., 1 : height + 1, :] * 2 + padded[..., 2:, :]
    smooth_across = padded[..., :width] + padded[..., 1 : width + 1] * 2 + padded[..., 2:]
    along_x = smooth_down[..., 2:] - smooth_down[..., :width]
    along_y = smooth_across[..., 2:, :] - smooth_across[..., :height, :]
    size_x, size_y = along_x.abs(), along_y.abs()
    strength = size_x + size_y
    around = F.pad(strength, (1, 1, 1, 1))
    crest_x = (strength > _window(around, 1, 0)) & (strength >= _window(around, 1, 2))
    crest_y = (strength > _window(around, 0, 1)) & (strength >= _window(around, 2, 1))
    crest_falling = (strength > _window(around, 0, 0)) & (strength > _window(around, 2, 2))
    crest_rising = (strength > _window(around, 0, 2)) & (strength > _window(around, 2, 0))
    crest_diagonal = torch.where((along_x < 0) != (along_y < 0), crest_rising, crest_falling)
    scaled = size_y * _TANGENT_UNITS
    steep = torch.where(scaled > size_x * _TANGENT_67, crest_y, crest_diagonal)
    crest = torch.where(scaled < size_x * _TANGENT_22, crest_x, steep) & (strength > low)
    return _grow(crest & (strength > high), crest)


def _grow(seeds: Tensor, allowed: Tensor) -> Tensor:
    """All of `allowed` that hangs together with `seeds`, corners included."""
    height, width = seeds.shape[-2:]
    padded = F.pad(seeds, (1, 1, 1, 1))
    reached = padded[..., 1 : height + 1, 1 : width + 1]
    while True:
        before = reached.clone()
        for _ in range(_STEPS_BETWEEN_LOOKS):
            rows = padded[..., :height, :] | padded[..., 1 : height + 1, :] | padded[..., 2:, :]
            around = rows[..., :width] | rows[..., 1 : width + 1] | rows[..., 2:]
            torch.logical_and(around, allowed, out=reached)
        if torch.equal(before, reached):
            return before


@lru_cache(maxsize=8)
def _path_lengths(device: torch.device) -> Tensor:
    """Lengths of paths by rows and columns moved, 0 to 20 each, for steps to near pixels of the 5x5 window."""
    moved = np.arange(_FARTHEST + 1)
    longer, shorter = np.maximum(moved[:, None], moved), np.minimum(moved[:, None], moved)
    flat = longer - 2 * shorter + _KNIGHT_STEP * shorter
    steep = _KNIGHT_STEP * (longer - shorter) + _DIAGONAL_STEP * (2 * shorter - longer)
    lengths = np.minimum(np.where(longer >= 2 * shorter, flat, steep), _FARTHEST)
    return torch.from_numpy(lengths.astype(np.float32)).to(device)


def distances(marked: Tensor) -> Tensor:
    """Distance of every pixel to the nearest marked one, at most 20.

    It is Euclidean as nearly as paths of straight, diagonal and knight's steps can make it, as in the benchmark.
    """
    height, width = marked.shape[-2:]
    columns = torch.arange(width, device=marked.device, dtype=torch.float32)
    far = 10.0 * (width + _FARTHEST)
    before = torch.where(marked, columns, -far).cummax(dim=-1).values
    after = torch.where(marked, columns, far).flip(-1).cummin(dim=-1).values.flip(-1)
    # Of the marked pixels in a row none can be nearer than the one nearest along the row.
    across = torch.minimum(columns - before, after - columns).clamp_(max=_FARTHEST).long()
    lengths = _path_lengths(marked.device)
    nearest = lengths[0].take(across)
    for moved in range(1, min(_FARTHEST, height)):
        further = lengths[moved].take(across)
        above, below = nearest[..., moved:, :], nearest[..., :-moved, :]
        torch.minimum(above, further[..., :-moved, :], out=above)
        torch.minimum(below, further[..., moved:, :], out=below)
    return nearest


def equalize(levels: Tensor, highest: int) -> Tensor:
    """Equalise the histogram of levels 0 to `highest` to 0 to 255, image by image; a flat image stays as it is."""
    count, _, height, width = levels.shape
    bins = levels.long().view(count, -1)
    first_bins = torch.arange(0, count * (highest + 1), highest + 1, device=levels.device).unsqueeze(1)
    counts = (bins + first_bins).view(-1).bincount(minlength=count * (highest + 1))
    below = counts.view(count, -1).cumsum(1)
    first = below.gather(1, bins.amin(dim=1, keepdim=True))
    rest = height * width - first
    table = ((below - first).float() * (255.0 / rest.clamp(min=1).float())).round_().clamp_(min=0.0)
    equalized = table.gather(1, bins).view(levels.shape)
    return torch.where((rest > 0).view(-1, 1, 1, 1), equalized, levels)


def relief(levels: Tensor) -> Tensor:
    """Heights 0 to 255 of a water layer of 8-bit levels: flat between drops, lit from one side along their outlines."""
    depths = distances(edges(levels, 50, 150))
    smooth = _sum_of_nine(depths).div_(9).add_(_SLACK).floor_()
    padded = _mirrored(equalize(smooth, _FARTHEST))
    embossed = torch.zeros_like(levels)
    for row, weights in enumerate(_EMBOSS):
        for column, weight in enumerate(weights):
            if weight != 0:
                embossed += _window(padded, row, column) * weight
    return _sum_of_nine(embossed.clamp_(0, 255)).div_(9).round_()
