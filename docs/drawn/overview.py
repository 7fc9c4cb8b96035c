"""The picture of the README: a mixed batch, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from drawn.demo_folder import Demo
from drawn.parts import COLOURS, DYNAMIC, SOURCE, bare, spectra_of
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules.shapes import SHAPE_CLASSES
from dynbn_lightning.reporting import methods_of
from dynbn_lightning.reporting.figures.canvas import (
    FAINT,
    GRID,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is shown, as far as the demo has it. The first of these test images stand in this order below each other.
SHOWN_CELLS = (
    "clean",
    "gaussian_noise/5",
    "defocus_blur/5",
    "fog/5",
    "contrast/5",
    "jpeg_compression/5",
)


def overview(demo: Demo) -> Figure:
    """A mixed batch, what the detector sees and says, both predictions, and the accuracy under every corruption."""
    cells = demo.have(SHOWN_CELLS)
    pixels, labels = demo.pixels(range(len(cells)), cells)
    weights = demo.detector(pixels)
    confidences, detected = weights.max(1)
    predictions = {
        SOURCE: demo.model(demo.data.normalization.apply(pixels)).argmax(1),
        DYNAMIC: demo.logits(pixels, weights).argmax(1),
    }
    figure = new_figure(
        "One mixed batch, one forward pass: each image is normalised for its own corruption",
        f"dynbn demo: a small ResNet trained on clean shapes, and its test images 0 to {len(cells) - 1}, a cell each",
        height=7.9,
    )
    widths = [0.8, *[1] * len(cells), 0.1]
    grid = figure.add_gridspec(4, len(widths), height_ratios=[1, 1, 1.15, 2.5], width_ratios=widths)
    for row, head in enumerate(("image", "its spectrum")):
        axes = figure.add_subplot(grid[row, 0])
        write_lines(axes, [(head, TEXT)], right=True)
    heads = [("detected row", TEXT), ("its probability", TEXT)]
    heads += [(name, COLOURS[method]) for method, name in ((SOURCE, "source model"), (DYNAMIC, "dynamic BN"))]
    write_lines(figure.add_subplot(grid[2, 0]), heads, right=True)
    spectra = spectra_of(pixels)
    for image, cell in enumerate(cells):
        axes = figure.add_subplot(grid[0, image + 1])
        axes.imshow(pixels[image].movedim(0, -1).numpy(), interpolation="nearest")
        axes.set_title(cell, size=SMALL_SIZE, color=TEXT, pad=4)
        bare(axes)
        axes = figure.add_subplot(grid[1, image + 1])
        axes.imshow(spectra[image].numpy(), vmin=float(spectra.min()), vmax=float(spectra.max()), cmap="cividis")
        bare(axes)
        said = [(demo.bank.rows[int(detected[image])], TEXT), (f"{confidences[image]:.2f}", TEXT)]
        for method, prediction in predictions.items():
            mark = "✓" if prediction[image] == labels[image] else "✗"
            said.append((f"{mark} {SHAPE_CLASSES[int(prediction[image])]}", COLOURS[method]))
        write_lines(figure.add_subplot(grid[2, image + 1]), said)
    accuracy_bars(figure.add_subplot(grid[3, :]), demo)
    return figure


def write_lines(axes: Axes, lines: Sequence[tuple[str, str]], *, right: bool = False) -> None:
    """Lines of text below each other and nothing else, each with its colour; a wrong prediction in a frame."""
    axes.axis("off")
    place, align = (1.0, "right") if right else (0.5, "center")
    for number, (line, colour) in enumerate(lines):
        frame = {"boxstyle": "round,pad=0.25", "facecolor": "#f0f0f0", "edgecolor": FAINT, "linewidth": 0.8}
        axes.text(
            place,
            1 - (number + 0.5) / len(lines),
            line,
            ha=align,
            va="center",
            size=SMALL_SIZE,
            color=colour,
            bbox=frame if line.startswith("✗") else None,
            in_layout=False,
        )


def accuracy_bars(axes: Axes, demo: Demo) -> None:
    """Top-1 of source and dynamic BN: on clean images and, over the severities, on each corruption."""
    blocks = methods_of(demo.results, "mixed")
    names = ["clean", *demo.data.corruptions]
    for number, (method, label) in enumerate({SOURCE: "source model", DYNAMIC: "dynamic BN, calibrated"}.items()):
        block = blocks[method]
        heights = [100 * block["clean"]["accuracy"]]
        for name in names[1:]:
            its = [Cell(name, severity).name for severity in demo.data.severities]
            heights.append(100 * fmean(block["cells"][cell]["accuracy"] for cell in its))
        places = [place + 0.4 * (number - 0.5) for place in range(len(names))]
        mean = f"{100 * block['mean']['accuracy']:.1f}"
        axes.bar(places, heights, 0.38, color=COLOURS[method], label=f"{label}: {mean} % over all corruptions")
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    plain_axes(axes)
    axes.set(ylim=(0, 100), xlim=(-0.6, len(names) - 0.4), axisbelow=True)
    axes.set_ylabel("top-1, %", size=TEXT_SIZE, color=TEXT)
    axes.grid(axis="y", color=GRID)
    severities = ", ".join(map(str, demo.data.severities))
    images = blocks[SOURCE]["clean"]["images"]
    axes.set_title(
        f"all {images:,} test images in each cell, mixed stream; mean of severities {severities}",
        size=TEXT_SIZE,
        color=TEXT,
        loc="left",
        pad=24,
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.99), ncols=2, frameon=False, fontsize=SMALL_SIZE, borderpad=0)
