"""What a detector takes each row's images for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from torch import Tensor

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.figures.canvas import (
    GRID,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    WIDTH,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_WITH_NUMBERS = 20
# Without numbers, colours must tell a share of 2 % from none.
SHARE_POWER = 0.5
DEEP_BLUE = (0.098, 0.412, 0.663)
"""Shares are shades of it, from transparent to opaque, so that a page with a dark background can show them too."""
ON_BLUE, WHITE_FROM = "#fefefe", 0.8


def confusion_figure(confusion: Tensor, rows: Sequence[str], *, caption: str = "", width: float = WIDTH) -> Figure:
    """Draw which share of each true row's images was taken for each row.

    Up to 20 rows are named and numbered in percent (shares below half a percent are left blank); more of them, rows
    per cell, are grouped by corruption.

    Args:
        confusion: Numbers of images, shape (R, R), true rows first, as `DetectorModule.confusion` holds them. A true
            row without images stays white.
        rows: The R names.
        caption: What it was measured on.
        width: Of the figure, in inches.

    Returns:
        A figure whose first axes shows the shares, from 0 to 1.

    Raises:
        DataError: If the shape is not (R, R), or a number is negative or not finite.
        DynBNError: If matplotlib is not installed.
    """
    if confusion.shape != (len(rows), len(rows)) or not rows:
        raise DataError(f"expected a confusion matrix of {len(rows)} x {len(rows)}, got shape {tuple(confusion.shape)}")
    counts = confusion.detach().cpu().double()
    if not counts.isfinite().all() or (counts < 0).any():
        raise DataError("a confusion matrix counts images: no number may be negative or not finite")
    totals = counts.sum(dim=1, keepdim=True)
    shares = counts / totals  # NaN where there was no image
    right = float(counts.diagonal().sum() / totals.sum())

    title = "What the detector takes each row's images for" + (f": {right:.1%} right" if totals.sum() > 0 else "")
    figure = new_figure(title, caption, height=0.92 * width, width=width)
    axes = figure.add_subplot()
    if len(rows) <= MOST_WITH_NUMBERS:
        power, ticks, what = 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1], "row"
        _name_rows(axes, rows)
        _write_numbers(axes, shares, SMALL_SIZE * width / WIDTH)
    else:
        power, ticks, what = SHARE_POWER, [0, 0.02, 0.1, 0.25, 0.5, 1], "corruption, severities in order"
        _name_groups(axes, rows)
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    colours = LinearSegmentedColormap.from_list("shares", [(*DEEP_BLUE, 0.0), (*DEEP_BLUE, 1.0)])
    shown = axes.imshow(shares.numpy(), cmap=colours, norm=PowerNorm(power, vmin=0, vmax=1), interpolation="nearest")
    axes.set_xlabel(f"detected {what}", size=TEXT_SIZE, color=TEXT)
    axes.set_ylabel(f"true {what}", size=TEXT_SIZE, color=TEXT)
    plain_axes(axes, framed=True)
    axes.tick_params(axis="both", which="major", length=0)
    bar = figure.colorbar(shown, ax=axes, shrink=0.5, aspect=30, pad=0.015, ticks=ticks)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in ticks])
    bar.set_label("share of the true row's images", size=TEXT_SIZE, color=TEXT)
    bar.ax.tick_params(labelsize=SMALL_SIZE, colors=TEXT)
    return figure


def _name_rows(axes: Axes, rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(rows)), rows, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)


def _write_numbers(axes: Axes, shares: Tensor, size: float) -> None:
    for true, line in enumerate(shares.tolist()):
        for detected, share in enumerate(line):
            if share >= 0.005:
                colour = ON_BLUE if share > WHITE_FROM else TEXT
                axes.text(detected, true, f"{100 * share:.0f}", size=size, color=colour, ha="center", va="center")


def _name_groups(axes: Axes, rows: Sequence[str]) -> None:
    """Name each run of rows of one corruption in its middle, and draw a line before each but the first."""
    middles, names, begin = [], [], 0
    for name, members in groupby(rows, key=lambda row: row.partition("/")[0]):
        count = len(list(members))
        middles.append(begin + (count - 1) / 2)
        names.append(name)
        if begin:
            axes.axhline(begin - 0.5, color=GRID, linewidth=0.6)
            axes.axvline(begin - 0.5, color=GRID, linewidth=0.6)
        begin += count
    axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, names)
