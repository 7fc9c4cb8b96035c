"""The images of a corrupted set, a batch and a severity at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dynbn_lightning.corrupted_set.layouts import Missing, Pixels
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.batches import PixelBatch, corrupt_pixels
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.datamodules.row_loaders import Batches
from dynbn_lightning.datamodules.skipping import check_batch
from dynbn_lightning.datamodules.streams import make_loader, pairs_of


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

    def plain(self, indices: Sequence[int]) -> Batches[PixelBatch]:
        """The images of these numbers as they are."""
        loader = make_loader(
            self.images,
            [pairs_of(indices)],
            split="test",
            form="predict",
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

        def checked() -> Iterator[PixelBatch]:
            for batch in loader:
                check_batch(batch, self.images)
                yield batch

        return Batches(checked, len(loader))

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
