"""What stands in a bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drawn.demo_folder import Demo
from dynbn_lightning.reporting.figures.canvas import (
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def bank(demo: Demo) -> Figure:
    """How far each row of the demo's bank is from the source statistics, layer by layer, and how far it is trusted."""
    from matplotlib.colors import LogNorm

    bank = demo.bank
    assert bank.calibration is not None
    steps = ((bank.mean - bank.mean[0]) / bank.var[0].sqrt()).square().split(list(bank.layers.values()), dim=1)
    distance = torch.stack([step.mean(1).sqrt() for step in steps], dim=1)
    spread = (bank.var / bank.var[0]).log2().split(list(bank.layers.values()), dim=1)
    ratio = torch.stack([of_layer.mean(1) for of_layer in spread], dim=1)
    limit = float(ratio.abs().max())
    logarithmic = LogNorm(LEAST_DISTANCE, float(distance.max()), clip=True)
    panels: list[tuple[str, str, Tensor, dict[str, Any]]] = [
        (
            "means",
            "distance from the source's,\nin its standard deviations",
            distance,
            {"cmap": "Blues", "norm": logarithmic},
        ),
        (
            "variances",
            "factor on the source's\n(geometric mean)",
            ratio,
            {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit},
        ),
        ("source share", "how much of the source's\nstatistics goes in", bank.calibration.source_share, SHARES),
    ]
    if bank.calibration.image_share is not None:
        of_image = ("image share", "how much of an image's\nown moments goes in", bank.calibration.image_share, SHARES)
        panels.append(of_image)
    severities = ", ".join(map(str, demo.data.severities))
    figure = new_figure(
        "A bank: statistics for each row and layer, and how far calibration trusts them",
        f"the bank of dynbn demo; its rows are clean and, at severities {severities} from above, each corruption",
        height=1.9 + 0.135 * len(bank),
    )
    grid = figure.add_gridspec(2, len(panels), height_ratios=[1, 0.02])
    for column, (title, meaning, values, colours) in enumerate(panels):
        axes = figure.add_subplot(grid[0, column])
        shown = axes.imshow(values.numpy(), aspect="auto", interpolation="nearest", **colours)
        axes.set_title(title, size=TEXT_SIZE, color=TEXT)
        axes.set_xticks(range(len(bank.layers)), list(bank.layers), rotation=60, ha="right", rotation_mode="anchor")
        mark_rows(axes, bank.rows, named=column == 0)
        plain_axes(axes, framed=True)
        axes.tick_params(axis="x", labelsize=SMALL_SIZE - 1)
        axes.tick_params(axis="y", length=0)
        bar = figure.colorbar(shown, cax=figure.add_subplot(grid[1, column]), orientation="horizontal")
        bar.set_label(meaning, size=SMALL_SIZE, color=TEXT)
        bar.ax.tick_params(labelsize=SMALL_SIZE, colors=TEXT)
        bar.outline.set_visible(False)
        if title == "means":
            decades = [tick for tick in (0.03, 0.1, 0.3, 1, 3) if tick <= distance.max()]
            bar.set_ticks(decades, labels=[f"{tick:g}" for tick in decades])
            bar.minorticks_off()
        if title == "variances":
            powers = range(-int(limit), int(limit) + 1)
            bar.set_ticks(powers, labels=[f"÷{2**-power}" if power < 0 else f"×{2**power}" for power in powers])
    return figure


LEAST_DISTANCE = 0.03
SHARES: dict[str, Any] = {"cmap": "Purples", "vmin": 0, "vmax": 1}


def mark_rows(axes: Axes, rows: Sequence[str], *, named: bool) -> None:
    """White lines between corruptions, and their names in the middle of their rows."""
    corruptions = [row.partition("/")[0] for row in rows]
    names = list(dict.fromkeys(corruptions))
    firsts = [corruptions.index(name) for name in names]
    middles = [first + (corruptions.count(name) - 1) / 2 for first, name in zip(firsts, names, strict=True)]
    for first in firsts[1:]:
        axes.axhline(first - 0.5, color="white", linewidth=1.6)
    axes.set_yticks(middles, names if named else [""] * len(names))
