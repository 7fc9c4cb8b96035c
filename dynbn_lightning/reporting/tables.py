"""The table of methods, for the terminal and in Markdown: accuracies, costs and needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from dynbn_lightning.reporting.results import accuracies, method_blocks

Blocks = Iterable[tuple[str, int, str, Mapping[str, Any]]]
"""Each (stream, batch size, method, block), as `method_blocks` gives them."""

TEXT_COLUMNS = ("stream", "method", "needs")
UNFINISHED = " (unfinished)"


def marks_of(block: Mapping[str, Any]) -> str:
    """What must stand behind a method's name: whose numbers its own are a copy of, and that images are missing."""
    copied = f" (as on {block['same_as']})" if block.get("same_as") else ""
    return copied + (UNFINISHED if block.get("unfinished") else "")


def severity_means(block: Mapping[str, Any]) -> dict[int, float]:
    """The mean accuracy over the cells of each severity."""
    found: dict[int, list[float]] = {}
    for cell, accuracy in accuracies(block).items():
        found.setdefault(_severity(cell), []).append(accuracy)
    return {severity: sum(values) / len(values) for severity, values in sorted(found.items())}


def method_rows(blocks: Blocks) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of the table of methods: accuracies in percent, costs as multiples of the source's.

    Columns that no method has anything to say in are left out. The source's costs are those of the same batch size on
    the same hardware. A method that was not shown all the cells that the others were has no means: they would be over
    other cells.
    """
    blocks = list(blocks)
    sources = {
        (size, block.get("hardware")): block
        for _, size, method, block in blocks
        if method == "source" and not block.get("unfinished")
    }
    cells = {cell for *_, block in blocks for cell in block["cells"]}
    severities = sorted({_severity(cell) for cell in cells})
    headings = ["stream", "batch", "method", "mean"]
    headings += [f"severity {severity}" for severity in severities if len(severities) > 1]
    headings += ["clean", "detection", "time", "memory", "needs"]
    rows = []
    for stream, size, method, block in blocks:
        without = cells - set(block["cells"])
        means = severity_means(block)
        row = [stream, str(size), method + marks_of(block), "-" if without else _accuracy(block["mean"])]
        for severity in severities if len(severities) > 1 else ():
            partial = severity in map(_severity, without)
            row.append(percent(None if partial else means.get(severity)))
        row += [_accuracy(block["clean"]), percent(block.get("detection"))]
        source = sources.get((size, block.get("hardware")))
        row += [_times(block, source, cost) for cost in ("ms_per_image", "memory_mib")]
        rows.append([*row, ", ".join(block.get("needs", ()))])
    kept = [column for column in range(len(headings)) if any(row[column] not in ("", "-") for row in rows)]
    return [headings[column] for column in kept], [[row[column] for column in kept] for row in rows]


def results_table(results: Mapping[str, Any]) -> Table:
    """The table of methods for the terminal, in which there is no room for severities and needs."""
    headings, rows = method_rows(method_blocks(results))
    table = Table(title="top-1 accuracy, %; time and memory as multiples of the source's")
    shown = [number for number, name in enumerate(headings) if name != "needs" and not name.startswith("severity")]
    for heading in (headings[number] for number in shown):
        text = heading in TEXT_COLUMNS
        table.add_column(heading, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """The table of methods in Markdown."""
    return markdown(*method_rows(method_blocks(results)))


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its numbers flush right."""
    rules = ["---" if heading in TEXT_COLUMNS else "---:" for heading in headings]
    lines = [headings, rules, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)


def percent(value: float | None) -> str:
    """A share from 0 to 1 in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


def _severity(cell: str) -> int:
    return int(cell.partition("/")[2])


def _accuracy(numbers: Mapping[str, Any] | None) -> str:
    return percent(None if numbers is None else numbers["accuracy"])


def _times(block: Mapping[str, Any], source: Mapping[str, Any] | None, cost: str) -> str:
    if source is None or not block.get(cost) or not source.get(cost):
        return "-"
    return f"{block[cost] / source[cost]:.1f}x"


def calibration_table(check: Mapping[str, Mapping[str, float]]) -> Table:
    """A table for the terminal: what a calibration gained on the held-out training images it was checked on."""
    table = Table(title="on held-out training images in random cells, %")
    table.add_column("rows")
    for heading in ("agreement with the clean prediction", "accuracy", "accuracy on clean images"):
        table.add_column(heading, justify="right")
    for name, shares in check.items():
        table.add_row(name, *(percent(shares[key]) for key in ("agreement", "accuracy", "clean_accuracy")))
    return table
