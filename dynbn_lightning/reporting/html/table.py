"""Numbers and tables as the page writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dynbn_lightning.metrics import Interval

DASH = "–"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Shown:
    """A number as it is written, and what is said of it.

    Attributes:
        text: the number.
        bounds: its interval, written smaller beneath it.
        weak: whether the interval of a difference contains 0.
        note: words beneath it.
    """

    text: str = DASH
    bounds: str = ""
    weak: bool = False
    note: str = ""

    @property
    def is_words(self) -> bool:
        """Whether it is no number at all: words go to the left and into several lines."""
        return any(letter.isalpha() for letter in self.text)


@dataclass(frozen=True)
class Row:
    """A row of a table: its heading, the numbers, a word beneath the heading and what the row is, for its style."""

    name: str
    cells: list[Shown]
    note: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column are the headings of its rows."""

    caption: str
    headings: list[str]
    rows: list[Row]

    def has_words(self, column: int) -> bool:
        """Whether there are words in a column, counted from 0 after that of the rows' headings."""
        return any(row.cells[column].is_words for row in self.rows)

    def without_empty_columns(self) -> Table:
        """This table without the columns in which no row has a number."""
        kept = [
            column
            for column in range(len(self.headings) - 1)
            if any(row.cells[column].text not in ("", DASH) for row in self.rows)
        ]
        headings = [self.headings[0], *(self.headings[column + 1] for column in kept)]
        rows = [Row(row.name, [row.cells[column] for column in kept], row.note, row.kind) for row in self.rows]
        return Table(self.caption, headings, rows)


def number(value: float | None, digits: int = 1, factor: float = 1.0, unit: str = "") -> str:
    """A number with so many digits after the point; a dash for none."""
    return DASH if value is None or not math.isfinite(value) else f"{factor * value:.{digits}f}{unit}".replace("-", "−")


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent, without the sign."""
    return number(share, factor=100)


def points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign; `0.0` has none."""
    text = number(difference, factor=100)
    return text.lstrip("−") if text in (DASH, "0.0", "−0.0") else text if text[0] == "−" else f"+{text}"


def share(value: float | None, interval: Interval | None = None) -> Shown:
    """A share in percent, with its interval if there is one."""
    if interval is None:
        return Shown(percent(value))
    return Shown(percent(value), f"{percent(float(interval.lower))} to {percent(float(interval.upper))}")


def gain(value: float | None, interval: Interval | None = None, cell: int | None = None, note: str = "") -> Shown:
    """A difference in points, with its interval if there is one, which is of this cell where it is of many."""
    if value is None or interval is None:
        return Shown(points(value), note=note)
    lower, upper = (float(bound if cell is None else bound[cell]) for bound in (interval.lower, interval.upper))
    return Shown(points(value), f"{points(lower)} to {points(upper)}", weak=lower <= 0 <= upper, note=note)


def times(value: float | None, of_source: float | None) -> Shown:
    """A cost as a multiple of the source's."""
    return Shown(number(value / of_source, unit="×")) if value and of_source else Shown()


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
