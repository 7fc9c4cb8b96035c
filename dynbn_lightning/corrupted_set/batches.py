"""The images of a corrupted set, a batch and a severity at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dynbn_lightning.corrupted_set.layouts import Missing, Pixels
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.batches import corrupt_pixels
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.datamodules.streams import make_loader


@dataclass(frozen=True)
class CorruptedBatches:
    """Images in batches, as they are and corrupted.

    Attributes:
        images: test images.
        preset: severity constants.
        seed: of the corruptions.
        frost_textures: folder of photographs of ice; None takes generated ones.
        batch_size: images per batch.
        num_workers: loader processes.
        device: where to corrupt.
    """

    images: PixelDataset
    preset: str
    seed: int
    frost_textures: str | Path | None
    batch_size: int
    num_workers: int
    device: torch.device

    def plain(self, indices: Sequence[int]) -> DataLoader[Any]:
        """The images of these numbers as they are."""
        return make_loader(
            self.images,
            [[(index, None) for index in indices]],
            split="test",
            form="predict",
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def corrupted(self, corruption: str, wanted: Missing) -> Iterator[tuple[Cell, list[int], Pixels]]:
        """Of each cell the images that are wanted in it, (N, H, W, 3), with their numbers."""
        anywhere = np.logical_or.reduce(list(wanted.values()))
        for batch in self.plain(np.flatnonzero(anywhere).tolist()):
            pixels = batch.pixels.to(self.device)
            for severity, mask in wanted.items():
                positions = [position for position, index in enumerate(batch.indices) if mask[index]]
                if not positions:
                    continue
                cell = Cell(corruption, severity)
                indices = [batch.indices[position] for position in positions]
                made = corrupt_pixels(
                    pixels[positions],
                    [cell.code] * len(indices),
                    indices,
                    seed=self.seed,
                    split="test",
                    preset=self.preset,
                    frost_textures=self.frost_textures,
                )
                yield cell, indices, made.permute(0, 2, 3, 1).contiguous().cpu().numpy()
