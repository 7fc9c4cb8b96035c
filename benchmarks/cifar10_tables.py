"""Means over seeds, paired intervals and tables of what `cifar10_real.py` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from dynbn_lightning.metrics import paired_bootstrap
from dynbn_lightning.reporting import ImageRecords, methods_of, read_results

NAMES = {
    "source": "source",
    "batch_stats": "BN-1",
    "dynamic_bn/hard": "dynamic BN, hard, rows as measured",
    "dynamic_bn/soft": "dynamic BN, soft, rows as measured",
    "dynamic_bn/calibrated": "dynamic BN, calibrated",
    "dynamic_bn/batch": "dynamic BN, calibrated, evidence of the batch",
    "dynamic_bn/stream": "dynamic BN, calibrated, evidence of the stream",
    "dynamic_bn/refined": "dynamic BN, calibrated, refined rows (more than statistics)",
    "oracle": "oracle, rows as measured",
    "oracle/calibrated": "oracle, calibrated rows",
}
Runs = Mapping[int, Mapping[str, Path]]


def summary(runs: Runs) -> dict[str, Any]:
    """The mean over seeds of each method on each stream, and its paired difference from the source.

    Args:
        runs: seed -> "stream method" -> folder of the results of `evaluate` with that one method.
    """
    first = read_results(next(folder for measured in runs.values() for folder in measured.values()))
    names = list(dict.fromkeys(name for measured in runs.values() for name in measured))
    streams: dict[str, dict[str, Any]] = {}
    for name in names:
        stream, method = name.split()
        streams.setdefault(stream, {})[method] = _summary_of(runs, stream, method)
    protocol = {**first["protocol"], "seeds": sorted(runs)}
    batch_size = first["runs"][0]["batch_size"]
    found = [{"stream": name, "batch_size": batch_size, "methods": methods} for name, methods in streams.items()]
    return {"schema_version": first["schema_version"], "protocol": protocol, "missing": [], "runs": found}


def _summary_of(runs: Runs, stream: str, method: str) -> dict[str, Any]:
    name = f"{stream} {method}"
    seeds = [seed for seed, measured in sorted(runs.items()) if name in measured]
    blocks = [methods_of(read_results(runs[seed][name]))[method] for seed in seeds]
    cells = {cell: mean_scores([block["cells"][cell] for block in blocks]) for cell in blocks[0]["cells"]}
    hardest = max(cell.partition("/")[2] for cell in cells)
    means = [block["mean"]["accuracy"] for block in blocks]
    block: dict[str, Any] = {
        "seeds": seeds,
        "clean": mean_scores([block["clean"] for block in blocks]),
        "cells": cells,
        "mean": mean_scores([block["mean"] for block in blocks]),
        "mean_std": stdev(means) if len(seeds) > 1 else 0.0,
        f"severity_{hardest}": mean(its["accuracy"] for cell, its in cells.items() if cell.endswith(f"/{hardest}")),
    }
    if all("detection" in one for one in blocks):
        block["detection"] = mean(one["detection"] for one in blocks)
    source = "extra source" if stream == "extra" else "mixed source"  # each image by itself: the stream is the same
    paired = [seed for seed in seeds if source in runs[seed]]
    if paired and method != "source":
        block["against_source"] = _against(
            torch.stack([_correct(runs[seed][name], method, list(cells)) for seed in paired]),
            torch.stack([_correct(runs[seed][source], "source", list(cells)) for seed in paired]),
            list(cells),
        )
    return block


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over seeds of each number of a cell."""
    return {number: mean(one[number] for one in scores) for number in scores[0]}


def _correct(folder: Path, method: str, cells: list[str]) -> Tensor:
    """Whether each image was right in each cell and then clean, (images, cells + 1)."""
    records, _ = ImageRecords.load(folder / methods_of(read_results(folder))[method]["records"])
    correct = records.correct_by_cell([*cells, "clean"])
    assert correct is not None, f"{folder}: not the same images in each cell"
    return correct


def _against(correct: Tensor, source: Tensor, cells: list[str]) -> dict[str, Any]:
    """Differences from the source with 95 % bounds: of the mean over cells, of clean, of each cell."""
    intervals = paired_bootstrap(correct, source).cells
    overall = paired_bootstrap(correct[..., :-1], source[..., :-1]).mean
    each = torch.stack([intervals.difference, intervals.lower, intervals.upper], dim=1).tolist()
    by_cell = dict(zip(cells, each[:-1], strict=True))
    worst = min(by_cell, key=lambda cell: by_cell[cell][0])
    lowest = min(by_cell, key=lambda cell: by_cell[cell][2])
    return {
        "mean": [float(overall.difference), float(overall.lower), float(overall.upper)],
        "clean": each[-1],
        "worst_cell": {worst: by_cell[worst]},
        "lowest_upper_bound": {lowest: by_cell[lowest]},
        "cells": by_cell,
    }


def tables(results: dict[str, Any]) -> str:
    """Markdown: a table for each stream."""
    parts = []
    for run in results["runs"]:
        stream, methods = run["stream"], run["methods"]
        hardest = next(key for key in next(iter(methods.values())) if key.startswith("severity_"))
        heading = f"| {stream} stream, top-1, % | seeds | all severities | {hardest.replace('_', ' ')} | clean "
        lines = [heading + "| mean against source | worst cell against source |", "|---" * 2 + "|---:" * 5 + "|"]
        for method, numbers in methods.items():
            against, seeds = numbers.get("against_source"), len(numbers["seeds"])
            spread = f" ± {100 * numbers['mean_std']:.1f}" if seeds > 1 else ""
            lines.append(
                f"| {NAMES.get(method, method)} | {seeds} "
                f"| {100 * numbers['mean']['accuracy']:.1f}{spread} | {100 * numbers[hardest]:.1f} "
                f"| {100 * numbers['clean']['accuracy']:.1f} | {_interval(against and against['mean'])} "
                f"| {_worst(against)} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _interval(bounds: list[float] | None) -> str:
    if bounds is None:
        return ""
    difference, lower, upper = (100 * bound for bound in bounds)
    return f"{difference:+.1f} [{lower:+.1f}, {upper:+.1f}]"


def _worst(against: dict[str, Any] | None) -> str:
    if against is None:
        return ""
    ((cell, bounds),) = against["worst_cell"].items()
    return f"{cell} {_interval(bounds)}"
