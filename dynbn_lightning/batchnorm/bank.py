"""The bank: the BatchNorm statistics of one model, a row per corruption, with what produced them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.bank_file import read_bank_file, write_bank_file
from dynbn_lightning.batchnorm.belonging import difference_from
from dynbn_lightning.batchnorm.calibration import Calibration
from dynbn_lightning.batchnorm.collecting import Propagation, check_propagation, collect_statistics
from dynbn_lightning.batchnorm.fingerprint import fingerprints
from dynbn_lightning.batchnorm.layers import find_batchnorm_layers
from dynbn_lightning.batchnorm.patched_layers import source_statistics
from dynbn_lightning.batchnorm.ranks import do_on_first_rank, gather_from_ranks
from dynbn_lightning.batchnorm.statistics import Statistics
from dynbn_lightning.batchnorm.unfinished_bank import UnfinishedBank, as_in_a_file
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.progress import progress_bar

_CALIBRATION_TABLES = ("source_share", "image_share")
_CALIBRATION_VALUES = ("temperature", "novelty_limit", "detector")

SOURCE_ROW = "clean"
"""The name of row 0, the source statistics: what the model came with."""


@dataclass(frozen=True, eq=False)
class BNStatsBank:
    """Rows of BatchNorm statistics for all layers of one model; row 0, `clean`, holds the source statistics.

    Attributes:
        rows: the names of the K rows, the first one `clean`.
        layers: layer name -> number of channels, in the model's order.
        mean: means of all layers side by side, shape (K, channels of all layers), float32.
        var: unbiased variances, same shape.
        fingerprints: of the model's weights, by precision.
        provenance: what produced the rows: normalization, preset, severities, seed, source, images per row, as far as
            it is known.
        skip: layers of the model, or modules that hold some, which are left as they are.
        weight: scales of refined rows, shape (K, channels of all layers); None where rows are statistics alone.
        bias: shifts of refined rows, same shape.
        calibration: how far each row is to be trusted; None where that was not measured.
    """

    rows: tuple[str, ...]
    layers: Mapping[str, int]
    mean: Tensor
    var: Tensor
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.layers or min(self.layers.values()) < 1:
            raise BankError(f"a bank has layers of one or more channels each, got {dict(self.layers)}")
        shape = (len(self.rows), sum(self.layers.values()))
        if tuple(self.mean.shape) != shape or tuple(self.var.shape) != shape:
            raise BankError(
                f"a bank of {shape[0]} rows and {shape[1]} channels needs tables of shape {shape}, "
                f"got mean {tuple(self.mean.shape)} and var {tuple(self.var.shape)}"
            )
        if not self.rows or self.rows[0] != SOURCE_ROW or len(set(self.rows)) != len(self.rows):
            raise BankError(f"the rows of a bank are distinct and begin with {SOURCE_ROW!r}, got {list(self.rows)}")
        if not (self.mean.isfinite().all() and self.var.isfinite().all() and (self.var >= 0).all()):
            raise BankError("a bank's means and variances are finite and its variances at least 0; these are not")
        if (self.weight is None) != (self.bias is None):
            raise BankError("refined rows have scales and shifts; here is one of them alone")
        for name, table in (("weight", self.weight), ("bias", self.bias)):
            if table is not None and (tuple(table.shape) != shape or not table.isfinite().all()):
                raise BankError(f"the {name} of refined rows is a finite table of shape {shape}; this one is not")
        if self.calibration is not None:
            self.calibration.check(len(self.rows), len(self.layers))

    @property
    def statistics(self) -> Statistics:
        """The rows as one table of K rows, without the calibration."""
        return Statistics(self.mean, self.var, self.weight, self.bias)

    @property
    def refined(self) -> bool:
        """Whether rows have scales and shifts of their own, which is more than statistics."""
        return self.weight is not None

    def uncalibrated(self) -> BNStatsBank:
        """The same rows without the calibration."""
        return replace(self, calibration=None)

    def unrefined(self) -> BNStatsBank:
        """The same statistics and calibration without scales and shifts."""
        provenance = {name: value for name, value in self.provenance.items() if name != "refined"}
        return replace(self, weight=None, bias=None, provenance=provenance)

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Any]],
        *,
        propagate: Propagation = "batch",
        skip: Sequence[str] = (),
        path: str | Path | None = None,
        progress: bool = True,
    ) -> BNStatsBank:
        """Measure a row for every entry of `loaders`; row 0 is what the model came with.

        A layer's statistics depend on what the layers before it do, which `propagate` says:

        - `"batch"`: they normalise every batch by its own moments, which are merged exactly over the batches; one
          forward pass per image. With all images of a row in one batch this is `"sequential"`.
        - `"source"`: they keep the source statistics; one forward pass per image, independent of the batch size.
        - `"sequential"`: they normalise by the row's own finished statistics, layer after layer; independent of the
          batch size, to float32 accuracy; half a forward per image and layer, and the images of a row are kept.

        Batches of 100 images and more are as good as `"sequential"`, to 0.1 points of top-1; batches of 8 lose 0.2 to
        1.1. From 400 images on, more gain nothing; 32 lose 2.4 points. `"source"` rows are of no use loaded into all
        layers. (ResNet-20, 30 cells of CIFAR-10, `benchmarks/propagation.py`.)

        Where `torch.distributed` runs, every rank must call this, brings its share of each row's images and gets the
        whole bank.

        Args:
            model: the classifier, on the device to run on; as it was afterwards.
            loaders: row name -> batches of images (N, C, H, W), normalised as the model takes them, or tuples that
                begin with them. `CorruptionDataModule.row_loaders()` is one, and records what it did in `provenance`.
                An entry `clean` is passed over.
            propagate: `"batch"`, `"source"` or `"sequential"`.
            skip: names of layers, or of modules that hold some, which have no statistics in the bank and are left as
                they are whenever it is used; for layers that are not supported.
            path: where to write the bank. Finished rows are kept beside it until all are, and the same call goes on
                after them if it is interrupted.
            progress: show a progress bar.

        Raises:
            UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones that are not skipped.
            DataError: if a loader is empty or yields no images, or images with NaN; it names the row.
            BankError: if there is no row to measure, or if the rows kept beside `path` are of another collection.
            OutputError: if nothing can be written to `path`.
        """
        check_propagation(propagate)
        layers = find_batchnorm_layers(model, skip)
        rows = [row for row in loaders if row != SOURCE_ROW]
        if not rows:
            raise BankError("no rows to measure: `loaders` needs an entry besides 'clean', such as 'fog'")
        if len(set(gather_from_ranks(tuple(rows)))) > 1:
            raise DataError("the ranks measure different rows, or in another order: `loaders` must agree")
        source = {name: source_statistics(layer) for name, layer in layers.items()}
        mean, var = (torch.cat([row[part].float().cpu() for row in source.values()])[None] for part in (0, 1))
        bank = cls(
            rows=(SOURCE_ROW,),
            layers={name: len(row_mean) for name, (row_mean, _) in source.items()},
            mean=mean,
            var=var,
            fingerprints=fingerprints(model),
            provenance={**dict(getattr(loaders, "provenance", {})), "propagate": propagate, "image_counts": {}},
            skip=tuple(skip),
        )
        file = None if path is None else UnfinishedBank(Path(path), cls.load, _settings_of)
        if file is not None:
            bank = do_on_first_rank(lambda: _resumed(bank, file, rows))
        with progress_bar(shown=progress) as bar:
            task = bar.add_task("BatchNorm statistics", total=len(rows))
            for row in rows:
                bar.update(task, description=f"BatchNorm statistics of {row}")
                if row not in bank.rows:
                    try:
                        bank = bank._with_row(row, *collect_statistics(model, loaders[row], propagate, skip))
                    except DataError as error:
                        raise DataError(f"row {row!r}: {error}") from error
                    if file is not None:
                        do_on_first_rank(partial(bank.save, file.rows_so_far))
                bar.advance(task)
            bar.update(task, description="BatchNorm statistics")
        if file is not None:
            do_on_first_rank(file.finish)
        return bank

    def _with_row(self, row: str, statistics: Mapping[str, tuple[Tensor, Tensor]], images: int) -> BNStatsBank:
        mean, var = (torch.cat([statistics[name][part] for name in self.layers])[None] for part in (0, 1))
        counts = {**self.provenance["image_counts"], row: images}
        return replace(
            self,
            rows=(*self.rows, row),
            mean=torch.cat([self.mean, mean]),
            var=torch.cat([self.var, var]),
            provenance={**self.provenance, "image_counts": counts},
        )

    def __getitem__(self, row: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer name -> (mean, variance) of a row, each (C,)."""
        index = self.index(row)
        statistics, start = {}, 0
        for name, width in self.layers.items():
            channels = slice(start, start := start + width)
            statistics[name] = (self.mean[index, channels], self.var[index, channels])
        return statistics

    def __len__(self) -> int:
        return len(self.rows)

    def index(self, row: str) -> int:
        """The number of a row; `BankError` with the nearest name if there is none."""
        if row not in self.rows:
            raise BankError(f"the bank has no row {row!r}: {did_you_mean(row, self.rows)}")
        return self.rows.index(row)

    def mismatch(self, model: nn.Module) -> str | None:
        """What differs between the model that this bank was collected on and `model`; None if nothing does."""
        return difference_from(model, self.layers, self.skip, self.fingerprints)

    def check_model(self, model: nn.Module) -> None:
        """Raise `BankError` unless this bank was collected on `model`'s architecture and weights."""
        difference = self.mismatch(model)
        if difference is not None:
            raise BankError(
                f"this bank is of another model than {type(model).__name__}: {difference}. "
                "Collect a bank for this model with BNStatsBank.collect or `dynbn bank build`."
            )

    def save(self, path: str | Path) -> None:
        """Write the bank as a safetensors file; a file there is replaced as a whole or, on failure, left alone."""
        tables = {"mean": self.mean, "var": self.var, "weight": self.weight, "bias": self.bias}
        metadata = {
            "rows": list(self.rows),
            "layers": [[name, width] for name, width in self.layers.items()],
            "fingerprints": dict(self.fingerprints),
            "provenance": dict(self.provenance),
            "skip": list(self.skip),
        }
        if self.calibration is not None:
            described = {name: getattr(self.calibration, name) for name in _CALIBRATION_VALUES}
            metadata["calibration"] = {**described, "provenance": dict(self.calibration.provenance)}
            tables |= {f"calibration.{name}": getattr(self.calibration, name) for name in _CALIBRATION_TABLES}
        given = {name: table for name, table in tables.items() if table is not None}
        write_bank_file(Path(path), given, metadata)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> BNStatsBank:
        """Read a bank; with `model`, refuse it unless it was collected on that model.

        Raises:
            BankError: if the file is missing, damaged, of a newer format, or of another model.
        """
        tables, metadata = read_bank_file(Path(path))
        try:
            layers = {str(name): int(width) for name, width in metadata["layers"]}
            if len(layers) != len(metadata["layers"]):
                raise BankError("a layer stands in it twice")
            bank = cls(
                rows=tuple(metadata["rows"]),
                layers=layers,
                mean=tables["mean"],
                var=tables["var"],
                fingerprints=dict(metadata["fingerprints"]),
                provenance=dict(metadata["provenance"]),
                skip=tuple(str(name) for name in metadata.get("skip", ())),
                weight=tables.get("weight"),
                bias=tables.get("bias"),
                calibration=_read_calibration(tables, metadata.get("calibration")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BankError(f"{path} is damaged: {error}") from error
        if model is not None:
            bank.check_model(model)
        return bank


def _read_calibration(tables: Mapping[str, Tensor], described: Mapping[str, Any] | None) -> Calibration | None:
    if described is None:
        return None
    return Calibration(
        source_share=tables["calibration.source_share"],
        image_share=tables.get("calibration.image_share"),
        **{name: described[name] for name in _CALIBRATION_VALUES},
        provenance=dict(described["provenance"]),
    )


def _settings_of(bank: BNStatsBank) -> dict[str, Any]:
    """What decided a bank's rows, beside the model; how many images each row has seen is found, not chosen."""
    return {**bank.provenance, "image_counts": {}, "skip": list(bank.skip)}


def _resumed(bank: BNStatsBank, file: UnfinishedBank[BNStatsBank], rows: Sequence[str]) -> BNStatsBank:
    """What an interrupted collection of `rows` left, or else `bank`, which has row 0 alone."""
    bank = replace(bank, provenance=as_in_a_file(bank.provenance))
    return file.begin(_settings_of(bank), bank.fingerprints, rows) or bank
