"""Fitting a detector or a classifier on a `CorruptionDataModule`: what the command line and the benchmarks call."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerStatus
from safetensors.torch import save_file
from torch import nn

from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.errors import DataError
from dynbn_lightning.files import whole_file
from dynbn_lightning.modules import ClassifierModule, DetectorModule
from dynbn_lightning.modules.detector import Network
from dynbn_lightning.processes import prepare


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
            # True of detectors that are gathered and not trained.
            warnings.filterwarnings("ignore", message=".*this fit will run with no optimizer.*")
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
    }
    return Trainer(**{**defaults, **options})


@contextmanager
def honest_interrupts(trainer: Trainer) -> Iterator[None]:
    """Let an interrupt of a Trainer be a KeyboardInterrupt; Lightning makes it an exit, after which Ctrl-C is dead."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from exit_
    finally:
        if in_main_thread and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def device_of(accelerator: str) -> torch.device:
    """The device that a Trainer with this accelerator runs on."""
    with quiet_lightning():
        return bare_trainer(accelerator=accelerator).strategy.root_device


def _fit(module: LightningModule, data: CorruptionDataModule, epochs: int, **options: Any) -> None:
    if epochs < 1:
        raise DataError(f"epochs={epochs!r}: expected at least 1")
    callbacks = [TQDMProgressBar(refresh_rate=10)] if options.get("enable_progress_bar", True) else []
    with quiet_lightning():
        trainer = bare_trainer(max_epochs=epochs, callbacks=callbacks, **options)
        prepare(data, trainer.local_rank)
        _ = data.train_images  # opened here, so that the caller's datamodule has them too
        shown = copy.copy(data)
        shown.task = "detector" if isinstance(module, DetectorModule) else "classifier"
        with honest_interrupts(trainer):
            trainer.fit(module, datamodule=shown)


DETECTOR_EPOCHS: dict[str, int] = {"perceptron": 10, "prototype": 1}
"""Passes over the training images that do for a few thousand of them, by the detector's network."""


def fit_detector(
    data: CorruptionDataModule,
    epochs: int,
    *,
    output: Path | None = None,
    network: Network = "perceptron",
    **trainer_options: Any,
) -> DetectorModule:
    """Fit a detector of `data.rows` to the training images.

    Args:
        data: where the images come from.
        epochs: passes over the training images, each with fresh corruptions.
        output: file to save the checkpoint to.
        network: `"perceptron"`, or `"prototype"`, which needs no training and one epoch.
        **trainer_options: for the Trainer, `devices=8` for instance; `batch_size` of `data` is that of each process.

    Raises:
        DataError: if `epochs` is not positive, or there are no square training images.
    """
    channels, height, width = data.train_images.shape
    if height != width:
        raise DataError(f"the detector takes square images, these are {height} x {width}: pass image_size=")
    detector = DetectorModule(rows=data.rows, image_size=height, channels=channels, network=network)
    _fit(detector, data, epochs, **trainer_options)
    if output is not None:
        trainer = detector.trainer
        # All processes take part in making a checkpoint, and the first one writes it.
        with whole_file(output) if trainer.is_global_zero else nullcontext(output) as file:
            trainer.save_checkpoint(file, weights_only=True)
        trainer.strategy.barrier()  # it is there for all of them
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
    module = ClassifierModule(model)
    _fit(module, data, epochs, **trainer_options)
    if output is not None and module.trainer.is_global_zero:
        with whole_file(output) as temporary:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    module.trainer.strategy.barrier()
    return model.eval()
