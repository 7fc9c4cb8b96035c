"""The table of methods of a place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import Baseline, mean_corruption_error
from dynbn_lightning.reporting.comparison import SOURCE, Comparison, Entry, difference, shared_cells
from dynbn_lightning.reporting.html.places import Place, all_cells, clean_of, is_oracle, mean_of
from dynbn_lightning.reporting.html.table import Row, Shown, Table, gain, number, percent, share, times
from dynbn_lightning.reporting.results import errors
from dynbn_lightning.reporting.wording import entry_label

HEADINGS = [
    "method",
    "mean accuracy, %",
    "against source, points",
    "worst cell against source, points",
    "clean, %",
    "mCE, %",
    "top 5, %",
    "calibration error, %",
    "NLL, nats",
    "detected rightly, %",
    "time",
    "memory",
    "needs",
]


def methods_table(comparison: Comparison, place: Place) -> Table:
    """A row per method and folder; columns that no method has a number for are left out."""
    rows = [_row(comparison, entry, all_cells(its)) for its in place.folders().values() for entry in its]
    return Table(f"Methods on the {place.name}", HEADINGS, rows).without_empty_columns()


def _row(comparison: Comparison, entry: Entry, cells: frozenset[str]) -> Row:
    source = comparison.source_of(entry)
    block, detection = entry.block, entry.block.get("detection")
    costs = _costs_of_source(comparison, entry)
    shown = [
        share(mean_of(entry), None if entry.intervals is None else entry.intervals.mean),
        *_against_source(entry, source),
        Shown(percent(clean_of(entry))),
        Shown(number(corruption_error(mean_corruption_error, entry, comparison.baseline), factor=100)),
        Shown(percent(mean_of(entry, "top5_accuracy"))),
        Shown(percent(mean_of(entry, "calibration_error"))),
        Shown(number(mean_of(entry, "nll"), digits=2)),
        Shown(percent(detection)),
        *(times(block.get(cost), costs.get(cost)) for cost in ("ms_per_image", "memory_mib")),
        Shown(", ".join(map(str, block.get("needs") or ()))),
    ]
    partly = f"{len(block['cells'])} of {len(cells)} cells" if frozenset(block["cells"]) != cells else ""
    kind = "source" if entry.method == SOURCE else "oracle" if is_oracle(entry) else ""
    return Row(entry_label(entry), shown, partly, kind)


def _costs_of_source(comparison: Comparison, entry: Entry) -> Mapping[str, Any]:
    """The block of the source in the entry's own folder, if it was run on the same hardware; else nothing."""
    source = comparison.other(entry, SOURCE)
    if source is None or source.is_unfinished or source.block.get("hardware") != entry.block.get("hardware"):
        return {}
    return source.block


def _against_source(entry: Entry, source: Entry | None) -> tuple[Shown, Shown]:
    """The gain over the source, of the mean and of the cell where it is smallest."""
    if source is None or source is entry:
        return Shown(), Shown()
    gains = gains_of(entry, source)
    if not gains or None in gains.values():
        return Shown(), Shown()
    paired = difference(entry, source)
    worst = min(gains, key=lambda cell: gains[cell] or 0.0)
    overall = mean_gain(entry, source)
    if paired is None:
        return gain(overall), gain(gains[worst], note=worst)
    place = list(gains).index(worst)
    return gain(overall, paired.mean), gain(gains[worst], paired.cells, place, note=worst)


def gains_of(entry: Entry, source: Entry) -> dict[str, float | None]:
    """How much more accurate than the source a method is in each of its cells; None where either has no number.

    Nor is there any where one of them is unfinished or saw other images.
    """
    found: dict[str, float | None] = {}
    shared = shared_cells(entry, source)
    for cell, numbers in entry.block["cells"].items():
        ours, its = numbers["accuracy"], source.block["cells"].get(cell, {}).get("accuracy")
        found[cell] = None if ours is None or its is None or cell not in shared else ours - its
    return found


def mean_gain(entry: Entry, source: Entry) -> float | None:
    """The difference of the means over cells; None unless both are finished, over the same images of the same cells."""
    ours, its, cells = mean_of(entry), mean_of(source), set(entry.block["cells"])
    if ours is None or its is None or cells != set(source.block["cells"]) or not cells <= shared_cells(entry, source):
        return None
    return ours - its


def corruption_error(
    measure: Callable[[Mapping[str, float], Baseline], float], entry: Entry, baseline: Baseline | None
) -> float | None:
    """A (relative) mean corruption error; None where it has no meaning."""
    known = {cell: error for cell, error in errors(entry.block).items() if error is not None}
    try:
        return None if baseline is None else measure(known, baseline)
    except DataError:
        return None
