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
from torch import Tensor, nn

import dynbn_lightning
from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.callbacks import BatchStatsCallback, DynamicBNCallback
from dynbn_lightning.callbacks.dynamic_bn import RoutingMode
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import batch_info_of
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.detection import Evidence
from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.fitting import bare_trainer, quiet_lightning
from dynbn_lightning.metrics import mean_over_corruptions
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.reporting.results import SCHEMA_VERSION, pack_correct


@dataclass(frozen=True)
class Method:
    """A way to evaluate a model.

    Attributes:
        callbacks: makes its callbacks from bank and detector.
        needs_bank: whether it looks rows up.
        needs_detector: whether it detects them.
        needs_calibration: whether the bank must be calibrated.
        needs_refinement: whether the bank must have refined rows.
    """

    callbacks: Callable[[Any, Any], list[Callback]]
    needs_bank: bool = False
    needs_detector: bool = False
    needs_calibration: bool = False
    needs_refinement: bool = False


def _batch_stats(bank: BNStatsBank | None, detector: Any) -> list[Callback]:
    return [BatchStatsCallback(skip=[f"model.{name}" for name in bank.skip] if bank is not None else ())]


def _dynamic(
    routing: RoutingMode, *, calibrated: bool = True, refined: bool = False, evidence: Evidence = "image"
) -> Method:
    def callbacks(bank: BNStatsBank, detector: Any) -> list[Callback]:
        bank = bank if calibrated else bank.uncalibrated()
        bank = bank if refined else bank.unrefined()
        return [DynamicBNCallback(bank, detector, routing, evidence=evidence)]

    return Method(callbacks, True, routing != "oracle", calibrated, refined)


METHODS: dict[str, Method] = {
    "source": Method(lambda bank, detector: []),
    "batch_stats": Method(_batch_stats),
    "dynamic_bn/hard": _dynamic("hard", calibrated=False),
    "dynamic_bn/soft": _dynamic("soft", calibrated=False),
    "dynamic_bn/calibrated": _dynamic("soft"),
    "dynamic_bn/batch": _dynamic("soft", evidence="batch"),
    "dynamic_bn/stream": _dynamic("soft", evidence="stream"),
    "dynamic_bn/refined": _dynamic("soft", refined=True),
    "oracle": _dynamic("oracle", calibrated=False),
    "oracle/calibrated": _dynamic("oracle"),
}
"""The methods by name: the unpatched model; BN-1; ours with the bank's rows as measured, by hard and soft routing;
with calibrated rows by the evidence of each image, of the batch, and of the stream; with rows that are refined too; and
the ceiling of detection, with rows as measured and calibrated."""


def default_methods(bank: BNStatsBank | None, *, has_detector: bool) -> list[str]:
    """The unpatched model, BN-1, and the best that bank and detector allow."""
    methods = ["source", "batch_stats"]
    if bank is None or not has_detector:
        return methods
    return [
        *methods,
        "dynamic_bn/soft" if bank.calibration is None else "dynamic_bn/calibrated",
        *(["dynamic_bn/refined"] if bank.calibration is not None and bank.refined else []),
    ]


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


def check_bank(methods: Sequence[str], bank: BNStatsBank) -> None:
    """Raise `DataError` for methods that need more of the bank than it has."""
    for name in methods:
        if METHODS[name].needs_calibration and bank.calibration is None:
            raise DataError(f"method {name!r} needs a calibrated bank: calibrate it with `dynbn calibrate`")
        if METHODS[name].needs_refinement and not bank.refined:
            raise DataError(f"method {name!r} needs a bank with refined rows: refine them with `dynbn refine`")


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
    methods: Sequence[str] | None = None,
    streams: Sequence[str] = ("mixed",),
    bank: BNStatsBank | None = None,
    detector: nn.Module | Path | None = None,
    per_image: bool = False,
    progress: bool = True,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Test a model on the cells of `data` by several methods.

    Args:
        model: the classifier; as it was afterwards.
        data: its test images are shown in each of its cells and clean; not changed, whatever its own stream.
        methods: names in `METHODS`; by default the unpatched model, BN-1, and the best that bank and detector allow.
        streams: `"mixed"`, `"sequential"` or both.
        bank: of this model, for the methods that look rows up.
        detector: a `DetectorModule` or its checkpoint, for the methods that detect them.
        per_image: keep each image's outcome too, packed, for paired tests; see `reporting.unpack_correct`.
        progress: show a progress bar.
        **trainer_options: for the Trainer, `accelerator="cuda"` for instance.

    Returns:
        Results as `reporting.write_results` writes them: accuracies from 0 to 1 by method and cell.

    Raises:
        DataError: for unknown methods or streams, or a missing bank, detector, calibration or refinement, before any
            work.
        BankError: for a bank of another model.
        DetectorError: for a detector of other rows than the bank's.
    """
    if methods is None:
        methods = default_methods(bank, has_detector=detector is not None)
    check_methods(methods, has_bank=bank is not None, has_detector=detector is not None)
    check_streams(streams)
    if bank is not None:
        bank.check_model(model)
        check_bank(methods, bank)
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
                    outcomes = _Outcomes(num_images) if per_image else None
                    block = _test(model, shown, [*callbacks, *([outcomes] if outcomes else [])], trainer_options)
                    blocks[stream][name] = block
                    if METHODS[name].needs_refinement:
                        block["refined"] = True
                    if outcomes is not None:
                        block["correct"] = pack_correct(outcomes.correct)
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
        "reset": "no method keeps state from batch to batch but dynamic_bn/stream, which begins anew with each stream",
        "bank": None if bank is None else {"rows": len(bank), **bank.provenance},
        "calibration": None if bank is None or bank.calibration is None else dict(bank.calibration.provenance),
        "uses": "detector, bank and calibration are made from corrupted training images: not source-free",
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


class _Outcomes(Callback):
    """Notes whether each image was classified rightly in each cell."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.correct: dict[str, Tensor] = {}

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        info = batch_info_of(trainer)
        if info is not None:
            for index, name, right in zip(info.indices, info.names, outputs.tolist(), strict=True):
                self.correct.setdefault(name, torch.zeros(self.images, dtype=torch.bool))[index] = right


class _Advance(Callback):
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.bar.advance(self.task)
