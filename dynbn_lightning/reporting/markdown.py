"""The tables of a comparison in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dynbn_lightning.reporting.comparison import Comparison
from dynbn_lightning.reporting.corruption_table import Column, CorruptionTable, corruption_tables
from dynbn_lightning.reporting.tables import markdown, method_rows, percent
from dynbn_lightning.reporting.wording import (
    baseline_words,
    entry_label,
    missing_words,
    place_words,
    protocols_of,
    remarks_on,
    uses_of,
)


def markdown_document(comparison: Comparison) -> str:
    """The table of methods of each folder, and the errors by corruption of all."""
    parts = ["# Results", *missing_words(comparison)]
    for folder in dict.fromkeys(entry.folder for entry in comparison.entries):
        entries = [entry for entry in comparison.entries if entry.folder == folder]
        if entries[0].title:
            parts.append(f"## {entries[0].title}")
        parts += [*(f"{words}." for words in protocols_of(entries)), *uses_of(entries)]
        parts.append(
            "Top-1 accuracy, %, means over all corrupted cells; time and memory as multiples of the source's on the "
            "same hardware:"
        )
        blocks = [(entry.stream, entry.batch_size, entry.method, entry.block) for entry in entries]
        parts.append(markdown(*method_rows(blocks)))
    for table in corruption_tables(comparison):
        parts += _parts(table, several=any(entry.title for entry in comparison.entries))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _parts(table: CorruptionTable, *, several: bool) -> list[str]:
    place = place_words(table.stream, table.batch_size)
    parts = [f"## Top-1 error by corruption, %: {place}"]
    if several:
        parts += [f"{words}." for words in protocols_of(table.entries)]
    parts.append(_table(table, table.columns))
    parts.append(" ".join(remarks_on(table)))
    if table.baseline is not None and table.corruption_errors:
        parts += [f"### Corruption errors: {place}", baseline_words(table.baseline)]
        parts.append(_table(table, table.corruption_errors))
    if table.why_no_mean is not None:
        parts.append(f"There is no mCE: {table.why_no_mean}.")
    return parts


def _table(table: CorruptionTable, columns: Sequence[Column]) -> str:
    cells = [_cells(table, column) for column in columns]
    rows = [[entry_label(entry), *(its[row] for its in cells)] for row, entry in enumerate(table.entries)]
    return markdown(["method", *(column.name for column in columns)], rows)


def _cells(table: CorruptionTable, column: Column) -> list[str]:
    shown = [column.text(value) for value in column.values]
    best = table.best(column, shown)
    cells = [f"**{text}**" if row in best else text for row, text in enumerate(shown)]
    for row, bounds in enumerate(column.bounds):
        if bounds is not None and column.values[row] is not None:
            cells[row] += f" [{percent(bounds[0])}, {percent(bounds[1])}]"
    return cells
