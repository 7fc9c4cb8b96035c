"""The order of cells and classes in the four streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drawn.demo_folder import Demo
from dynbn_lightning import CorruptionDataModule
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import ShapesDataset
from dynbn_lightning.datamodules.shapes import SHAPE_CLASSES
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.reporting.figures.canvas import (
    BLUE,
    GRID,
    ORANGE,
    SKY,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAM_CORRUPTIONS, STREAM_IMAGES, STREAM_BATCH = ("gaussian_noise", "fog", "contrast"), 80, 20


def streams(demo: Demo) -> Figure:
    """The cells and the classes of the images of all four streams, in the order in which they come."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = {
        "clean": GRID,
        **{f"{name}/5": its for name, its in zip(STREAM_CORRUPTIONS, (ORANGE, SKY, BLUE), strict=True)},
    }
    figure = new_figure(
        "Streams: the same images in another order",
        f"{STREAM_IMAGES} test images of shapes in {len(colours)} cells; white lines between batches of {STREAM_BATCH},"
        " ▼ where a dataloader begins",
        height=6.3,
    )
    panels = figure.subplots(len(STREAMS), 1)
    palette, names = ListedColormap(list(colours.values())), list(colours)
    for axes, stream in zip(panels, STREAMS, strict=True):
        data = CorruptionDataModule(
            source=None,
            test=ShapesDataset("test", STREAM_IMAGES),
            corruptions=STREAM_CORRUPTIONS,
            severities=(5,),
            batch_size=STREAM_BATCH,
            stream=stream,  # type: ignore[arg-type]
        )
        loaders = data.test_dataloader()
        loaders = loaders if isinstance(loaders, list) else [loaders]
        batches = [(number, batch) for number, loader in enumerate(loaders) for batch in loader]
        cells = [names.index(Cell.from_code(code).name) for _, batch in batches for code in batch.cells]
        classes = [label for _, batch in batches for label in batch.labels.tolist()]
        options = {"aspect": "auto", "interpolation": "nearest"}
        axes.imshow([cells], extent=(0, len(cells), 1, 2), cmap=palette, vmin=0, vmax=len(names) - 1, **options)
        shown = axes.imshow([classes], extent=(0, len(cells), 0, 0.9), cmap="viridis", vmin=-0.5, vmax=9.5, **options)
        start, present = 0, None
        for number, batch in batches:
            if number != present:
                axes.plot(start, 2.2, marker="v", color=TEXT, markersize=6, clip_on=False)
            axes.axvline(start, color="white", linewidth=1.6)
            start, present = start + len(batch.labels), number
        axes.set(xlim=(0, len(cells)), ylim=(0, 2), xticks=[])
        axes.set_yticks([1.5, 0.45], ["cell", "class"])
        axes.tick_params(length=0, labelsize=SMALL_SIZE, colors=TEXT)
        axes.spines[:].set_visible(False)
        axes.set_title(stream, size=TEXT_SIZE, color=TEXT, loc="left", pad=14)
    patches = [Patch(color=colour, label=cell) for cell, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=SMALL_SIZE)
    bar = figure.colorbar(shown, ax=panels, location="right", aspect=40, pad=0.01, ticks=range(10))
    bar.set_ticks(range(10), labels=SHAPE_CLASSES)
    bar.ax.tick_params(labelsize=SMALL_SIZE, colors=TEXT, length=0)
    bar.outline.set_visible(False)
    return figure
