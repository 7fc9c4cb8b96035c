"""What the detector says, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from drawn.demo_folder import Demo
from dynbn_lightning.detection import StreamMemory
from dynbn_lightning.reporting.figures.canvas import (
    BLUE,
    ORANGE,
    SKY,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAM_OF_CELLS = ("gaussian_noise/3", "fog/3", "clean", "gaussian_noise/5", "frost/5")


CELL_IMAGES = 40


def detection(demo: Demo) -> Figure:
    """What the detector takes the images of some cells for, one after another, by themselves and as a stream."""
    cells = demo.have(STREAM_OF_CELLS)[:3]
    numbers = [number for _ in cells for number in range(CELL_IMAGES)]
    of_images = [cell for cell in cells for _ in range(CELL_IMAGES)]
    pixels, _ = demo.pixels(numbers, of_images)
    alone = demo.detector(pixels)
    filtered = StreamMemory().update(alone)
    kinds = {'evidence="image": it alone': alone, 'evidence="stream": it and the images before it': filtered}
    figure = new_figure(
        "Detection: what each image is taken for, by itself and with those before it",
        f"the detector of dynbn demo, calibrated, on the first {CELL_IMAGES} test images of each of {len(cells)} cells",
        height=4.9,
    )
    corruptions = [cell.partition("/")[0] for cell in of_images]
    true = torch.tensor([[row == cell for row in demo.bank.rows] for cell in of_images])
    same = torch.tensor([[row.partition("/")[0] == name for row in demo.bank.rows] for name in corruptions])
    parts = {
        "the true row": (true, BLUE),
        "the same corruption at another severity": (same & ~true, SKY),
        "another corruption, or clean": (~same, ORANGE),
    }
    panels = figure.subplots(len(kinds), 1, sharex=True)
    for axes, (kind, posterior) in zip(panels, kinds.items(), strict=True):
        bottom = torch.zeros(len(posterior))
        for label, (rows, colour) in parts.items():
            heights = (posterior * rows).sum(1)
            axes.bar(range(len(heights)), heights.numpy(), 1.0, bottom.numpy(), color=colour, label=label)
            bottom += heights
        for edge in range(CELL_IMAGES, len(of_images), CELL_IMAGES):
            axes.axvline(edge - 0.5, color="white", linewidth=2.5)
        axes.set(xlim=(-0.5, len(of_images) - 0.5), ylim=(0, 1))
        axes.set_ylabel("probability", size=TEXT_SIZE, color=TEXT)
        axes.set_title(kind, size=TEXT_SIZE, color=TEXT, loc="left")
        plain_axes(axes)
    middles = [CELL_IMAGES * (place + 0.5) - 0.5 for place in range(len(cells))]
    panels[-1].set_xticks(middles, [f"{CELL_IMAGES} images in {cell}" for cell in cells])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL_SIZE)
    return figure
