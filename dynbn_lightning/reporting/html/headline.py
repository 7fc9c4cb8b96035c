"""What the page says first: what was run, and the source and the best method in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynbn_lightning.metrics import Interval, mean_corruption_error, relative_mean_corruption_error
from dynbn_lightning.reporting.comparison import SOURCE, Comparison, Entry, clean_difference, difference, shared_cells
from dynbn_lightning.reporting.html.methods import corruption_error, mean_gain
from dynbn_lightning.reporting.html.places import (
    best_of,
    clean_of,
    finished_source,
    first_places,
    is_oracle,
    mean_of,
    places_of,
)
from dynbn_lightning.reporting.html.table import DASH, counted, gain, listed, number, percent, points
from dynbn_lightning.reporting.wording import images_words, limit_words


@dataclass(frozen=True)
class Fact:
    """A number of the headline: what it is, itself, and what to know about it."""

    name: str
    value: str
    unit: str
    about: str


@dataclass(frozen=True)
class Headline:
    """The facts of a folder, of its first place."""

    heading: str
    facts: list[Fact]


def title_of(comparison: Comparison) -> str:
    """The models and the data."""
    protocols = [entry.protocol for entry in first_entries(comparison)]
    models = list(dict.fromkeys(str(protocol.get("model", "a model")) for protocol in protocols))
    data = list(dict.fromkeys(str(protocol["source"]) for protocol in protocols if "source" in protocol))
    return f"{listed(models) or 'Results'}, tested on corrupted {listed(data) or 'images'}"


def first_entries(comparison: Comparison) -> list[Entry]:
    """The first entry of each folder."""
    return [entries[0] for entries in first_places(comparison).values()]


def summary_of(comparison: Comparison) -> str:
    """One sentence on what was run."""
    firsts = first_entries(comparison)
    if not firsts:
        return "No method was run to its end."
    methods = dict.fromkeys(entry.method for entry in comparison.entries)
    cells = dict.fromkeys(cell for entry in comparison.entries for cell in entry.block["cells"])
    corruptions = {cell.partition("/")[0] for cell in cells}
    severities = sorted({cell.partition("/")[2] for cell in cells})
    clean = any(entry.block.get("clean") for entry in comparison.entries)
    shown = (
        f"{counted(len(corruptions), 'corruption')} at {'severity' if len(severities) == 1 else 'severities'} "
        f"{listed(severities)}{' and clean' if clean else ''}"
    )
    where = listed([f"the {name}" for name in _places(comparison)])
    images = " or ".join(dict.fromkeys(_images(comparison, first) for first in firsts))
    runs = f"{len(firsts)} runs compared, with " if len(firsts) > 1 else ""
    seeds = sorted({str(entry.protocol["seed"]) for entry in firsts if "seed" in entry.protocol})
    seed = f", seed {' or '.join(seeds)}" if seeds else ""
    return f"{runs}{counted(len(methods), 'method')} on {where}: {images} in {shown}{seed}."


def _images(comparison: Comparison, first: Entry) -> str:
    """How many images a folder's methods were shown in a cell, and of how many batches at most."""
    words = images_words([entry for entry in comparison.entries if entry.folder == first.folder]) or "images"
    return ", ".join(filter(None, [words, limit_words(first.protocol)]))


def _places(comparison: Comparison) -> list[str]:
    """The streams in words, those in batches of the same sizes together."""
    sizes: dict[str, list[str]] = {}
    for place in places_of(comparison):
        sizes.setdefault(place.stream, []).append(str(place.batch_size))
    streams: dict[str, list[str]] = {}
    for stream, its in sizes.items():
        streams.setdefault(listed(its), []).append(stream)
    return [f"{listed(its)} stream{'s' if len(its) > 1 else ''} in batches of {size}" for size, its in streams.items()]


def headlines_of(comparison: Comparison) -> list[Headline]:
    """The headline of each folder."""
    several = len(places_of(comparison)) > 1
    found = []
    for entries in first_places(comparison).values():
        first = entries[0]
        where = f"{first.stream} stream, batches of {first.batch_size}" if several else ""
        found.append(Headline(": ".join(filter(None, [first.title, where])), _facts(comparison, entries)))
    return [headline for headline in found if headline.facts]


def _facts(comparison: Comparison, entries: Sequence[Entry]) -> list[Fact]:
    source = finished_source(entries)
    best = best_of(entries)
    facts = []
    if source is not None:
        over = f"mean over {counted(len(source.block['cells']), 'corrupted cell')}"
        facts.append(Fact("The model as it came", percent(mean_of(source)), "%", f"{SOURCE}: {over}"))
    if best is not None:
        others = sum(entry.method != SOURCE and not is_oracle(entry) and not entry.is_unfinished for entry in entries)
        about = f"the highest mean in this table among {counted(others, 'method')} that are not told the corruption"
        facts.append(Fact(best.method, percent(mean_of(best)), "%", about if others > 1 else "the only such method"))
        if source is not None and mean_gain(best, source) is not None:
            paired = difference(best, source)
            about = "against source, no interval without paired records"
            if paired is not None:
                about = f"against source, 95\u00a0% interval {_bounds(paired.mean)}, paired over images"
            facts.append(Fact("Difference", points(mean_gain(best, source)), "points", about))
    chosen = best or source
    if chosen is not None:
        facts += _clean(chosen, source) + _corruption_errors(comparison, chosen, source)
    return [fact for fact in facts if fact.value != DASH]


def _clean(chosen: Entry, source: Entry | None) -> list[Fact]:
    about = chosen.method
    both = source is not None and None not in (clean_of(source), clean_of(chosen))
    if source is not None and source is not chosen and both and "clean" in shared_cells(chosen, source):
        paired = clean_difference(chosen, source)
        change = points((clean_of(chosen) or 0.0) - (clean_of(source) or 0.0))
        interval = f" (95\u00a0% interval {_bounds(paired)})" if paired is not None else ""
        about += f"; source has {percent(clean_of(source))}, a change of {change} points{interval}"
    return [Fact("On clean images", percent(clean_of(chosen)), "%", about)]


def _corruption_errors(comparison: Comparison, chosen: Entry, source: Entry | None) -> list[Fact]:
    if comparison.baseline is None:
        return []
    facts = []
    for name, measure in (("mCE", mean_corruption_error), ("Relative mCE", relative_mean_corruption_error)):
        ours = corruption_error(measure, chosen, comparison.baseline)
        its = None if source is None or source is chosen else corruption_error(measure, source, comparison.baseline)
        against = "" if its is None else f"; source has {number(its, factor=100)}\u00a0%"
        about = f"{chosen.method}{against}; 100\u00a0% is the baseline {comparison.baseline.name}, less is better"
        facts.append(Fact(name, number(ours, factor=100), "%", about))
    return facts


def _bounds(interval: Interval) -> str:
    return gain(float(interval.difference), interval).bounds
