"""How an image gets its row, and what that does to the activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from drawn.demo_folder import Demo
from dynbn_lightning.datamodules.shapes import SHAPE_CLASSES
from dynbn_lightning.reporting.figures.canvas import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    SMALL_SIZE,
    TEXT,
    VERMILLION,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYERS_OF_CELLS = ("fog/5", "gaussian_noise/5")


HISTOGRAM_IMAGES = 200


def routing(demo: Demo) -> Figure:
    """The way of a batch through one forward pass, and a channel's outputs in three layers under either statistics."""
    figure = new_figure(
        "Routing: one forward pass, statistics for each image",
        "computed by what dynbn demo leaves, for four of its test images",
        height=8.2,
    )
    grid = figure.add_gridspec(2, 3, height_ratios=[1.9, 1])
    draw_way(figure.add_subplot(grid[0, :]), demo)
    cell = demo.have(LAYERS_OF_CELLS)[0]
    numbers = range(HISTOGRAM_IMAGES)
    clean, _ = demo.pixels(numbers, ["clean"] * len(numbers))
    corrupted, _ = demo.pixels(numbers, [cell] * len(numbers))
    curves = {
        "clean images, source statistics": (demo.layer_outputs(clean, "clean"), FAINT),
        f"{cell}, source statistics": (demo.layer_outputs(corrupted, "clean"), ORANGE),
        f"{cell}, its row (calibrated)": (demo.layer_outputs(corrupted, cell), BLUE),
    }
    layers = list(demo.bank.layers)
    for column, layer in enumerate((layers[0], layers[len(layers) // 2], layers[-1])):
        axes = figure.add_subplot(grid[1, column])
        values = {label: outputs[layer] for label, (outputs, _) in curves.items()}
        channel = channel_of_median_shift(*list(values.values())[:2])
        draw_histograms(axes, {label: (its[channel], curves[label][1]) for label, its in values.items()})
        axes.set_title(f"{layer}, channel {channel}", size=SMALL_SIZE, color=TEXT)
        if column == 0:
            axes.set_ylabel("share of the outputs", size=SMALL_SIZE, color=TEXT)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL_SIZE)
    return figure


def channel_of_median_shift(clean: Tensor, corrupted: Tensor) -> int:
    """The channel whose mean a corruption moves by the median of all channels, in standard deviations."""
    shift = (corrupted.mean(1) - clean.mean(1)).abs() / clean.std(1)
    return int(shift.argsort()[len(shift) // 2])


def draw_histograms(axes: Axes, values: dict[str, tuple[Tensor, str]]) -> None:
    """Outlines of histograms on common bins, which leave out the outermost values; the first one is filled."""
    together = torch.cat([its for its, _ in values.values()])
    together = together[:: max(1, len(together) // 100_000)]  # what torch.quantile can take
    low, high = together.quantile(torch.tensor([0.002, 0.995])).tolist()
    bins = torch.linspace(low, high, 61)
    for number, (label, (its, colour)) in enumerate(values.items()):
        counts = torch.histogram(its.contiguous(), bins).hist / len(its)
        axes.stairs(counts.numpy(), bins.numpy(), fill=not number, color=colour, linewidth=1.4, label=label)
        if not number:
            axes.patches[-1].set_alpha(0.45)
    plain_axes(axes)
    axes.set_xlabel("output of the layer", size=SMALL_SIZE, color=TEXT)
    axes.set_yticks([])


WAY_CELLS = ("clean", "gaussian_noise/5", "fog/5", "contrast/5", "glass_blur/5", "frost/5")


def draw_way(axes: Axes, demo: Demo) -> None:
    """Images, detector, weights, bank, statistics of each image, layers, classes; the tables are as they are."""
    from matplotlib.patches import FancyBboxPatch

    cells = demo.have(WAY_CELLS)[:4]
    pixels, _ = demo.pixels(range(len(cells)), cells)
    weights = demo.detector(pixels)
    classes = [SHAPE_CLASSES[int(which)] for which in demo.logits(pixels, weights).argmax(1)]
    shift = (demo.bank.mean - demo.bank.mean[0]) / demo.bank.var[0].sqrt()
    axes.axis("off")

    def table(values: Tensor, left: float, right: float, low: float, high: float, **colours: Any) -> None:
        axes.imshow(values.numpy(), extent=(left, right, low, high), aspect="auto", interpolation="nearest", **colours)
        axes.plot([left, right, right, left, left], [low, low, high, high, low], color=FAINT, linewidth=0.8)

    def say(x: float, y: float, text: str, **options: Any) -> None:
        axes.text(x, y, text, **{"ha": "center", "va": "center", "size": SMALL_SIZE, "color": TEXT, **options})

    def box(x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
        style = "round,pad=0,rounding_size=0.8"
        axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor="white", edgecolor=colour, linewidth=1.6))
        say(x + width / 2, y + height / 2, text)

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str = BLACK) -> None:
        arrows = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrows)

    for place, image in enumerate(pixels):
        top = 55 - 7 * place
        axes.imshow(image.movedim(0, -1).numpy(), extent=(1, 7.4, top - 6.4, top), interpolation="nearest")
    say(4.2, 57, "N images")
    arrow((8.2, 42), (13.6, 42))
    say(10.6, 43.8, "pixels")
    box(14, 36, 12, 12, "detector", GREEN)
    arrow((26.4, 42), (31.6, 42))
    table(weights, 32, 60, 35, 49, cmap="Greens", vmin=0, vmax=1)
    say(46, 51, f"weights over the bank's K = {len(demo.bank)} rows")
    table(shift, 32, 60, 16, 30, cmap="RdBu_r", vmin=-1, vmax=1)
    say(46, 32, "the bank: K rows, all channels")
    say(46, 14, "(blue: below the source's mean, red: above)", color=FAINT)
    arrow((60.4, 42), (67.6, 42))
    arrow((60.4, 23), (67.6, 35))
    say(63.8, 43.8, "mix")
    table(weights @ shift, 68, 98, 35, 49, cmap="RdBu_r", vmin=-1, vmax=1)
    say(83, 51, "a mean and variance for each image")

    axes.plot([4.2, 4.2], [26.8, 5], color=BLACK, linewidth=1.3)
    arrow((4.2, 5), (13.6, 5))
    names = ("conv", "BN", "conv", "BN", "…", "BN", "linear")
    lefts = [14 + 10.9 * place for place in range(len(names))]
    for name, left, following in zip(names, lefts, [*lefts[1:], 90], strict=True):
        box(left, 1.5, 7.6, 7, name, VERMILLION if name == "BN" else BLACK)
        arrow((left + 7.8, 5), (following - 0.3, 5))
        if name == "BN":
            arrow((left + 3.8, 11.4), (left + 3.8, 8.8), VERMILLION)
    axes.plot([lefts[1] + 3.8, 83, 83], [11.4, 11.4, 34.6], color=VERMILLION, linewidth=1.3)
    for place, name in enumerate(classes):
        say(90.6, 9.2 - 2.8 * place, name, ha="left")
    axes.set(xlim=(0, 100), ylim=(-1, 58), aspect="equal")
