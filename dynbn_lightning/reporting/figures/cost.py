"""What a method costs against what it gives: time per image and mean accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.figures.canvas import GRID, TEXT, TEXT_SIZE, WIDTH, new_figure, plain_axes
from dynbn_lightning.reporting.figures.labels import Label, height_of_labels, label_at_right, width_beyond_usual
from dynbn_lightning.reporting.figures.severity import looks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_HEIGHT, ROUND_AXES = 4.0, 1.3
"""Inches: of the figure, and of what stands above and below its axes."""
LOGARITHMIC_FROM = 10.0
STEPS = (1, 2, 5)


def cost_figure(methods: Mapping[str, tuple[float, float]], *, caption: str = "", width: float = WIDTH) -> Figure:
    """Draw the mean accuracy of each method against its time per image; up and to the left is better.

    Args:
        methods: By name, milliseconds per image and accuracy from 0 to 1. Times are on a logarithmic scale where the
            longest is more than 10 times the shortest.
        caption: What it was measured on.
        width: Of the figure, in inches; more where labels are long.

    Returns:
        A figure with one axes, a labelled point for each method.

    Raises:
        DataError: If there is no method, or a time is not above 0 or a number is not finite.
        DynBNError: If matplotlib is not installed.
    """
    if not methods:
        raise DataError("there are no methods to draw")
    for name, (time, accuracy) in methods.items():
        if not (0 < time < math.inf and math.isfinite(accuracy)):
            raise DataError(f"{name!r} took {time!r} ms per image and has an accuracy of {accuracy!r}")
    height = max(LEAST_HEIGHT, height_of_labels(len(methods)) + ROUND_AXES)
    title = "Mean accuracy over corrupted cells against time per image"
    looks = looks_of(list(methods))
    width += width_beyond_usual(looks[name][0] for name in methods)
    figure = new_figure(title, caption, height=height, width=width)
    axes = figure.add_subplot()
    for name, (time, accuracy) in methods.items():
        _, colour, marker = looks[name]
        axes.plot([time], [100 * accuracy], color=colour, marker=marker, markersize=8, linestyle="none", label=name)
    _set_axes(axes, methods)
    points = {name: (time, 100 * accuracy) for name, (time, accuracy) in methods.items()}
    label_at_right(
        axes,
        [Label(looks[name][0], point, looks[name][1]) for name, point in points.items()],
        height=height - ROUND_AXES,
    )
    return figure


def _set_axes(axes: Axes, methods: Mapping[str, tuple[float, float]]) -> None:
    times = [time for time, _ in methods.values()]
    accuracies = [100 * accuracy for _, accuracy in methods.values()]
    margin = 0.08 * max(max(accuracies) - min(accuracies), 1.0)
    axes.set_ylim(min(accuracies) - margin, max(accuracies) + margin)
    if max(times) > LOGARITHMIC_FROM * min(times):
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 1.3, max(times) * 1.3)
        ticks = round_numbers(min(times) / 1.3, max(times) * 1.3)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xlim(0, 1.08 * max(times))
    axes.set_xlabel("milliseconds per image", size=TEXT_SIZE, color=TEXT)
    axes.set_ylabel("mean top-1 accuracy, %", size=TEXT_SIZE, color=TEXT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    plain_axes(axes)


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers; only the powers where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in STEPS if low <= step * 10.0**power <= high]
    wide = [number for number in found if math.isclose(math.log10(number), round(math.log10(number)))]
    return wide if len(found) > 8 else found
