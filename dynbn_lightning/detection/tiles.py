"""Tiles of an image: what is measured on a few of them is the same thing, and costs the same, at any image size."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 32
"""Pixels along the side of a tile: 32 x 32 images are one tile each."""

MOST_TILES = 4
"""The largest number of tiles along an axis: 16 tiles of a 224 px image take a little over 1 % of ResNet-50's time."""

RANDOM_STEP = 8
"""What random tiles begin at a multiple of: so JPEG's blocks lie in them as in those that are spread evenly."""


def tile_starts(length: int, at_random: bool = False) -> list[int]:
    """Where tiles begin along an axis of so many pixels.

    Args:
        length: At least 1. Up to `TILE` pixels are a single tile, of that length.
        at_random: Draw them with torch's global generator. Otherwise they are spread evenly from one border to the
            other: they cover the axis where `MOST_TILES` can, overlapping if need be, and leave gaps where it is
            longer.
    """
    count = min(MOST_TILES, -(-length // TILE))
    if count <= 1:
        return [0]
    if at_random:
        drawn: list[int] = torch.randint((length - TILE) // RANDOM_STEP + 1, (count,)).tolist()
        return [RANDOM_STEP * start for start in drawn]
    return [round(number * (length - TILE) / (count - 1)) for number in range(count)]


def cut_tiles(images: Tensor, at_random: bool = False) -> Tensor:
    """The tiles of images, at the same places in all of them.

    Args:
        images: Shape (N, C, H, W).
        at_random: See `tile_starts`.

    Returns:
        Shape (N, T, C, min(H, TILE), min(W, TILE)), T the product of the numbers of tiles along both axes. A view
        of the images themselves where they are one tile each.
    """
    rows, columns = (tile_starts(length, at_random) for length in images.shape[2:])
    if len(rows) == len(columns) == 1:
        return images.unsqueeze(1)
    tiles = [images[:, :, row : row + TILE, column : column + TILE] for row in rows for column in columns]
    return torch.stack(tiles, dim=1)
