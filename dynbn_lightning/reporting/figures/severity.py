"""How accuracy falls with severity, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.reporting.figures.canvas import (
    BLACK,
    BLUE,
    GREEN,
    GRID,
    ORANGE,
    PURPLE,
    SKY,
    TEXT,
    TEXT_SIZE,
    VERMILLION,
    WIDTH,
    new_figure,
    plain_axes,
)
from dynbn_lightning.reporting.figures.labels import Label, height_of_labels, label_at_right, width_beyond_usual
from dynbn_lightning.reporting.results import accuracies, method_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFERRED_STREAM = "mixed"
KNOWN_METHODS = {
    "source": ("source", BLACK, "o"),
    "batch_stats": ("BN-1", ORANGE, "s"),
    "batch_stats/prior": ("BN-1 with source prior", PURPLE, "s"),
    "few_shot": ("few-shot BN", GREEN, "d"),
    "ema": ("EMA", SKY, "h"),
    "distribution_matching": ("distribution matching", BLUE, "*"),
    "distribution_matching/image": ("distribution matching, image", BLUE, "8"),
    "distribution_matching/dynamic_bn": ("dynamic BN, shapes matched", VERMILLION, "*"),
    "unmix_tns": ("UnMix-TNS", PURPLE, "H"),
    "tent": ("TENT", GREEN, "1"),
    "dynamic_bn": ("dynamic BN", VERMILLION, "P"),
    "dynamic_bn/hard": ("dynamic BN, hard", SKY, "^"),
    "dynamic_bn/soft": ("dynamic BN, soft", BLUE, "D"),
    "dynamic_bn/calibrated": ("dynamic BN, calibrated", VERMILLION, "P"),
    "dynamic_bn/refined": ("dynamic BN, refined rows", PURPLE, "X"),
    "dynamic_bn/batch": ("dynamic BN, calibrated, batch", ORANGE, "<"),
    "dynamic_bn/stream": ("dynamic BN, calibrated, stream", SKY, "p"),
    "oracle": ("oracle", GREEN, "v"),
    "oracle/calibrated": ("oracle, calibrated", GREEN, ">"),
}
"""Name, colour and marker: a method looks the same in every figure."""
OTHER_LOOKS = [(VERMILLION, "d"), (PURPLE, "h"), (BLUE, "*"), (ORANGE, "8"), (GREEN, "H"), (SKY, "1")]
LEAST_HEIGHT, ROUND_AXES = 4.6, 1.3
"""Inches: of the figure, and of what stands above and below its axes."""


def severity_figure(results: dict[str, Any], stream: str | None = None, *, width: float = WIDTH) -> Figure:
    """Draw the mean accuracy over corruptions at each severity, a line per method; severity 0 are clean images.

    Args:
        results: As `read_results` gives them.
        stream: Which stream, where there are several: by default `"mixed"` if it is there, else the first. Of several
            batch sizes its first is drawn.
        width: Of the figure, in inches; more where labels are long.

    Returns:
        A figure with one axes, in which every line is labelled with its method's name in the results and has points
        (severity, accuracy in percent).

    Raises:
        DataError: If there is no such stream, or a method has no cells, or cells of unequal severities.
        DynBNError: If matplotlib is not installed.
    """
    blocks: dict[str, dict[str, dict[str, Any]]] = {}
    sizes = {name: size for name, size, *_ in reversed(list(method_blocks(results)))}  # of each stream's first run
    for name, size, method, block in method_blocks(results):
        if size == sizes[name]:
            blocks.setdefault(name, {})[method] = block
    if not blocks:
        raise DataError("there are no results to draw")
    stream = stream or (PREFERRED_STREAM if PREFERRED_STREAM in blocks else next(iter(blocks)))
    if stream not in blocks:
        raise DataError(f"there are no results of stream {stream!r}: {did_you_mean(stream, blocks)}")
    lines = {method: mean_by_severity(method, block) for method, block in blocks[stream].items()}

    corruptions = {cell.partition("/")[0] for block in blocks[stream].values() for cell in block["cells"]}
    plural = "s" if len(corruptions) > 1 else ""
    title = f"Top-1 accuracy against severity, mean over {len(corruptions)} corruption{plural}"
    height = max(LEAST_HEIGHT, height_of_labels(len(lines)) + ROUND_AXES)
    looks = looks_of(list(lines))
    width += width_beyond_usual(looks[method][0] for method in lines)
    figure = new_figure(title, _caption(results["protocol"], stream, sizes[stream]), height=height, width=width)
    axes = figure.add_subplot()
    for method, points in lines.items():
        _, colour, marker = looks[method]
        axes.plot(
            list(points), list(points.values()), color=colour, marker=marker, markersize=5, linewidth=1.8, label=method
        )
    _set_axes(axes, lines)
    ends = [Label(looks[method][0], list(points.items())[-1], looks[method][1]) for method, points in lines.items()]
    label_at_right(axes, ends, height=height - ROUND_AXES)
    return figure


def mean_by_severity(method: str, block: dict[str, Any]) -> dict[int, float]:
    """Accuracy in percent by severity, the mean over corruptions, which must be the same ones at each; 0 is clean."""
    found: dict[int, dict[str, float]] = {}
    for cell, accuracy in accuracies(block).items():
        if accuracy is None:
            raise DataError(f"the results of {method!r} have no accuracy for {cell}")
        corruption, _, severity = cell.partition("/")
        found.setdefault(int(severity), {})[corruption] = accuracy
    if not found:
        raise DataError(f"the results of {method!r} have no corrupted cells to draw")
    if len({frozenset(at_one) for at_one in found.values()}) > 1:
        raise DataError(f"the results of {method!r} are not of the same corruptions at each severity")
    clean = (block.get("clean") or {}).get("accuracy")
    points: dict[int, float] = {} if clean is None else {0: 100 * clean}
    return points | {at: 100 * fmean(of_cells.values()) for at, of_cells in sorted(found.items())}


def looks_of(methods: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """The name, colour and marker of each of these methods, and of all known ones."""
    others = [method for method in methods if method not in KNOWN_METHODS]
    looks = {method: (method, *OTHER_LOOKS[number % len(OTHER_LOOKS)]) for number, method in enumerate(others)}
    return {**KNOWN_METHODS, **looks}


def _caption(protocol: dict[str, Any], stream: str, batch_size: int) -> str:
    seeds = protocol.get("seeds", protocol.get("seed"))
    parts = [
        " on ".join(str(protocol[key]) for key in ("model", "source") if key in protocol),
        f"{protocol['test_images']} test images" if protocol.get("test_images") else "",
        f"{stream} stream",
        f"batch size {batch_size}",
        ""
        if seeds is None
        else f"mean over seeds {', '.join(map(str, seeds))}"
        if isinstance(seeds, list)
        else f"seed {seeds}",
    ]
    return ", ".join(part for part in parts if part)


def _set_axes(axes: Axes, lines: dict[str, dict[int, float]]) -> None:
    values = [value for points in lines.values() for value in points.values()]
    severities = sorted({severity for points in lines.values() for severity in points})
    margin = 0.06 * max(max(values) - min(values), 1.0)
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xlim(severities[0] - 0.15, severities[-1] + 0.15)
    axes.set_xticks(severities, ["clean" if severity == 0 else str(severity) for severity in severities])
    axes.set_xlabel("severity", size=TEXT_SIZE, color=TEXT)
    axes.set_ylabel("top-1 accuracy, %", size=TEXT_SIZE, color=TEXT)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain_axes(axes)
