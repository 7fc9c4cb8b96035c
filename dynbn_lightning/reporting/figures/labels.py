"""Names written beside an axes, apart from each other, each joined to its point by a thin line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dynbn_lightning.reporting.figures.canvas import TEXT, TEXT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS_PER_LABEL = 14
"""The least distance of two labels."""
MOST_LETTERS, USUAL_LETTERS = 44, 28
POINTS_PER_LETTER = 5.6


class Label(NamedTuple):
    """What is written, the point that it belongs to, and the colour of the line between them."""

    text: str
    point: tuple[float, float]
    colour: str


def height_of_labels(count: int) -> float:
    """How many inches so many labels take."""
    return count * POINTS_PER_LABEL / 72


def width_beyond_usual(texts: Iterable[str]) -> float:
    """How many inches longer than usual the longest of these labels is."""
    longest = max((len(shortened(text)) for text in texts), default=0)
    return max(0, longest - USUAL_LETTERS) * POINTS_PER_LETTER / 72


def shortened(text: str) -> str:
    """A very long text without its middle."""
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[: half - 1]}…{text[-half:]}"


def label_at_right(axes: Axes, labels: Sequence[Label], *, height: float) -> None:
    """Write the labels one below another at the right of an axes that is about `height` inches high."""
    low, high = axes.get_ylim()
    gap = POINTS_PER_LABEL / 72 / height * (high - low)
    places = spread([label.point[1] for label in labels], gap, low, high)
    for label, place in zip(labels, places, strict=True):
        axes.annotate(
            shortened(label.text),
            xy=label.point,
            xytext=(1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            size=TEXT_SIZE,
            color=TEXT,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 1.2,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 5,
            },
            annotation_clip=False,
        )


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
