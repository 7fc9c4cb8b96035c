"""Evaluating methods on streams: what the command line, the benchmarks and the notebooks all call."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import Progress, TaskID
from torch import nn

import dynbn_lightning
from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.callbacks import BatchStatsCallback, DynamicBNCallback
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.fitting import bare_trainer, quiet_lightning
from dynbn_lightning.metrics import mean_over_corruptions
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.reporting.results import SCHEMA_VERSION


@dataclass(frozen=True)
class Method:
    """A way to evaluate a model.

    Attributes:
        callbacks: makes its callbacks from bank and detector.
        needs_bank: whether it looks rows up.
        needs_detector: whether it detects them.
    """

    callbacks: Callable[[Any, Any], list[Callback]]
    needs_bank: bool = False
    needs_detector: bool = False


def _batch_stats(bank: BNStatsBank | None) -> BatchStatsCallback:
    return BatchStatsCallback(skip=[f"model.{name}" for name in bank.skip] if bank is not None else ())


METHODS: dict[str, Method] = {
    "source": Method(lambda bank, detector: []),
    "batch_stats": Method(lambda bank, detector: [_batch_stats(bank)]),
    "dynamic_bn/hard": Method(lambda bank, detector: [DynamicBNCallback(bank, detector, "hard")], True, True),
    "dynamic_bn/soft": Method(lambda bank, detector: [DynamicBNCallback(bank, detector, "soft")], True, True),
    "oracle": Method(lambda bank, detector: [DynamicBNCallback(bank, routing="oracle")], True),
}
"""The methods by name: the unpatched model, BN-1, ours with hard and soft routing, and the ceiling of detection."""


def check_methods(methods: Sequence[str], *, has_bank: bool, has_detector: bool) -> None:
    """Raise `DataError` for unknown methods, and for methods that lack the bank or the detector they need."""
    for name in methods:
        if name not in METHODS:
            raise DataError(f"unknown method {name!r}: {did_you_mean(name, METHODS)}")
        if METHODS[name].needs_bank and not has_bank:
            raise DataError(f"method {name!r} needs a bank: make one with BNStatsBank.collect or `dynbn bank build`")
        if METHODS[name].needs_detector and not has_detector:
            raise DataError(f"method {name!r} needs a detector: make one with `dynbn detector fit`")
    if len(set(methods)) != len(methods) or not methods:
        raise DataError(f"expected one or more different methods, got {list(methods)}")


def check_streams(streams: Sequence[str]) -> None:
    """Raise `DataError` unless these are one or more different streams."""
    for stream in streams:
        if stream not in STREAMS:
            raise DataError(f"unknown stream {stream!r}: {did_you_mean(stream, STREAMS)}")
    if len(set(streams)) != len(streams) or not streams:
        raise DataError(f"expected one or more different streams, got {list(streams)}")


def evaluate(
    model: nn.Module,
    data: CorruptionDataModule,
    *,
    methods: Sequence[str] = ("source", "batch_stats", "dynamic_bn/soft"),
    streams: Sequence[str] = ("mixed",),
    bank: BNStatsBank | None = None,
    detector: nn.Module | Path | None = None,
    progress: bool = True,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Test a model on the cells of `data` by several methods.

    Args:
        model: the classifier; as it was afterwards.
        data: its test images are shown in each of its cells and clean; not changed, whatever its own stream.
        methods: names in `METHODS`.
        streams: `"mixed"`, `"sequential"` or both.
        bank: of this model, for the methods that look rows up.
        detector: a `DetectorModule` or its checkpoint, for the methods that detect them.
        progress: show a progress bar.
        **trainer_options: for the Trainer, `accelerator="cuda"` for instance.

    Returns:
        Results as `reporting.write_results` writes them: accuracies from 0 to 1 by method and cell.

    Raises:
        DataError: for unknown methods or streams, or a missing bank or detector, before any work.
        BankError: for a bank of another model.
        DetectorError: for a detector of other rows than the bank's.
    """
    check_methods(methods, has_bank=bank is not None, has_detector=detector is not None)
    check_streams(streams)
    if bank is not None:
        bank.check_model(model)
    for name in methods:
        METHODS[name].callbacks(bank, detector)  # refuses rows that don't fit before hours of work
    blocks: dict[str, Any] = {}
    num_images = len(data.test_images)  # opened here, so that all copies of the datamodule share them
    device = next((parameter.device for parameter in model.parameters()), None)
    try:
        with quiet_lightning(), progress_bar(shown=progress) as bar:
            batches = -(-num_images * len(data.cells) // data.batch_size)
            task = bar.add_task("evaluate", total=batches * len(methods) * len(streams))
            for stream in streams:
                shown = copy.copy(data)
                shown.stream = stream  # type: ignore[assignment]
                blocks[stream] = {}
                for name in methods:
                    bar.update(task, description=f"{name}, {stream}")
                    callbacks = [*METHODS[name].callbacks(bank, detector), _Advance(bar, task)]
                    blocks[stream][name] = _test(model, shown, callbacks, trainer_options)
            bar.update(task, completed=batches * len(methods) * len(streams))
    finally:
        model.to(device)  # Lightning leaves it on the CPU
    results: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "protocol": protocol(model, data, streams, bank)}
    if len(streams) == 1:
        return {**results, "methods": blocks[streams[0]]}
    return {**results, "streams": {stream: {"methods": block} for stream, block in blocks.items()}}


def protocol(
    model: nn.Module, data: CorruptionDataModule, streams: Sequence[str], bank: BNStatsBank | None
) -> dict[str, Any]:
    """What must be said beside any number: data, cells, stream, batch size, counts, seed, versions."""
    return {
        **data.provenance(),
        "model": getattr(model, "name", type(model).__name__),
        "corruptions": list(data.corruptions),
        "streams": list(streams),
        "batch_size": data.batch_size,
        "test_images": len(data.test_images),
        "reset": "no method keeps state from batch to batch",
        "bank": None if bank is None else {"rows": len(bank), **bank.provenance},
        "uses": "detector and bank are made from corrupted training images: not source-free",
        "versions": {
            "dynbn_lightning": dynbn_lightning.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def _test(
    model: nn.Module, data: CorruptionDataModule, callbacks: list[Callback], trainer_options: dict[str, Any]
) -> dict[str, Any]:
    module = ClassifierModule(model)
    began = time.perf_counter()
    trainer = bare_trainer(callbacks=callbacks, enable_progress_bar=False, **trainer_options)
    trainer.test(module, datamodule=data, verbose=False)
    seconds = time.perf_counter() - began
    accuracies = module.cell_accuracy.compute()
    mean = mean_over_corruptions(accuracies)
    detection = trainer.callback_metrics.get("detection/acc")
    clean = accuracies.pop("clean", None)
    return {
        "clean": None if clean is None else float(clean),
        "cells": {name: float(accuracy) for name, accuracy in accuracies.items()},
        "mean": None if mean is None else float(mean),
        **({} if detection is None else {"detection": float(detection)}),
        "seconds": round(seconds, 1),
    }


class _Advance(Callback):
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.bar.advance(self.task)
