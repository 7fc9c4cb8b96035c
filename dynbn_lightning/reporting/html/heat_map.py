"""What a method gains over the source in each cell, as a coloured table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from dynbn_lightning.reporting.comparison import SOURCE, Comparison, Entry, difference, shared_cells
from dynbn_lightning.reporting.html.methods import gains_of, mean_gain
from dynbn_lightning.reporting.html.places import best_of, places_of
from dynbn_lightning.reporting.html.table import DASH, Shown, gain, points
from dynbn_lightning.reporting.wording import entry_label

LEAST_SCALE = 0.05
"""Differences are not made to look large: the strongest colour is at 5 points or more."""
SHARE_ON_SCALE = 0.98
"""A few cells may be off the scale, so that the others are not all pale."""


@dataclass(frozen=True)
class Cell:
    """A coloured number.

    Attributes:
        text: the number.
        title: what is said of it when it is pointed at.
        side: `gain`, `loss`, or nothing.
        strength: of its colour, from 0 to 1.
        sureness: `sure` or, where its interval contains 0, `weak`; nothing where there is no interval.
    """

    text: str = DASH
    title: str = ""
    side: str = ""
    strength: float = 0.0
    sureness: str = ""


@dataclass(frozen=True)
class HeatMap:
    """The gains of one method.

    Attributes:
        name: the method, after its folder where there are several, and the place.
        severities: the headings of the columns.
        rows: each corruption, its cells and their mean.
        means: of each severity.
        mean: of all cells.
        is_open: whether it is shown without being asked for.
    """

    name: str
    severities: list[int]
    rows: list[tuple[str, list[Cell], Cell]]
    means: list[Cell]
    mean: Cell
    is_open: bool


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of a page, and the gain in points at which their colour is strongest."""

    maps: list[HeatMap]
    scale: str


def heat_maps_of(comparison: Comparison) -> HeatMaps:
    """A heat map for each method with a source on its place; the best method of the first place is open."""
    pairs: list[tuple[Entry, Entry, str]] = []
    for place in places_of(comparison):
        for entry in place.entries:
            source = comparison.source_of(entry)
            if source is not None and entry.method != SOURCE and shared_cells(entry, source) - {"clean"}:
                pairs.append((entry, source, place.name))
    values = sorted(abs(value) for entry, source, _ in pairs for value in gains_of(entry, source).values() if value)
    scale = max(LEAST_SCALE, values[int(SHARE_ON_SCALE * (len(values) - 1))] if values else 0.0)
    best = best_of(places_of(comparison)[0].entries) if pairs else None
    best = best if any(entry is best for entry, *_ in pairs) else pairs[0][0] if pairs else None
    maps = [
        _heat_map(entry, source, f"{entry_label(entry)}, {place}", scale, is_open=entry is best)
        for entry, source, place in pairs
    ]
    return HeatMaps(sorted(maps, key=lambda one: not one.is_open), points(scale).lstrip("+"))


def _heat_map(entry: Entry, source: Entry, name: str, scale: float, *, is_open: bool) -> HeatMap:
    gains, paired = gains_of(entry, source), difference(entry, source)
    corruptions = list(dict.fromkeys(cell.partition("/")[0] for cell in gains))
    severities = sorted({int(cell.partition("/")[2]) for cell in gains})
    order = {cell: number for number, cell in enumerate(gains)}

    def cell_of(corruption: str, severity: int) -> Cell:
        cell = f"{corruption}/{severity}"
        if gains.get(cell) is None:
            return Cell(title=f"{cell}: no number")
        shown = gain(gains[cell], None if paired is None else paired.cells, order[cell])
        interval = f", 95 % interval {shown.bounds}" if shown.bounds else ""
        return _coloured(gains[cell], scale, f"{cell}: {shown.text} points{interval}", _sureness(shown))

    def mean(cells: Iterable[str], of: str) -> Cell:
        known = [value for cell in cells if (value := gains.get(cell)) is not None]
        return _coloured(fmean(known), scale, f"{of}: mean of {len(known)} cells") if known else Cell()

    shown = gain(mean_gain(entry, source), None if paired is None else paired.mean)
    interval = f", 95 % interval {shown.bounds}" if shown.bounds else ""
    return HeatMap(
        name,
        severities,
        [
            (
                corruption,
                [cell_of(corruption, severity) for severity in severities],
                mean((f"{corruption}/{severity}" for severity in severities), corruption),
            )
            for corruption in corruptions
        ],
        [
            mean((f"{corruption}/{severity}" for corruption in corruptions), f"severity {severity}")
            for severity in severities
        ],
        _coloured(mean_gain(entry, source), scale, f"all cells: {shown.text} points{interval}", _sureness(shown)),
        is_open,
    )


def _coloured(value: float | None, scale: float, title: str, sureness: str = "") -> Cell:
    if value is None:
        return Cell(title=title)
    return Cell(points(value), title, "gain" if value > 0 else "loss", round(min(abs(value) / scale, 1.0), 3), sureness)


def _sureness(shown: Shown) -> str:
    return "" if not shown.bounds else "weak" if shown.weak else "sure"
