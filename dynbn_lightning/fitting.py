"""Fitting a detector or a classifier on a `CorruptionDataModule`: what the command line and the benchmarks call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from safetensors.torch import save_file
from torch import nn

from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.modules import ClassifierModule, DetectorModule


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's remarks on hardware, loaders and loggers out of a program's own output."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*The number of training batches.*")
            yield
    finally:
        logger.setLevel(level)


def bare_trainer(**options: Any) -> Trainer:
    """A Trainer on one device that logs to nowhere and writes no files."""
    defaults: dict[str, Any] = {
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "inference_mode": True,
    }
    return Trainer(**{**defaults, **options})


def _fit(module: LightningModule, data: CorruptionDataModule, epochs: int, **options: Any) -> None:
    task = "detector" if isinstance(module, DetectorModule) else "classifier"
    previous, data.task = data.task, task  # type: ignore[assignment]
    callbacks = [TQDMProgressBar(refresh_rate=10)] if options.get("enable_progress_bar", True) else []
    try:
        with quiet_lightning():
            bare_trainer(max_epochs=epochs, callbacks=callbacks, **options).fit(module, datamodule=data)
    finally:
        data.task = previous


def fit_detector(
    data: CorruptionDataModule, epochs: int, *, output: Path | None = None, **trainer_options: Any
) -> DetectorModule:
    """Train a detector of `data.rows` on the training images.

    Args:
        data: where the images come from.
        epochs: passes over the training images, each with fresh corruptions.
        output: file to save the checkpoint to.
        **trainer_options: for the Trainer.
    """
    image_size = data.train_images[0][0].shape[-1]
    detector = DetectorModule(rows=data.rows, image_size=image_size)
    _fit(detector, data, epochs, **trainer_options)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        detector.trainer.save_checkpoint(output, weights_only=True)
    return detector


def fit_classifier(
    model: nn.Module, data: CorruptionDataModule, epochs: int, *, output: Path | None = None, **trainer_options: Any
) -> nn.Module:
    """Train a classifier on the clean training images and return it in evaluation mode.

    Args:
        model: the classifier, trained in place.
        data: where the images come from.
        epochs: passes over the training images.
        output: safetensors file to save its weights to.
        **trainer_options: for the Trainer.
    """
    _fit(ClassifierModule(model), data, epochs, **trainer_options)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, output)
    return model.eval()
