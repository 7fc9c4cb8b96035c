"""The places of a comparison: a stream in batches of one size; whose methods stand in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynbn_lightning.reporting.comparison import SOURCE, Comparison, Entry

ORACLE = "oracle"


@dataclass(frozen=True)
class Place:
    """The entries of all folders on one stream in batches of one size."""

    stream: str
    batch_size: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.stream} stream, batches of {self.batch_size}"

    def folders(self) -> dict[Path, tuple[Entry, ...]]:
        """The entries of each folder."""
        names = dict.fromkeys(entry.folder for entry in self.entries)
        return {folder: tuple(entry for entry in self.entries if entry.folder == folder) for folder in names}


def places_of(comparison: Comparison) -> list[Place]:
    """The places, in the order that their first entries have."""
    keys = dict.fromkeys((entry.stream, entry.batch_size) for entry in comparison.entries)
    return [
        Place(*key, tuple(entry for entry in comparison.entries if (entry.stream, entry.batch_size) == key))
        for key in keys
    ]


def is_oracle(entry: Entry) -> bool:
    """Whether the method is told the true corruption."""
    return entry.method.partition("/")[0] == ORACLE


def mean_of(entry: Entry, score: str = "accuracy") -> float | None:
    """A score's mean over the corrupted cells."""
    return (entry.block.get("mean") or {}).get(score)


def clean_of(entry: Entry, score: str = "accuracy") -> float | None:
    """A score on clean images."""
    return (entry.block.get("clean") or {}).get(score)


def all_cells(entries: Sequence[Entry]) -> frozenset[str]:
    """The cells that the fullest of these entries has."""
    return max((frozenset(entry.block["cells"]) for entry in entries), key=len, default=frozenset())


def best_of(entries: Sequence[Entry]) -> Entry | None:
    """The highest mean among these methods, without oracles and the source, of those finished that have all cells."""
    entries = [entry for entry in entries if not entry.is_unfinished]
    cells = all_cells(entries)
    able = [
        entry
        for entry in entries
        if entry.method != SOURCE
        and not is_oracle(entry)
        and frozenset(entry.block["cells"]) == cells
        and mean_of(entry) is not None
    ]
    return max(able, key=lambda entry: mean_of(entry) or 0.0, default=None)


def first_places(comparison: Comparison) -> dict[Path, tuple[Entry, ...]]:
    """The entries of each folder on its first stream with its first batch size."""
    found: dict[Path, tuple[Entry, ...]] = {}
    for place in places_of(comparison):
        for folder, entries in place.folders().items():
            found.setdefault(folder, entries)
    return found


def finished_source(entries: Sequence[Entry]) -> Entry | None:
    """The source among the entries of a folder and place; None if it wasn't run to its end."""
    return next((entry for entry in entries if entry.method == SOURCE and not entry.is_unfinished), None)
