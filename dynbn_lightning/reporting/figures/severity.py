"""How accuracy falls with severity, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.reporting.figures.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    TEXT,
    TEXT_SIZE,
    VERMILLION,
    new_figure,
    plain_axes,
)
from dynbn_lightning.reporting.results import method_blocks

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
HEIGHT = 4.6
LABEL_GAP = 0.058
"""The least distance of two labels, as a part of the height of the axes."""


def severity_figure(results: dict[str, Any], stream: str | None = None) -> Figure:
    """Draw the mean accuracy over corruptions at each severity, a line per method; severity 0 are clean images.

    Args:
        results: As `read_results` gives them.
        stream: Which stream, where there are several: by default `"mixed"` if it is there, else the first. Of several
            batch sizes its first is drawn.

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
    figure = new_figure(title, _caption(results["protocol"], stream, sizes[stream]), height=HEIGHT)
    axes = figure.add_subplot()
    looks = _looks(list(lines))
    for method, points in lines.items():
        _, colour, marker = looks[method]
        axes.plot(
            list(points), list(points.values()), color=colour, marker=marker, markersize=5, linewidth=1.8, label=method
        )
    _set_axes(axes, lines)
    _label_lines(axes, lines, looks)
    return figure


def mean_by_severity(method: str, block: dict[str, Any]) -> dict[int, float]:
    """Accuracy in percent by severity, the mean over corruptions, which must be the same ones at each; 0 is clean."""
    accuracies: dict[int, dict[str, float]] = {}
    for cell, accuracy in block["cells"].items():
        corruption, _, severity = cell.partition("/")
        accuracies.setdefault(int(severity), {})[corruption] = accuracy
    if not accuracies:
        raise DataError(f"the results of {method!r} have no corrupted cells to draw")
    if len({frozenset(at_one) for at_one in accuracies.values()}) > 1:
        raise DataError(f"the results of {method!r} are not of the same corruptions at each severity")
    points = {} if block.get("clean") is None else {0: 100 * block["clean"]}
    for severity, at_one in sorted(accuracies.items()):
        points[severity] = 100 * sum(at_one.values()) / len(at_one)
    return points


def spread(values: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """The places nearest to `values` (least squares), in the same order, at least `gap` apart and within bounds.

    Where so many don't fit, they reach below `lowest`.
    """
    order = sorted(range(len(values)), key=lambda number: values[number])
    # With the gaps taken out, places must only not fall: what would is pooled to its mean.
    pools: list[tuple[float, int]] = []
    for place, number in enumerate(order):
        mean, count = values[number] - place * gap, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        pools.append((mean, count))
    top = highest - (len(values) - 1) * gap
    without_gaps = [min(max(mean, lowest), top) for mean, count in pools for _ in range(count)]
    places = [0.0] * len(values)
    for place, number in enumerate(order):
        places[number] = without_gaps[place] + place * gap
    return places


def _looks(methods: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    others = [method for method in methods if method not in KNOWN_METHODS]
    looks = {method: (method, *OTHER_LOOKS[number % len(OTHER_LOOKS)]) for number, method in enumerate(others)}
    return {**KNOWN_METHODS, **looks}


def _caption(protocol: dict[str, Any], stream: str, batch_size: int) -> str:
    seeds = protocol.get("seeds", protocol.get("seed"))
    parts = [
        " on ".join(str(protocol[key]) for key in ("model", "source") if key in protocol),
        f"{protocol['test_images']} test images" if "test_images" in protocol else "",
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
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    plain_axes(axes)


def _label_lines(axes: Axes, lines: dict[str, dict[int, float]], looks: dict[str, tuple[str, str, str]]) -> None:
    """Write each method's name at the end of its line, apart from the others, joined to it by a thin line."""
    low, high = axes.get_ylim()
    ends = [list(points.items())[-1] for points in lines.values()]
    places = spread([value for _, value in ends], LABEL_GAP * (high - low), low, high)
    for method, end, place in zip(lines, ends, places, strict=True):
        name, colour, _ = looks[method]
        axes.annotate(
            name,
            xy=end,
            xytext=(1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            size=TEXT_SIZE,
            color=TEXT,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 1.2,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 5,
            },
            annotation_clip=False,
        )
