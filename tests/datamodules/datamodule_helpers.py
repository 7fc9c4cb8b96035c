"""What the datamodule's tests share: random images, a module that records what it sees, a bare Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dynbn_lightning import CorruptionDataModule

CORRUPTIONS = ("gaussian_noise", "contrast", "elastic_transform")


def random_images(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.arange(count) % 4)


def make_data(**options: Any) -> CorruptionDataModule:
    options = {"corruptions": CORRUPTIONS, "severities": (1, 5), "batch_size": 8, **options}
    return CorruptionDataModule(random_images(40, 0), test=random_images(12, 1), **options)


class Recorder(L.LightningModule):
    """A user's module: `x, y = batch`, and what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[tuple[Any, tuple[int, ...], tuple[str, ...], str]] = []

    def _see(self, stage: str, batch: Any) -> None:
        info = self.trainer.datamodule.batch_info
        self.batches.append((batch, info.indices, info.names, stage))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        self._see("train", batch)
        return self.layer(x.mean().reshape(1, 1)).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        _x, _y = batch
        self._see("validate", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        _x, _y = batch
        self._see(f"test{dataloader_idx}", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self._see("predict", batch)
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def images(self, stage: str) -> dict[tuple[str, int], Tensor]:
        """(cell, image number) -> image, of a stage."""
        seen = {}
        for batch, indices, names, at in self.batches:
            if at.startswith(stage):
                images = batch if isinstance(batch, Tensor) else batch[0]
                for image, index, name in zip(images, indices, names, strict=True):
                    seen[name, index] = image.clone()
        return seen


def trainer(**options: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**{"accelerator": "cpu", "max_epochs": 1, **quiet, **options})


def run_test(data: CorruptionDataModule, **options: Any) -> Recorder:
    module = Recorder()
    trainer(**options).test(module, datamodule=data, verbose=False)
    return module
