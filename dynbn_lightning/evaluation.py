"""Evaluating methods on streams: what the command line, the benchmarks and the notebooks all call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import Progress, TaskID
from torch import Tensor, nn

import dynbn_lightning
from dynbn_lightning.batchnorm import SOURCE_ROW, BNStatsBank, QuantileBank, find_batchnorm_layers
from dynbn_lightning.cost import StepCost
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import batch_info_of
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.fitting import bare_trainer, device_of, quiet_lightning
from dynbn_lightning.methods import (
    METHODS,
    Tools,
    check_bank,
    check_methods,
    check_oracle,
    default_methods,
    needed_quantiles,
    needs_of,
    uses_refined,
)
from dynbn_lightning.metrics import mean_over_corruptions
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.reporting.results import SCHEMA_VERSION, pack_correct


def check_streams(streams: Sequence[str]) -> None:
    """Raise `DataError` unless these are one or more different streams."""
    for stream in streams:
        if stream not in STREAMS:
            raise DataError(f"unknown stream {stream!r}: {did_you_mean(stream, STREAMS)}")
    if len(set(streams)) != len(streams) or not streams:
        raise DataError(f"expected one or more different streams, got {list(streams)}")


def check_batch_sizes(batch_sizes: Sequence[int]) -> None:
    """Raise `DataError` unless these are one or more different whole numbers of at least 1."""
    if not batch_sizes or len(set(batch_sizes)) != len(batch_sizes) or min(batch_sizes) < 1:
        raise DataError(f"expected one or more different batch sizes of at least 1, got {list(batch_sizes)}")


def evaluate(
    model: nn.Module,
    data: CorruptionDataModule,
    *,
    methods: Sequence[str] | None = None,
    streams: Sequence[str] = ("mixed",),
    batch_sizes: Sequence[int] | None = None,
    bank: BNStatsBank | None = None,
    detector: nn.Module | Path | None = None,
    quantiles: QuantileBank | None = None,
    per_image: bool = False,
    progress: bool = True,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Test a model on the cells of `data` by several methods.

    A method that looks at each image alone gives the same on every stream: it is run on the first one.

    Args:
        model: the classifier; as it was afterwards.
        data: its test images are shown in each of its cells and clean; not changed, whatever its own stream.
        methods: names in `METHODS`; by default the unpatched model, BN-1, and the best that bank and detector allow.
        streams: some of `"mixed"`, `"sequential"`, `"continual"` and `"correlated"`.
        batch_sizes: images per batch, one run each; by default the batch size of `data`.
        bank: of this model, for the methods that look rows up.
        detector: a `DetectorModule` or its checkpoint, for the methods that detect them.
        quantiles: of this model, for distribution matching; if not given, measured on clean training images of `data`.
        per_image: keep each image's outcome too, packed, for paired tests; see `reporting.unpack_correct`.
        progress: show a progress bar.
        **trainer_options: for the Trainer, `accelerator="cuda"` for instance.

    Returns:
        Results as `reporting.write_results` writes them: accuracies from 0 to 1 by method and cell, and costs.

    Raises:
        DataError: for unknown methods or streams, batch sizes below 1, or a missing bank, detector, calibration,
            refinement or quantiles, before any work.
        BankError: for a bank or quantiles of another model.
        DetectorError: for a detector of other rows than the bank's.
    """
    if methods is None:
        methods = default_methods(bank, has_detector=detector is not None)
    batch_sizes = [data.batch_size] if batch_sizes is None else batch_sizes
    check_methods(methods, has_bank=bank is not None, has_detector=detector is not None)
    check_streams(streams)
    check_batch_sizes(batch_sizes)
    if bank is not None:
        bank.check_model(model)
        check_bank(methods, bank)
        check_oracle(methods, bank, data.cells)
    if tuple(methods) != ("source",):
        find_batchnorm_layers(model, () if bank is None else bank.skip)
    if quantiles is not None and (difference := quantiles.mismatch(model)) is not None:
        raise BankError(f"the quantiles are of another model than {type(model).__name__}: {difference}")
    num_images = len(data.test_images)  # opened here, so that all copies of the datamodule share them
    device = next((parameter.device for parameter in model.parameters()), None)
    runs: list[dict[str, Any]] = []
    try:
        if needed_quantiles(methods, bank, quantiles):
            quantiles = _clean_quantiles(model, data, bank, trainer_options, progress=progress)
        tools = Tools(bank, detector, quantiles)
        with quiet_lightning(), progress_bar(shown=progress) as bar:
            _rehearse(model, data, methods, tools, max(batch_sizes), trainer_options)
            steps = sum(-(-num_images * len(data.cells) // size) for size in batch_sizes)
            task = bar.add_task("evaluate", total=steps * len(methods) * len(streams))
            for size in batch_sizes:
                for stream in streams:
                    shown = copy.copy(data)
                    shown.stream, shown.batch_size = stream, size  # type: ignore[assignment]
                    blocks: dict[str, Any] = {}
                    runs.append({"stream": stream, "batch_size": size, "methods": blocks})
                    for name in methods:
                        if METHODS[name].by_image and stream != streams[0]:
                            first = next(run for run in runs if run["batch_size"] == size)
                            blocks[name] = {**first["methods"][name], "same_as": streams[0]}
                            bar.advance(task, -(-num_images * len(data.cells) // size))
                            continue
                        bar.update(task, description=f"{name}, {stream}, batches of {size}")
                        blocks[name] = _run(model, shown, name, tools, _Advance(bar, task), per_image, trainer_options)
            bar.update(task, completed=steps * len(methods) * len(streams))
    finally:
        model.to(device)  # Lightning leaves it on the CPU
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": protocol(model, data, streams, batch_sizes, tools),
        "runs": runs,
    }


def _clean_quantiles(
    model: nn.Module,
    data: CorruptionDataModule,
    bank: BNStatsBank | None,
    trainer_options: dict[str, Any],
    *,
    progress: bool,
) -> QuantileBank:
    device = device_of(trainer_options.get("accelerator", "auto"))
    loaders = data.row_loaders(images_per_row=2000, device=device)
    skip = () if bank is None else bank.skip
    return QuantileBank.collect(model.to(device), loaders, rows=[SOURCE_ROW], skip=skip, progress=progress)


def _rehearse(
    model: nn.Module,
    data: CorruptionDataModule,
    methods: Sequence[str],
    tools: Tools,
    batch_size: int,
    trainer_options: dict[str, Any],
) -> None:
    """One batch by every method: what can't work fails before hours of work, and nothing measured is a first call."""
    shown = copy.copy(data)
    shown.stream, shown.batch_size = "mixed", batch_size
    for name in methods:
        METHODS[name].callbacks(tools)  # refuses rows that don't fit, before the first batch of any method
    for name in methods:
        _run(model, shown, name, tools, Callback(), False, {**trainer_options, "limit_test_batches": 1})


def protocol(
    model: nn.Module,
    data: CorruptionDataModule,
    streams: Sequence[str],
    batch_sizes: Sequence[int],
    tools: Tools,
) -> dict[str, Any]:
    """What must be said beside any number: data, cells, streams, batch sizes, counts, seed, versions."""
    bank, quantiles = tools.bank, tools.quantiles
    return {
        **data.provenance(),
        "model": getattr(model, "name", type(model).__name__),
        "corruptions": list(data.corruptions),
        "streams": list(streams),
        "batch_sizes": list(batch_sizes),
        "concentration": data.concentration if "correlated" in streams else None,
        "test_images": len(data.test_images),
        "reset": "methods with state begin anew with each loader: each cell of the sequential and correlated streams, "
        "once in the mixed and continual ones; dynamic_bn/stream once in each stream",
        "bank": None if bank is None else {"rows": len(bank), **bank.provenance},
        "quantiles": None
        if quantiles is None
        else {"rows": len(quantiles.rows), "count": quantiles.quantiles.shape[2], **quantiles.provenance},
        "calibration": None if bank is None or bank.calibration is None else dict(bank.calibration.provenance),
        "uses": None
        if bank is None
        else "detector, bank and calibration are made from corrupted training images: not source-free",
        "versions": {
            "dynbn_lightning": dynbn_lightning.__version__,
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def _run(
    model: nn.Module,
    data: CorruptionDataModule,
    name: str,
    tools: Tools,
    advance: Callback,
    per_image: bool,
    trainer_options: dict[str, Any],
) -> dict[str, Any]:
    method, cost, outcomes = METHODS[name], StepCost(), _Outcomes(len(data.test_images))
    module = ClassifierModule(model)
    used = method.callbacks(tools)
    callbacks = [cost.first, *used, cost.last, advance, *([outcomes] if per_image else [])]
    options = {"inference_mode": not method.gradients, **trainer_options}
    trainer = bare_trainer(callbacks=callbacks, enable_progress_bar=False, **options)
    trainer.test(module, datamodule=data, verbose=False)
    accuracies = module.cell_accuracy.compute()
    mean = mean_over_corruptions(accuracies)
    detection = trainer.callback_metrics.get("detection/acc")
    clean = accuracies.pop("clean", None)
    return {
        "clean": None if clean is None else float(clean),
        "cells": {name: float(accuracy) for name, accuracy in accuracies.items()},
        "mean": None if mean is None else float(mean),
        **({} if detection is None else {"detection": float(detection)}),
        "needs": needs_of(name, tools),
        "settings": {type(callback).__name__: _settings(callback) for callback in used},
        **{key: value for callback in used if (value := vars(callback).get(key := "used_images"))},
        "ms_per_image": cost.ms_per_image,
        "memory_mib": None if cost.mib is None else round(cost.mib, 1),
        **({"refined": True} if uses_refined(name, tools.bank) else {}),
        **({"correct": pack_correct(outcomes.correct)} if per_image else {}),
    }


def _settings(callback: Callback) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(callback).items() if name[0] != "_" and isinstance(value, plain)}


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
