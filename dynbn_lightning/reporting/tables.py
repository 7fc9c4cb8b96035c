"""Results as tables, for the terminal and for documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from dynbn_lightning.reporting.results import method_blocks


def severity_means(block: Mapping[str, Any]) -> dict[int, float]:
    """The mean accuracy over the cells of each severity."""
    found: dict[int, list[float]] = {}
    for cell, accuracy in block["cells"].items():
        found.setdefault(int(cell.partition("/")[2]), []).append(accuracy)
    return {severity: sum(values) / len(values) for severity, values in sorted(found.items())}


def table_rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of the table of methods: accuracies in percent, costs as multiples of the source's.

    Columns that no method has anything to say in are left out. The source's costs are those of the same batch size.
    """
    blocks = list(method_blocks(results))
    sources = {size: block for _, size, method, block in blocks if method == "source"}
    severities = sorted({severity for *_, block in blocks for severity in severity_means(block)})
    headings = ["stream", "batch", "method", "mean"]
    headings += [f"severity {severity}" for severity in severities if len(severities) > 1]
    headings += ["clean", "detection", "time", "memory", "needs"]
    rows = []
    for stream, size, method, block in blocks:
        means, source = severity_means(block), sources.get(size)
        row = [stream, str(size), method, percent(block["mean"])]
        row += [percent(means.get(severity)) for severity in severities if len(severities) > 1]
        row += [percent(block["clean"]), percent(block.get("detection"))]
        row += [_times(block, source, "ms_per_image"), _times(block, source, "memory_mib")]
        rows.append([*row, ", ".join(block.get("needs", ()))])
    kept = [column for column in range(len(headings)) if any(row[column] not in ("", "-") for row in rows)]
    return [headings[column] for column in kept], [[row[column] for column in kept] for row in rows]


def results_table(results: dict[str, Any]) -> Table:
    """The table of methods for the terminal, in which there is no room for severities and needs."""
    headings, rows = table_rows(results)
    table = Table(title="top-1 accuracy, %; time and memory as multiples of the source's")
    shown = [number for number, name in enumerate(headings) if name != "needs" and not name.startswith("severity")]
    for heading in (headings[number] for number in shown):
        text = heading in ("stream", "method")
        table.add_column(heading, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    return table


def markdown_table(results: dict[str, Any]) -> str:
    """The table of methods in Markdown."""
    headings, rows = table_rows(results)
    rules = ["---" if heading in ("stream", "method", "needs") else "---:" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows)) + "\n"


def percent(value: float | None) -> str:
    """A share from 0 to 1 in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f}"


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
