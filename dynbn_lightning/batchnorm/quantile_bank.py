"""Quantiles of the activations that reach each BatchNorm layer, on clean and on corrupted images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.bank import SOURCE_ROW
from dynbn_lightning.batchnorm.bank_file import FileKind, read_bank_file, write_bank_file
from dynbn_lightning.batchnorm.belonging import difference_from
from dynbn_lightning.batchnorm.collecting import Images, evaluation_mode
from dynbn_lightning.batchnorm.distribution_matching import DistributionMatchingPolicy
from dynbn_lightning.batchnorm.fingerprint import fingerprints
from dynbn_lightning.batchnorm.layers import find_batchnorm_layers
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.quantiles import quantiles_of, sampled
from dynbn_lightning.batchnorm.ranks import do_on_first_rank, do_on_ranks, gather_from_ranks
from dynbn_lightning.batchnorm.unfinished_bank import UnfinishedBank, as_in_a_file
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.progress import progress_bar

_SAMPLES = 16_384
"""Activations of each channel that a batch's quantiles are measured on."""

QUANTILE_FILE = FileKind(
    "quantile bank",
    "dynbn_quantiles",
    1,
    (1,),
    ("quantiles",),
    "QuantileBank.save or `dynbn bank build --quantile-count`",
)


@dataclass(frozen=True, eq=False)
class QuantileBank:
    """The distributions of the activations that reach each layer of one model, a row per corruption.

    Row 0, `clean`, is of clean training images under the model's own statistics: what distribution matching moves
    activations onto. Another row is of images of its corruption, the layers before already matched onto row 0.

    Attributes:
        rows: the names of the K rows, the first one `clean`.
        layers: layer name -> number of channels, in the model's order.
        quantiles: of all layers side by side, (K, channels of all layers, Q) float32, ascending, at the probabilities
            (i + 1/2) / Q; the average over batches of their quantile functions, which is their 1-D Wasserstein
            barycentre.
        fingerprints: of the model's weights, by precision.
        provenance: what they were measured on.
        skip: layers of the model, or modules that hold some, which are left as they are.
    """

    rows: tuple[str, ...]
    layers: Mapping[str, int]
    quantiles: Tensor
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] != SOURCE_ROW or len(set(self.rows)) != len(self.rows):
            raise BankError(f"the rows of quantiles are distinct and begin with {SOURCE_ROW!r}, got {list(self.rows)}")
        shape = tuple(self.quantiles.shape)
        if len(shape) != 3 or shape[:2] != (len(self.rows), sum(self.layers.values())) or shape[2] < 2:
            raise BankError(
                f"quantiles of {len(self.rows)} rows and {sum(self.layers.values())} channels are a table "
                f"({len(self.rows)}, {sum(self.layers.values())}, 2 or more), got {shape}"
            )
        if not (self.quantiles.isfinite().all() and (self.quantiles.diff(dim=2) >= 0).all()):
            raise BankError("quantiles are finite and ascending; these are not")

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        loaders: Mapping[str, Iterable[Any]],
        *,
        count: int = 64,
        rows: Sequence[str] | None = None,
        skip: Sequence[str] = (),
        path: str | Path | None = None,
        progress: bool = True,
    ) -> QuantileBank:
        """Measure the quantiles of a model's activations on each row's images; the model is as it was afterwards.

        Where `torch.distributed` runs, over the batches of all ranks, which must all call it with the same rows; the
        first one writes.

        Args:
            model: with its own statistics.
            loaders: row name -> batches of images (N, C, H, W) as the model takes them, or tuples that begin with them;
                `clean` among them. `CorruptionDataModule.row_loaders()` is one.
            count: how many quantiles.
            rows: only these and `clean`; by default all of `loaders`.
            skip: names of layers, or of modules that hold some, which are left as they are.
            path: where to write the bank. Finished rows are kept beside it until all are, and the same call goes on
                after them if it is interrupted.
            progress: show a progress bar.

        Raises:
            BankError: if there are no clean images, if fewer than two quantiles are asked for, or if the rows kept
                beside `path` are of another collection.
            DataError: if a loader is empty or yields no images, or images with NaN; it names the row.
            OutputError: if nothing can be written to `path`.
            UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones that are not skipped.
        """
        if count < 2:
            raise BankError(f"count={count!r}: expected at least 2 quantiles")
        if SOURCE_ROW not in loaders:
            raise BankError(f"quantiles need clean training images: `loaders` has no entry {SOURCE_ROW!r}")
        names = [SOURCE_ROW, *(row for row in (loaders if rows is None else rows) if row != SOURCE_ROW)]
        for row in names:
            if row not in loaders:
                raise BankError(f"`loaders` has no row {row!r}: {did_you_mean(row, loaders)}")
        layers = {name: len(source_statistics(layer)[0]) for name, layer in find_batchnorm_layers(model, skip).items()}
        widths = list(layers.values())
        known_by = fingerprints(model)
        provenance = dict(getattr(loaders, "provenance", {}))
        measured: list[Tensor] = []
        if len(set(gather_from_ranks(tuple(names)))) > 1:
            raise DataError("the ranks measure different rows, or in another order: `loaders` must agree")
        file = None if path is None else UnfinishedBank(Path(path), cls.load, _settings_of)
        if file is not None:
            provenance = as_in_a_file(provenance)
            settings = _settings(provenance, count, skip)
            kept = do_on_first_rank(lambda: file.begin(settings, known_by, names[1:]))
            measured = [] if kept is None else list(kept.quantiles)

        def bank_so_far() -> QuantileBank:
            rows_so_far = tuple(names[: len(measured)])
            return cls(rows_so_far, layers, torch.stack(measured), known_by, provenance, tuple(skip))

        with progress_bar(shown=progress) as bar:
            task = bar.add_task("quantiles", total=len(names), completed=len(measured))
            for row in names[len(measured) :]:
                bar.update(task, description=f"quantiles of {row}")
                source = dict(zip(layers, torch.split(measured[0], widths), strict=True)) if measured else None
                try:
                    found = _measure(model, loaders[row], count, source, skip)
                except DataError as error:
                    raise DataError(f"row {row!r}: {error}") from error
                measured.append(torch.cat([found[name] for name in layers]))
                if file is not None:
                    do_on_first_rank(lambda: bank_so_far().save(file.rows_so_far))
                bar.advance(task)
            bar.update(task, description="quantiles")
        if file is not None:
            do_on_first_rank(file.finish)
        return bank_so_far()

    def of_layer(self, name: str) -> Tensor:
        """The quantiles of one layer, (K, its channels, Q)."""
        start = 0
        for layer, width in self.layers.items():
            if layer == name:
                return self.quantiles[:, start : start + width]
            start += width
        raise BankError(f"there is no layer {name!r}: {did_you_mean(name, self.layers)}")

    def of_rows(self, rows: Sequence[str]) -> Tensor:
        """The quantiles of rows in another order, (rows, channels of all layers, Q); `BankError` if one is missing."""
        for row in rows:
            if row not in self.rows:
                raise BankError(f"there are no quantiles of row {row!r}: {did_you_mean(row, self.rows)}")
        return self.quantiles[[self.rows.index(row) for row in rows]]

    def mismatch(self, model: nn.Module) -> str | None:
        """What differs between the model that this was measured on and `model`; None if nothing does."""
        return difference_from(model, self.layers, self.skip, self.fingerprints)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; a file there is replaced as a whole or, on failure, left alone."""
        metadata = {
            "rows": list(self.rows),
            "layers": [[name, width] for name, width in self.layers.items()],
            "fingerprints": dict(self.fingerprints),
            "provenance": dict(self.provenance),
            "skip": list(self.skip),
        }
        write_bank_file(Path(path), {"quantiles": self.quantiles}, metadata, QUANTILE_FILE)

    @classmethod
    def load(cls, path: str | Path) -> QuantileBank:
        """Read what `save` wrote; `BankError` if the file is missing, damaged or of a newer format."""
        tables, metadata = read_bank_file(Path(path), QUANTILE_FILE)
        try:
            return cls(
                rows=tuple(metadata["rows"]),
                layers={str(name): int(width) for name, width in metadata["layers"]},
                quantiles=tables["quantiles"],
                fingerprints=dict(metadata["fingerprints"]),
                provenance=dict(metadata["provenance"]),
                skip=tuple(metadata["skip"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BankError(f"{path} is damaged: {error}") from error


def _settings_of(bank: QuantileBank) -> dict[str, Any]:
    return _settings(bank.provenance, bank.quantiles.shape[2], bank.skip)


def _settings(provenance: Mapping[str, Any], count: int, skip: Sequence[str]) -> dict[str, Any]:
    """What decides a bank's rows, beside the model."""
    return {**provenance, "count": count, "skip": list(skip)}


class _Measuring:
    """Notes the quantiles of a layer's input; matches it onto the source's, where these are known."""

    def __init__(self, count: int, source: Tensor | None) -> None:
        self.count, self.images = count, 0
        self.total: Tensor | None = None
        self.matching = None if source is None else DistributionMatchingPolicy(source, samples=_SAMPLES)

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        sample = sampled(x.reshape(len(x), x.shape[1], -1), _SAMPLES, per_image=False)
        found = quantiles_of(sample, self.count)[0]
        # Sorted last, a little NaN would be in no quantile; the extremes are NaN if any value is.
        low, high = x.aminmax()
        found = torch.where((high - low).isfinite(), found, float("nan"))
        found = (found.cpu() if found.device.type == "mps" else found).double() * len(x)
        self.total = found if self.total is None else self.total + found
        self.images += len(x)
        return layer.own_forward(x) if self.matching is None else self.matching(layer, x)

    def sums(self) -> tuple[int, Tensor | None]:
        """How many images there were, and the sum of their quantiles, on the CPU."""
        return self.images, None if self.total is None else self.total.cpu()


@torch.no_grad()
def _measure(
    model: nn.Module, batches: Iterable[Any], count: int, source: Mapping[str, Tensor] | None, skip: Sequence[str]
) -> dict[str, Tensor]:
    notes: dict[str, _Measuring] = {}

    def make_policy(name: str, layer: nn.Module) -> _Measuring:
        return notes.setdefault(name, _Measuring(count, None if source is None else source[name]))

    images = Images(batches, next((value for value in model.parameters() if value.is_floating_point()), None))

    def measure() -> tuple[int, dict[str, tuple[int, Tensor | None]]]:
        with evaluation_mode(model), Patch(model, make_policy, skip):
            for batch in images:
                model(batch)
        return images.count, {name: its.sums() for name, its in notes.items()}

    of_ranks = do_on_ranks(measure)
    if not sum(images for images, _ in of_ranks):
        raise DataError("no image batches to measure quantiles on")
    found = {}
    for name, layer in find_batchnorm_layers(model, skip).items():
        sums = [(seen, total) for _, its in of_ranks for seen, total in [its[name]] if total is not None]
        if sums:
            quantiles = (torch.stack([total for _, total in sums]).sum(0) / sum(seen for seen, _ in sums)).float()
        else:  # outside the forward of evaluation: nothing reaches it
            quantiles = source_statistics(layer)[0].float().cpu().unsqueeze(1).repeat(1, count)
        if not quantiles.isfinite().all():
            raise DataError(f"the activations of layer {name!r} are not finite: the images hold NaN or infinite values")
        found[name] = quantiles
    return found
