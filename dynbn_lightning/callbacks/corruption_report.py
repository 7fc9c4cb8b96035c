"""The report of a test as a callback: files that people and programs read, and scalars for the Trainer's loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..batchnorm import BNStatsBank
from ..batchnorm.ranks import do_on_first_rank, gather_from_ranks
from ..datamodules import CorruptionDataModule
from ..errors import DataError, ImageError
from ..files import os_errors_named
from ..reporting import ImageRecords, Piece, ResultsFolder, write_report
from .base import BatchNormCallback, images_of
from .example_images import ExampleImages
from .protocol import (
    common_settings,
    described_model,
    hardware,
    network_of,
    said_of_bank,
    settings_of,
    versions,
)
from .recording import RecordingCallback
from .report_logging import log_figures, log_scalars


class CorruptionReportCallback(RecordingCallback):
    """Writes the report of a test on corrupted images: accuracy of each cell, tables, pictures, a record per image.

    For any LightningModule, also one that logs nothing; see `RecordingCallback` for what it reads. When the test ends,
    the first process writes to `output`: `results.json` (docs/reports.md has its schema), `results.csv`, `results.md`,
    `results.tex`, `report.html`, `images/` (a record of each image and cell) and `examples/`. Each image counts once
    in each cell, on any number of processes, also where a sampler repeats some. A test that raises or is interrupted
    leaves what there was, marked as unfinished.

    Tests of the same model on the same data gather in one folder, so that methods stand side by side: test once
    without other callbacks (`source`), and once with each method. Other settings are refused before the first step.

    The Trainer's loggers get `clean/acc`, `fog/3/acc`, `fog/3/top5`, `fog/3/nll`, `fog/3/ece` and so on, `mean/acc`
    over the corrupted cells and `detection/acc`; TensorBoard also gets the figures.

    Args:
        output: folder to write to.
        method: what the method is called in the report; by default the name of the BatchNorm callbacks that the
            Trainer has, `"source"` without any.

    Raises:
        OutputError: when the test begins, if the folder can't be written to or another run is writing there; when it
            ends, if the disk is full.
        DataError: when the test begins, if the folder holds results of other settings.
        ReportError: as `RecordingCallback`.
    """

    def __init__(self, output: str | Path, method: str | None = None) -> None:
        super().__init__()
        self.output = Path(output)
        self.method = method
        self._folder: ResultsFolder | None = None
        self._piece: Piece | None = None
        self._examples: ExampleImages | None = None
        self._finished: ImageRecords | None = None
        self._settings: dict[str, Any] = {}
        self._skipped: dict[str, int] = {}

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is not None:
            self._folder.close()
        self._folder = self._finished = self._examples = None
        self._skipped = {}
        super()._begin(trainer, pl_module)
        if self._hook is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CorruptionDataModule):
            self._end()
            raise self._no_cells()
        methods = _methods(trainer)
        name = self.method or "+".join(one.method for one in methods) or "source"
        self._piece = Piece(data.stream, data.batch_size, name)
        split = "test" if trainer.testing else "validation"
        network = network_of(pl_module)
        settings = common_settings(network, data, trainer, split, pl_module.device)
        banks = [bank for one in methods if (bank := _bank_of(one)) is not None]
        protocol = {
            **described_model(network),
            "module": type(pl_module).__name__,
            **settings["data"],
            **{name: settings[name] for name in ("split", "precision", "limit_batches", "processes")},
            **said_of_bank(banks[0] if banks else None),
            "versions": versions(),
            "hardware": hardware(pl_module.device),
        }
        piece, how = self._piece, {type(one).__name__: settings_of(one) for one in methods}
        folder = ResultsFolder(self.output)

        def begin() -> None:
            folder.begin(settings, protocol)
            folder.check(piece, how)

        try:
            self._meet("begins")
            do_on_first_rank(begin)
        except BaseException:
            folder.close()
            self._end()
            raise
        self._folder, self._settings = folder, how
        if trainer.is_global_zero:
            self._examples = ExampleImages(self.output, data)

    def _record(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> ImageRecords | None:
        records = super()._record(trainer, pl_module, outputs, batch)
        info = trainer.datamodule.batch_info if records is not None else None  # type: ignore[attr-defined]
        if self._examples is not None and info is not None:
            try:
                self._examples.look(self.images_of(batch), info)
            except (ImageError, DataError, OSError) as error:
                self._examples = None  # a report without pictures is better than none
                rank_zero_warn(f"the report will have no example images: {error}")
        return records

    def images_of(self, batch: Any) -> Any:
        """The images (N, C, H, W) of a batch, for the examples; to override for batches of an unusual form."""
        return images_of(batch)

    def _conclude(self, trainer: Trainer) -> None:
        if self._folder is None:
            return
        self._finished = self.records_of_all_ranks()
        data: CorruptionDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.on_error == "skip":
            self._skipped = {"skipped": len({one for its in gather_from_ranks(data.skipped_now) for one in its})}
        log_scalars(trainer, self._finished)

    def _write(self, trainer: Trainer, records: ImageRecords, folder: ResultsFolder, piece: Piece) -> None:
        hardware_used = folder.results["protocol"]["hardware"]
        folder.finish(piece, records, {**self._skipped, "settings": self._settings, "hardware": hardware_used})
        folder.write()
        with os_errors_named(self.output):
            write_report([self.output], self.output)
        log_figures(trainer, folder.results, piece, records)

    def _write_unfinished(self, records: ImageRecords, folder: ResultsFolder, piece: Piece) -> None:
        if not len(records) or folder.block(piece) is not None:
            return  # what an earlier test finished is better
        folder.keep(piece, records, {}, {"settings": self._settings})
        folder.write([piece])
        write_report([self.output], self.output)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the records of all processes, and log."""
        self._conclude(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the records of all processes, and log."""
        self._conclude(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        folder, piece, records, self._folder = self._folder, self._piece, self._finished, None
        try:
            if folder is not None and piece is not None and records is not None:
                do_on_first_rank(lambda: self._write(trainer, records, folder, piece))
        finally:
            if folder is not None:
                folder.close()
            super().on_test_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report."""
        self.on_test_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what this process has seen, marked as unfinished."""
        super().on_exception(trainer, pl_module, exception)
        folder, piece, self._folder = self._folder, self._piece, None
        if folder is None or piece is None or not trainer.is_global_zero:
            return
        try:
            self._write_unfinished(self._finished or self.records().unique(), folder, piece)
        except Exception as error:
            # Not to be raised: other callbacks have to hear of the exception too, and the user of that one.
            rank_zero_warn(f"what there was of the report could not be written: {type(error).__name__}: {error}")
        finally:
            folder.close()


def _methods(trainer: Trainer) -> list[BatchNormCallback]:
    return [one for one in trainer.callbacks if isinstance(one, BatchNormCallback)]  # type: ignore[attr-defined]


def _bank_of(method: Any) -> BNStatsBank | None:
    bank = getattr(method, "bank", None)
    if isinstance(bank, BNStatsBank):
        return bank
    base = getattr(method, "base", None)
    return None if base is None else _bank_of(base)
