"""The numbers of the table that papers print: the error of each method under each corruption, and what they sum to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from dynbn_lightning.corruptions.cells import (
    ALL_CORRUPTIONS,
    BAR_CORRUPTIONS,
    COMMON_CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    THREE_D_CORRUPTIONS,
    cells_of,
)
from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import (
    Baseline,
    corruption_errors,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from dynbn_lightning.reporting.comparison import Comparison, Entry, accuracy_intervals, data_used
from dynbn_lightning.reporting.results import errors
from dynbn_lightning.reporting.tables import percent

ORACLE = "oracle"

SETS = {
    "common": COMMON_CORRUPTIONS,
    "extra": EXTRA_CORRUPTIONS,
    "3DCC": THREE_D_CORRUPTIONS,
    "C-bar": BAR_CORRUPTIONS,
}
"""Corruptions that have a mean of their own: that of the first set there is, is the mean."""


@dataclass(frozen=True)
class Column:
    """One number of each row, the lower the better.

    Attributes:
        name: `clean`, a corruption, `mean`, `extra mean` and so on, `mCE`, `relative mCE`, `calibration error`, `NLL`.
        values: of each row; None where there is none. Shares are from 0 to 1.
        bounds: of each row, lower and upper; None where there are none.
    """

    name: str
    values: tuple[float | None, ...]
    bounds: tuple[tuple[float, float] | None, ...] = ()

    def text(self, value: float | None) -> str:
        """A value as it is shown: a share in percent, NLL in nats; a dash for none."""
        return f"{value:.3f}" if self.name == "NLL" and value is not None else percent(value)


@dataclass(frozen=True)
class CorruptionTable:
    """What was measured on one stream with one batch size at the same severities of the same data.

    Attributes:
        entries: one for each row.
        baseline: the denominators of corruption errors; None where there are none.
    """

    entries: tuple[Entry, ...]
    baseline: Baseline | None

    @property
    def stream(self) -> str:
        """The order that images arrived in."""
        return self.entries[0].stream

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.entries[0].batch_size

    @property
    def corruptions(self) -> list[str]:
        """Those that any entry was to be shown, the common ones first, in the literature's order."""
        wanted = {name for entry in self.entries for name in entry.protocol["corruptions"]}
        return [name for name in ALL_CORRUPTIONS if name in wanted]

    @property
    def sets(self) -> dict[str, list[str]]:
        """The corruptions by the set that they are of; sets that none is of are left out."""
        by_set = {name: [one for one in self.corruptions if one in its] for name, its in SETS.items()}
        return {name: its for name, its in by_set.items() if its}

    @property
    def has_oracle(self) -> bool:
        """Whether a method is told each image's corruption."""
        return any(map(is_oracle, self.entries))

    @cached_property
    def columns(self) -> list[Column]:
        """Top-1 errors, then their sums, then calibration error and NLL as means over the cells that `mean` is over."""
        (_, main), *others = self.sets.items() or [("", [])]
        columns = [self._column("clean", lambda entry: errors(entry.block).get("clean"))]
        columns += [self._mean(name, [name], "error") for name in self.corruptions]
        columns.append(self._mean("mean", main, "error", bounded=True))
        columns += [self._mean(f"{name} mean", its, "error", bounded=True) for name, its in others]
        if self.baseline is not None:
            columns.append(self._relative("mCE", mean_corruption_error))
            columns.append(self._relative("relative mCE", relative_mean_corruption_error))
        columns.append(self._mean("calibration error", main, "calibration_error"))
        columns.append(self._mean("NLL", main, "nll"))
        return [column for column in columns if column.name in self.corruptions or _has_values(column)]

    @cached_property
    def corruption_errors(self) -> list[Column]:
        """The CE of each common corruption that was run, 1.0 as wrong as the baseline; empty if none can be told."""
        if self.baseline is None:
            return []
        columns = [self._corruption_error(name) for name in self.corruptions if name in COMMON_CORRUPTIONS]
        return columns if any(map(_has_values, columns)) else []

    @property
    def why_no_mean(self) -> str | None:
        """Why there is no mCE though there is a baseline; None where there is one, or no baseline."""
        if self.baseline is None or any(column.name == "mCE" for column in self.columns):
            return None
        try:
            mean_corruption_error(errors(self.entries[0].block), self.baseline)
        except DataError as error:
            return str(error)
        return None

    def best(self, column: Column, shown: Sequence[str]) -> set[int]:
        """The rows whose number, as it is shown, is the lowest of the column.

        None if there is no choice of two. The oracle, which is told each image's corruption, doesn't compete, nor does
        a method that was interrupted.
        """
        competing = {
            row: value
            for row, (entry, value) in enumerate(zip(self.entries, column.values, strict=True))
            if value is not None and not is_oracle(entry) and not entry.is_unfinished
        }
        if len(competing) < 2:
            return set()
        lowest = shown[min(competing, key=competing.__getitem__)]
        return {row for row in competing if shown[row] == lowest}

    def _column(self, name: str, value_of: Callable[[Entry], float | None]) -> Column:
        return Column(name, tuple(map(value_of, self.entries)))

    def _cells(self, corruptions: Sequence[str]) -> tuple[str, ...]:
        return tuple(cell.name for cell in cells_of(corruptions, self.entries[0].protocol["severities"]))

    def _mean(self, name: str, corruptions: Sequence[str], key: str, *, bounded: bool = False) -> Column:
        """The mean over all cells of some corruptions; none for a row that lacks one of the cells."""
        cells = self._cells(corruptions)
        bounds = tuple(_error_bounds(entry, cells) for entry in self.entries) if bounded else ()
        return Column(name, tuple(_mean(entry, cells, key) for entry in self.entries), bounds)

    def _relative(self, name: str, ratio: Callable[[dict[str, float], Baseline], float]) -> Column:
        """A ratio of errors to the baseline's; none for a row that lacks one of the cells, or where it has no sense."""

        def value_of(entry: Entry) -> float | None:
            try:
                value = math.nan if self.baseline is None else ratio(errors(entry.block), self.baseline)
            except DataError:
                return None
            return None if math.isnan(value) else value

        return self._column(name, value_of)

    def _corruption_error(self, corruption: str) -> Column:
        cells = self._cells([corruption])

        def ratio(its: dict[str, float], baseline: Baseline) -> float:
            if any(cell not in its for cell in cells):
                return math.nan
            return corruption_errors({cell: its[cell] for cell in cells}, baseline)[corruption]

        return self._relative(corruption, ratio)


def corruption_tables(comparison: Comparison) -> list[CorruptionTable]:
    """A table for each stream and batch size, and, of several folders, for each data set that they are of."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in comparison.entries:
        data = entry.protocol.get("source"), entry.protocol.get("preset"), tuple(entry.protocol["severities"])
        key = (*data, *data_used(entry.protocol), entry.stream, entry.batch_size)
        groups.setdefault(key, []).append(entry)
    return [CorruptionTable(tuple(entries), comparison.baseline) for entries in groups.values()]


def is_oracle(entry: Entry) -> bool:
    """Whether a method is told each image's corruption."""
    return entry.method.partition("/")[0] == ORACLE


def _has_values(column: Column) -> bool:
    return any(value is not None for value in column.values)


def _mean(entry: Entry, cells: Sequence[str], key: str) -> float | None:
    values = [entry.block["cells"].get(cell, {}).get(key) for cell in cells]
    return None if None in values or not values else fmean(values)


def _error_bounds(entry: Entry, cells: tuple[str, ...]) -> tuple[float, float] | None:
    intervals = accuracy_intervals(entry, cells)
    if intervals is None:
        return None
    return 1 - float(intervals.mean.upper), 1 - float(intervals.mean.lower)
