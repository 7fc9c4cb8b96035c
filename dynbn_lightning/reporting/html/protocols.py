"""The protocol of each folder, and the settings of its methods, in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynbn_lightning.reporting.comparison import Comparison, Entry
from dynbn_lightning.reporting.results import SCHEMA_VERSION


@dataclass(frozen=True)
class Item:
    """A key and its value: words, or items of its own."""

    name: str
    value: str = ""
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class Protocol:
    """What one folder's results say of how they were made."""

    heading: str
    items: tuple[Item, ...]
    settings: tuple[Item, ...]


def protocols_of(comparison: Comparison) -> list[Protocol]:
    """The protocol of each folder, every key of it."""
    by_folder: dict[Path, list[Entry]] = {}
    for entry in comparison.entries:
        by_folder.setdefault(entry.folder, []).append(entry)
    return [
        Protocol(
            entries[0].title or str(folder),
            items_of({"schema_version": SCHEMA_VERSION, **entries[0].protocol, **_skipped(entries)}),
            _settings(entries),
        )
        for folder, entries in by_folder.items()
    ]


def _skipped(entries: list[Entry]) -> dict[str, Any]:
    """How many images, each once in each cell, could not be read and were left out, where that was allowed."""
    counts = {
        f"{entry.method}, {entry.stream} stream, batches of {entry.batch_size}": entry.block["skipped"]
        for entry in entries
        if "skipped" in entry.block
    }
    numbers = set(counts.values())
    return {} if not counts else {"skipped": numbers.pop() if len(numbers) == 1 else counts}


def _settings(entries: list[Entry]) -> tuple[Item, ...]:
    """The settings of each method, once where they are the same on all its places."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        place = f"{entry.method}, {entry.stream} stream, batches of {entry.batch_size}"
        found.setdefault(entry.method, {})[place] = entry.block.get("settings") or {}
    items: list[Item] = []
    for method, by_place in found.items():
        settings = list(by_place.values())
        same = all(one == settings[0] for one in settings)
        items += items_of({method: settings[0]} if same else by_place)
    return tuple(items)


def items_of(values: Mapping[str, Any]) -> tuple[Item, ...]:
    """The keys and values of a JSON object."""
    return tuple(_item(str(key), value) for key, value in values.items())


def _item(name: str, value: Any) -> Item:
    if isinstance(value, Mapping):
        return Item(name, items=items_of(value)) if value else Item(name, "none")
    if isinstance(value, list) and any(isinstance(its, Mapping) for its in value):
        return Item(name, items=tuple(_item(str(number), its) for number, its in enumerate(value, start=1)))
    return Item(name, _words(value))


def _words(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
