"""Evaluating methods on streams: what the command line, the benchmarks and the notebooks all call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from dynbn_lightning.batchnorm import SOURCE_ROW, BNStatsBank, QuantileBank, find_batchnorm_layers, fingerprints
from dynbn_lightning.batchnorm.ranks import do_on_first_rank
from dynbn_lightning.callbacks.frozen_detector import load_detector
from dynbn_lightning.callbacks.protocol import (
    common_settings,
    described_bank,
    described_data,
    described_model,
    hardware,
    said_of_bank,
    versions,
)
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.fitting import bare_trainer, quiet_lightning
from dynbn_lightning.methods import (
    METHODS,
    Tools,
    check_bank,
    check_methods,
    check_oracle,
    default_methods,
    needed_quantiles,
)
from dynbn_lightning.models.normalization import warn_of_other_normalization
from dynbn_lightning.pieces import run_method, run_piece, settings_of_method
from dynbn_lightning.processes import prepare, start_processes_of
from dynbn_lightning.progress import progress_bar
from dynbn_lightning.reporting import Piece, ResultsFolder


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
    detector: nn.Module | str | Path | None = None,
    quantiles: QuantileBank | None = None,
    output: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Test a model on the cells of `data` by several methods.

    A method that looks at each image alone gives the same on every stream: it is run on the first one.

    With `output`, results are written there while they come, with a record of each image and a few example images, and
    the same call goes on after an interruption: methods that are finished on a stream are not run again, and one that
    was interrupted goes on, where it carries nothing over, from where it was. Results of other methods that are there
    already, made with the same settings, stay beside them. `reporting.write_report` makes tables and pictures of it.

    With `devices=` and `num_nodes=` for more than one process, each runs the program that calls this, up to here, and
    all return the same results; batches are dealt to them in turn, so that the numbers are those of one process (of
    TENT, see there). What one of several processes had done of a method is not gone on from.

    Args:
        model: the classifier; as it was afterwards.
        data: its test images are shown in each of its cells and clean; not changed, whatever its own stream.
        methods: names in `METHODS`; by default the unpatched model, BN-1, and the best that bank and detector allow.
        streams: some of `"mixed"`, `"sequential"`, `"continual"` and `"correlated"`.
        batch_sizes: images per batch, one run each; by default the batch size of `data`.
        bank: of this model, for the methods that look rows up.
        detector: a `DetectorModule` or its checkpoint, for the methods that detect them.
        quantiles: of this model, for distribution matching; if not given, measured on clean training images of `data`.
        output: folder to write results to and to go on from.
        about: what the protocol should say besides, such as the model's name and checkpoint.
        progress: show a progress bar.
        **trainer_options: for the Trainer, `accelerator="cuda", devices=8` for instance.

    Returns:
        Results as `output/results.json` has them (docs/reports.md): accuracies from 0 to 1 by method and cell, and
        costs.

    Raises:
        DataError: for unknown methods or streams, batch sizes below 1, a missing bank, detector, calibration,
            refinement or quantiles, or an `output` with results of other settings, before any work.
        BankError: for a bank or quantiles of another model.
        DetectorError: for a detector of other rows than the bank's.
        OutputError: if nothing can be written to `output`, before any work.
    """
    if methods is None:
        methods = default_methods(bank, has_detector=detector is not None)
    batch_sizes = [data.batch_size] if batch_sizes is None else batch_sizes
    check_methods(methods, has_bank=bank is not None, has_detector=detector is not None)
    check_streams(streams)
    check_batch_sizes(batch_sizes)
    warn_of_other_normalization(model, data.normalization)
    if bank is not None:
        bank.check_model(model)
        check_bank(methods, bank)
        check_oracle(methods, bank, data.cells)
    if tuple(methods) != ("source",):
        find_batchnorm_layers(model, () if bank is None else bank.skip)
    if quantiles is not None and (difference := quantiles.mismatch(model)) is not None:
        raise BankError(f"the quantiles are of another model than {type(model).__name__}: {difference}")
    if isinstance(detector, (str, Path)):
        detector = load_detector(Path(detector))
    tools = Tools(bank, detector, quantiles)
    with quiet_lightning():
        trainer = bare_trainer(**trainer_options)
    if trainer.world_size > 1:
        start_processes_of(trainer)  # from here on each of them does the same
    prepare(data, trainer.local_rank)
    num_images = len(data.test_images)  # opened here, so that all copies of the datamodule share them
    pieces = [Piece(stream, size, name) for size in batch_sizes for stream in streams for name in methods]
    folder = ResultsFolder(Path(output) if output is not None and trainer.is_global_zero else None)
    device = next((parameter.device for parameter in model.parameters()), None)
    runs_on = trainer.strategy.root_device
    try:
        do_on_first_rank(
            lambda: folder.begin(_settings(model, data, tools, trainer, trainer_options), protocol(model, data, tools))
        )
        folder.say(hardware=hardware(runs_on), **(about or {}))
        pending = do_on_first_rank(lambda: [piece for piece in pieces if folder.block(piece) is None])
        if needed_quantiles([piece.method for piece in pending], bank, quantiles):
            tools = Tools(bank, detector, _clean_quantiles(model, data, bank, runs_on, progress=progress))
        folder.say(quantiles=_described_quantiles(tools.quantiles))
        do_on_first_rank(lambda: _check_pieces(folder, pieces, pending, tools))
        with quiet_lightning(), progress_bar(shown=progress and trainer.is_global_zero) as bar:
            _rehearse(model, data, pending, tools, trainer_options)
            shown = {size: -(-num_images * len(data.cells) // size) for size in batch_sizes}
            steps = {size: -(-batches // trainer.world_size) for size, batches in shown.items()}
            task = bar.add_task("evaluate", total=sum(steps[piece.batch_size] for piece in pieces))
            for place, piece in enumerate(pieces):
                first = piece._replace(stream=streams[0])
                if piece in pending:
                    bar.update(task, description=str(piece))
                    missing = [later for later in pieces[place:] if later in pending]
                    if METHODS[piece.method].by_image and piece != first:
                        folder.add(piece, {**(folder.block(first) or {}), "same_as": first.stream})
                    else:
                        run_piece(
                            model, data, piece, tools, folder, missing, lambda n: bar.advance(task, n), trainer_options
                        )
                    do_on_first_rank(partial(folder.write, missing[1:]))
                bar.update(task, completed=sum(steps[done.batch_size] for done in pieces[: place + 1]))
        do_on_first_rank(folder.write)
    finally:
        folder.close()
        model.to(device)  # Lightning leaves it on the CPU
    return do_on_first_rank(lambda: folder.results)


def _check_pieces(folder: ResultsFolder, pieces: Sequence[Piece], pending: Sequence[Piece], tools: Tools) -> None:
    for piece in pieces:
        if piece in pending or METHODS[piece.method].quantiles == "none" or tools.quantiles is not None:
            folder.check(piece, settings_of_method(piece.method, tools))


def _settings(
    model: nn.Module,
    data: CorruptionDataModule,
    tools: Tools,
    trainer: Trainer,
    trainer_options: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the numbers: results with other settings don't stand in one folder."""
    said_already = ("accelerator", "precision", "limit_test_batches", "devices", "num_nodes", "strategy")
    return {
        **common_settings(model, data, trainer, "test", trainer.strategy.root_device),
        "bank": None if tools.bank is None else described_bank(tools.bank)["fingerprint"],
        "detector": None if tools.detector is None else fingerprints(tools.detector)["float32"],
        "trainer": sorted(f"{name}={value}" for name, value in trainer_options.items() if name not in said_already),
    }


def protocol(model: nn.Module, data: CorruptionDataModule, tools: Tools) -> dict[str, Any]:
    """What must be said beside any number: model, data, cells, counts, seed, tools, versions."""
    return {
        **described_model(model),
        **described_data(data),
        "reset": "methods with state begin anew with each loader: each cell of the sequential and correlated streams, "
        "once in the mixed and continual ones; dynamic_bn/stream once in each stream",
        **said_of_bank(tools.bank),
        "versions": versions(),
    }


def _described_quantiles(quantiles: QuantileBank | None) -> dict[str, Any] | None:
    if quantiles is None:
        return None
    return {"rows": len(quantiles.rows), "count": quantiles.quantiles.shape[2], **quantiles.provenance}


def _clean_quantiles(
    model: nn.Module, data: CorruptionDataModule, bank: BNStatsBank | None, device: torch.device, *, progress: bool
) -> QuantileBank:
    loaders = data.row_loaders(images_per_row=2000, device=device)
    skip = () if bank is None else bank.skip
    return QuantileBank.collect(model.to(device), loaders, rows=[SOURCE_ROW], skip=skip, progress=progress)


def _rehearse(
    model: nn.Module,
    data: CorruptionDataModule,
    pending: Sequence[Piece],
    tools: Tools,
    trainer_options: dict[str, Any],
) -> None:
    """One batch by every method: what can't work fails before hours of work, and nothing measured is a first call."""
    methods = list(dict.fromkeys(piece.method for piece in pending))
    for name in methods:
        METHODS[name].callbacks(tools)  # refuses rows that don't fit, before the first batch of any method
    if pending:
        shown = data.showing("mixed", max(piece.batch_size for piece in pending))
        for name in methods:
            run_method(model, shown, name, tools, [], {**trainer_options, "limit_test_batches": 1})
