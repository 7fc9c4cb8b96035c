"""Example images, with what a method made of each."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from dynbn_lightning.reporting.comparison import Comparison, Entry
from dynbn_lightning.reporting.examples import Example, read_examples
from dynbn_lightning.reporting.html.detection import detecting
from dynbn_lightning.reporting.html.places import best_of, first_places
from dynbn_lightning.reporting.html.table import percent
from dynbn_lightning.reporting.records import NOT_DETECTED, ImageRecords

SMALL = 96
"""Images of fewer pixels across are scaled up, each pixel a square."""
MOST = 200
"""Examples of a folder that are shown, so that the page stays small."""


@dataclass(frozen=True)
class Picture:
    """An example as the page shows it.

    Attributes:
        source: its bytes, as a `data:` address.
        cell: its true cell.
        index: its number.
        is_small: whether it is scaled up.
        detected: the detected row and how sure that was; empty where nothing was detected.
        detected_rightly: whether that is its cell's row; None where that is not known.
        right: whether its class was predicted; None where there is no record.
    """

    source: str
    cell: str
    index: int
    is_small: bool
    detected: str = ""
    detected_rightly: bool | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Strip:
    """The pictures of a folder, and the method whose outcomes stand below them."""

    heading: str
    method: str
    pictures: list[Picture]
    left_out: int


def strips_of(comparison: Comparison) -> list[Strip]:
    """The examples of each folder that has some."""
    found = []
    for folder, entries in first_places(comparison).items():
        examples = read_examples(folder)
        if examples:
            entry = _with_records(entries)
            pictures = [_picture(example, entry.records if entry else None) for example in examples[:MOST]]
            method = entry.method if entry else ""
            found.append(Strip(entries[0].title, method, pictures, len(examples) - len(pictures)))
    return found


def _with_records(entries: Sequence[Entry]) -> Entry | None:
    """The method whose outcomes are shown: one with a detector, else the best, else any, of those with records."""
    able = [entry for entry in entries if entry.records is not None]
    best = best_of(entries)
    return detecting(entries) or (best if best in able else next(iter(able), None))


def _picture(example: Example, records: ImageRecords | None) -> Picture:
    address = f"data:image/png;base64,{b64encode(example.png).decode()}"
    picture = Picture(address, example.cell.name, example.index, max(example.size) < SMALL)
    there = None if records is None else (records.indices == example.index) & (records.cells == example.cell.code)
    if records is None or there is None or not there.any():
        return picture
    place = int(there.int().argmax())
    right, detected = bool(records.correct[place]), int(records.detected[place])
    if detected == NOT_DETECTED or detected >= len(records.rows):
        return Picture(picture.source, picture.cell, picture.index, picture.is_small, right=right)
    sure = percent(float(records.detection_confidences[place]))
    row = records.rows[detected]
    own = [name for name in (example.cell.name, example.cell.corruption) if name in records.rows]
    rightly = row == own[0] if own else None
    return Picture(picture.source, picture.cell, picture.index, picture.is_small, f"{row}, {sure} %", rightly, right)
