"""What all figures share: the way to matplotlib, sizes and colours."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from dynbn_lightning.errors import DynBNError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
"""Figures of `WIDTH` inches fit the column of a README, with letters as high as its own."""
WIDTH = 8.2

TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 11, 9.5, 8.5
TEXT, FAINT, GRID = "#222222", "#8a8a8a", "#e4e4e4"

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#4d4d4d",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
"""Okabe and Ito's colours, which readers with any colour vision tell apart; their black lightened to a line's."""


def check_matplotlib() -> None:
    """Raise `DynBNError` if matplotlib, which the package does without otherwise, is not installed."""
    if find_spec("matplotlib") is None:
        raise DynBNError('figures need matplotlib: pip install "dynbn-lightning[report]"')


def new_figure(title: str, caption: str, height: float, width: float = WIDTH) -> Figure:
    """An empty white figure, `width` x `height` inches, with a title and a line that says what it was measured on.

    It belongs to no window and no list of open figures: pyplot and its backend are left alone.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    heading = f"{title}\n{caption}" if caption else title
    figure.suptitle(heading, x=0.01, ha="left", size=TITLE_SIZE, color=TEXT, linespacing=1.4)
    return figure


def plain_axes(axes: Axes, *, framed: bool = False) -> None:
    """Small dark ticks, and no frame but the left and lower line unless `framed`."""
    axes.tick_params(labelsize=TEXT_SIZE, colors=TEXT, length=3)
    if not framed:
        axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
