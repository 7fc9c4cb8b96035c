"""How deep water drops look: their outlines found, distances to the outlines, and a relief made of the distances.

Everything here is on layers (N, 1, H, W) of whole numbers, so that it is exact. Comparisons are made in arithmetic, as
`(a - b).clamp(0, 1)`: a branch for every pixel would take many times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FARTHEST = 20
# Steps to near pixels of the 5x5 window, straight, diagonal and as a knight in chess, with their lengths, 1, 1.4 and
# 2.1969, in units of which int16 can hold twice the farthest.
_UNITS = 800
_STEPS = (((0, 1), 800), ((1, 1), 1120), ((1, 2), 1758))
_GROWTH_BETWEEN_LOOKS = 4
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


def _mean_of_nine(layers: Tensor) -> Tensor:
    padded = _mirrored(layers)
    height, width = layers.shape[-2:]
    rows = padded[..., :height, :] + padded[..., 1 : height + 1, :] + padded[..., 2:, :]
    return (rows[..., :width] + rows[..., 1 : width + 1] + rows[..., 2:]).div_(9)


def edges(levels: Tensor, low: int, high: int) -> Tensor:
    """Canny edges of 8-bit levels: Sobel gradients, |dx| + |dy|, thinned, joined between two thresholds.

    Args:
        levels: Whole numbers 0 to 255, (N, 1, H, W) float32.
        low: What is not stronger is no edge.
        high: What is stronger is an edge; between the two, if it hangs together with one.

    Returns:
        1 on edges and 0 elsewhere, (N, 1, H, W) uint8.
    """
    padded = F.pad(levels, (1, 1, 1, 1), mode="replicate")
    height, width = levels.shape[-2:]
    smooth_down = padded[..., :height, :] + padded[..., 1 : height + 1, :] * 2 + padded[..., 2:, :]
    smooth_across = padded[..., :width] + padded[..., 1 : width + 1] * 2 + padded[..., 2:]
    along_x = smooth_down[..., 2:] - smooth_down[..., :width]
    along_y = smooth_across[..., 2:, :] - smooth_across[..., :height, :]
    size_x, size_y = along_x.abs(), along_y.abs()
    strength = size_x + size_y
    around = F.pad(strength, (1, 1, 1, 1))

    def over(row: int, column: int, ties: int = 0) -> Tensor:
        return (strength - _window(around, row, column)).add_(ties).clamp_(0, 1)

    scaled = size_y * _TANGENT_UNITS
    flat = (size_x * _TANGENT_22).sub_(scaled).clamp_(0, 1)
    steep = (scaled - size_x * _TANGENT_67).clamp_(0, 1)
    # Gradients of unlike signs rise from left to right in the picture, whose rows count downwards.
    rising = (along_x * along_y).neg_().clamp_(0, 1)
    crest_rising, crest_falling = over(0, 2) * over(2, 0), over(0, 0) * over(2, 2)
    crest = crest_falling.add_((crest_rising - crest_falling).mul_(rising))
    crest.add_((over(0, 1) * over(2, 1, ties=1)).sub_(crest).mul_(steep))
    crest.add_((over(1, 0) * over(1, 2, ties=1)).sub_(crest).mul_(flat))
    crest.mul_((strength - low).clamp_(0, 1))
    return _grow((strength - high).clamp_(0, 1).mul_(crest).to(torch.uint8), crest.to(torch.uint8))


def _grow(seeds: Tensor, allowed: Tensor) -> Tensor:
    """All of `allowed` that hangs together with `seeds`, corners included; 0 and 1, uint8."""
    height, width = seeds.shape[-2:]
    padded = F.pad(seeds, (1, 1, 1, 1))
    reached = padded[..., 1 : height + 1, 1 : width + 1]
    for step in range(height + width):  # No chain of weak edges is nearly as long.
        # A CPU may look whether anything still grows; an accelerator would have to be waited for.
        looks = seeds.device.type == "cpu" and step % _GROWTH_BETWEEN_LOOKS == 0
        before = reached.clone() if looks else None
        rows = padded[..., :height, :] | padded[..., 1 : height + 1, :] | padded[..., 2:, :]
        around = rows[..., :width] | rows[..., 1 : width + 1] | rows[..., 2:]
        torch.bitwise_and(around, allowed, out=reached)
        if before is not None and torch.equal(before, reached):
            break
    return reached


def distances(marked: Tensor) -> Tensor:
    """Distance of every pixel to the nearest that is marked, at most 20.

    It is Euclidean as nearly as paths of straight, diagonal and knight's steps can make it, as in the benchmark. A
    shortest path may take its steps direction by direction, so each direction is dealt with once: 1, 2, 4, ... steps of
    it and their sums.

    Args:
        marked: 1 or 0, (N, 1, H, W) uint8.

    Returns:
        Distances in pixels, (N, 1, H, W) float32.
    """
    farthest = _FARTHEST * _UNITS
    found = (1 - marked).to(torch.int16).mul_(farthest)
    for (short, long), length in _STEPS:
        for down, right in {
            (a * i, b * j) for a, b in ((short, long), (long, short)) for i in (1, -1) for j in (1, -1)
        }:
            steps = 1
            while steps * length < farthest:
                _step(found, down * steps, right * steps, length * steps)
                steps *= 2
    return found.to(torch.float32).div_(_UNITS)


def _step(found: Tensor, down: int, right: int, length: int) -> None:
    """Shorten the distances `found` by one step from `down` and `right` of each pixel, in place."""
    height, width = found.shape[-2:]
    if abs(down) >= height or abs(right) >= width:
        return
    here = found[..., max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    there = found[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    torch.minimum(here, there + length, out=here)


def equalize(levels: Tensor, highest: int) -> Tensor:
    """Equalise the histogram of levels 0 to `highest` to 0 to 255, image by image; a flat image stays as it is."""
    count, _, height, width = levels.shape
    bins = levels.long().view(count, -1)
    ones = torch.ones((), dtype=torch.int64, device=levels.device).expand(bins.shape)
    counts = torch.zeros((count, highest + 1), dtype=torch.int64, device=levels.device).scatter_add_(1, bins, ones)
    below = counts.cumsum(1)
    first = below.gather(1, bins.amin(dim=1, keepdim=True))
    rest = height * width - first
    table = ((below - first).float() * (255.0 / rest.clamp(min=1).float())).round_().clamp_(min=0.0)
    unchanged = torch.arange(highest + 1, device=levels.device, dtype=torch.float32).expand(count, -1)
    return torch.where(rest > 0, table, unchanged).gather(1, bins).view(levels.shape)


def relief(levels: Tensor) -> Tensor:
    """Heights 0 to 255 of a water layer of 8-bit levels: flat between drops, lit from one side along their outlines."""
    depths = _mean_of_nine(distances(edges(levels, 50, 150))).add_(1e-4).floor_()
    padded = _mirrored(equalize(depths, _FARTHEST))
    embossed = torch.zeros_like(levels)
    for row, weights in enumerate(_EMBOSS):
        for column, weight in enumerate(weights):
            if weight != 0:
                embossed.add_(_window(padded, row, column), alpha=weight)
    return _mean_of_nine(embossed.clamp_(0, 255)).round_()
