"""Every number in a table with one row for each method and cell, for pandas, R or a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

from dynbn_lightning.corruptions.cells import CLEAN, Cell
from dynbn_lightning.metrics import Interval
from dynbn_lightning.reporting.comparison import Comparison, Entry, clean_difference, difference, shared_cells

COLUMNS = (
    *("folder", "model", "source", "stream", "batch_size", "method", "corruption", "severity", "images"),
    *("accuracy", "error", "top5_accuracy", "nll", "calibration_error", "accuracy_lower", "accuracy_upper"),
    *("gain_over_source", "gain_lower", "gain_upper", "seed", "same_as"),
)
SCORES = ("images", "accuracy", "error", "top5_accuracy", "nll", "calibration_error")


def csv_table(comparison: Comparison) -> str:
    """The numbers as comma-separated values, in full precision; empty where there is none.

    Severity 0 is clean. Bounds are of 95 % bootstrap intervals over the images; those of the gain are paired, so they
    may tell two methods apart whose own bounds overlap. There is no gain over a source that saw other images. `folder`
    is there if there are several; `same_as` is the stream whose numbers these are, of what was not run again.
    """
    several = any(entry.title for entry in comparison.entries)
    file = StringIO()
    writer = csv.DictWriter(file, [name for name in COLUMNS if several or name != "folder"], lineterminator="\n")
    writer.writeheader()
    for entry in comparison.entries:
        about = {
            **({"folder": entry.title} if several else {}),
            "model": entry.protocol.get("model"),
            "source": entry.protocol.get("source"),
            "stream": entry.stream,
            "batch_size": entry.batch_size,
            "method": entry.method,
            "seed": entry.protocol.get("seed"),
            "same_as": entry.block.get("same_as"),
        }
        writer.writerows({**about, **numbers} for numbers in _cells(comparison, entry))
    return file.getvalue()


def _cells(comparison: Comparison, entry: Entry) -> Iterator[dict[str, Any]]:
    accuracies, gains = _intervals(entry), _gains(comparison, entry)
    for name, scores in _scores(entry).items():
        cell = Cell.parse(name)
        lower, upper = accuracies.get(name, (None, None))
        gain, gain_lower, gain_upper = gains.get(name, (None, None, None))
        yield {
            "corruption": cell.corruption,
            "severity": cell.severity,
            **{key: scores[key] for key in SCORES},
            "accuracy_lower": lower,
            "accuracy_upper": upper,
            "gain_over_source": gain,
            "gain_lower": gain_lower,
            "gain_upper": gain_upper,
        }


def _scores(entry: Entry) -> dict[str, dict[str, Any]]:
    """The scores of each cell, clean first."""
    clean = entry.block["clean"]
    return {**({} if clean is None else {CLEAN: clean}), **entry.block["cells"]}


def _intervals(entry: Entry) -> dict[str, tuple[float, float]]:
    cells, clean = entry.intervals, entry.clean_interval
    found = {} if cells is None else _by_cell(entry, cells.cells)
    return found if clean is None else {**found, CLEAN: (float(clean.lower), float(clean.upper))}


def _gains(comparison: Comparison, entry: Entry) -> dict[str, tuple[float, float | None, float | None]]:
    """How much more often the entry is right than the source, with bounds where there are records to pair."""
    source = comparison.source_of(entry)
    if source is None or source is entry:
        return {}
    cells, clean = difference(entry, source), clean_difference(entry, source)
    bounds = {} if cells is None else _by_cell(entry, cells.cells)
    if clean is not None:
        bounds[CLEAN] = float(clean.lower), float(clean.upper)
    known, shared = _scores(source), shared_cells(entry, source)
    return {
        name: (scores["accuracy"] - known[name]["accuracy"], *bounds.get(name, (None, None)))
        for name, scores in _scores(entry).items()
        if name in shared
    }


def _by_cell(entry: Entry, intervals: Interval) -> dict[str, tuple[float, float]]:
    bounds = zip(intervals.lower.tolist(), intervals.upper.tolist(), strict=True)
    return dict(zip(entry.block["cells"], bounds, strict=True))
