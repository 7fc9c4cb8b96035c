"""The pictures of the README and of the concept pages, drawn from what `dynbn demo` leaves.

    pip install -e ".[docs]"
    dynbn demo && python docs/pictures.py --demo dynbn-demo

Everything in them is computed: by the demo's classifier, detector and bank on its test images, and read from its
results. Which images, cells, layers and channels are shown is said by the constants and rules here, none of which
looks at a result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynbn_lightning import BNStatsBank, CorruptionDataModule, load_model, routed
from dynbn_lightning.callbacks import FrozenDetector
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import ShapesDataset
from dynbn_lightning.datamodules.batches import corrupt_pixels
from dynbn_lightning.datamodules.shapes import SHAPE_CLASSES
from dynbn_lightning.datamodules.streams import STREAMS
from dynbn_lightning.detection import StreamMemory, log_amplitude_spectrum, opponent_channels
from dynbn_lightning.errors import DataError, DynBNError
from dynbn_lightning.files import check_output_folder, whole_file
from dynbn_lightning.reporting import methods_of, read_results
from dynbn_lightning.reporting.figures.canvas import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    GRID,
    ORANGE,
    SKY,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    VERMILLION,
    new_figure,
    plain_axes,
)
from dynbn_lightning.reporting.figures.spectra import full_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 140
FILES = {"classifier": "classifier.safetensors", "detector": "detector.ckpt", "bank": "bank.safetensors"}
SOURCE, DYNAMIC = "source", "dynamic_bn/calibrated"
COLOURS = {SOURCE: BLACK, DYNAMIC: VERMILLION}

# What is shown, as far as the demo has it. The first of these test images stand in this order below each other.
SHOWN_CELLS = (
    "clean",
    "gaussian_noise/5",
    "defocus_blur/5",
    "fog/5",
    "contrast/5",
    "jpeg_compression/5",
)
LAYERS_OF_CELLS = ("fog/5", "gaussian_noise/5")
STREAM_OF_CELLS = ("gaussian_noise/3", "fog/3", "clean", "gaussian_noise/5", "frost/5")
HISTOGRAM_IMAGES, CELL_IMAGES = 200, 40


@dataclass(frozen=True)
class Demo:
    """What `dynbn demo` left in a folder."""

    model: nn.Module
    detector: FrozenDetector
    bank: BNStatsBank
    data: CorruptionDataModule
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Demo:
        """Open the folder; `DataError` if `dynbn demo` did not finish there."""
        paths = {name: folder / file for name, file in FILES.items()}
        missing = [path.name for path in (*paths.values(), folder / "results.json") if not path.is_file()]
        if missing:
            raise DataError(
                f"{folder} has no {', no '.join(missing)}: run `dynbn demo --output {folder}` to its end, or pass "
                "--demo the folder that it wrote"
            )
        bank = BNStatsBank.load(paths["bank"])
        settings = bank.provenance
        if settings.get("source") != "shapes" or bank.calibration is None:
            raise DataError(f"{paths['bank']} is not the calibrated bank that `dynbn demo` makes of shapes")
        normalization = tuple(tuple(values) for values in settings["normalization"].values())
        cells = [Cell.parse(row) for row in bank.rows[1:]]
        data = CorruptionDataModule(
            "shapes",
            normalization=normalization,
            corruptions=list(dict.fromkeys(cell.corruption for cell in cells)),
            severities=settings["severities"],
            row_per="cell",
            seed=settings["seed"],
        )
        model = load_model("cifar_resnet8", paths["classifier"], normalization=normalization)
        bank.check_model(model)
        return cls(model, FrozenDetector(paths["detector"], bank), bank, data, read_results(folder))

    def have(self, cells: Sequence[str]) -> list[str]:
        """Those of these cells that the demo has."""
        found = [cell for cell in cells if cell in self.bank.rows]
        if not found:
            raise DataError(f"the demo has none of the cells {', '.join(cells)}: its bank is of {self.bank.rows}")
        return found

    def pixels(self, numbers: Sequence[int], cells: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Test images in a cell each, (N, 3, H, W) in [0, 1], as testing shows them, and their classes (N,)."""
        images, labels = zip(*(self.data.test_images[number] for number in numbers), strict=True)
        codes = [Cell.parse(cell).code for cell in cells]
        options: dict[str, Any] = {"seed": self.data.seed, "split": "test", "preset": self.data.preset}
        return corrupt_pixels(torch.stack(images), codes, numbers, **options).float() / 255, torch.tensor(labels)

    def logits(self, pixels: Tensor, assignment: Tensor | str) -> Tensor:
        """What the model says of the images, each normalised with what it is assigned, in one forward pass."""
        with routed(self.model, self.bank) as routing:
            routing.set(assignment)
            logits: Tensor = self.model(self.data.normalization.apply(pixels))
        return logits

    def layer_outputs(self, pixels: Tensor, assignment: str) -> dict[str, Tensor]:
        """What each BatchNorm layer gives, (channels, values), for images that share a row."""
        outputs: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda layer, given, output: outputs.update({name: output.transpose(0, 1).flatten(1)})

        hooks = [self.model.get_submodule(name).register_forward_hook(keep(name)) for name in self.bank.layers]
        self.logits(pixels, assignment)
        for hook in hooks:
            hook.remove()
        return outputs


def bare(axes: Axes) -> None:
    """No ticks, and a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.6)


def spectra_of(pixels: Tensor) -> Tensor:
    """The log-amplitude spectra of brightness, (N, H + 1, W + 1), the zero frequency in the middle."""
    return torch.stack([full_spectrum(half) for half in log_amplitude_spectrum(opponent_channels(pixels)[:, :1])[:, 0]])


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


PICTURES: dict[str, Callable[[Demo], Figure]] = {
    "overview.png": overview,
    "concept_routing.png": routing,
    "concept_bank.png": bank,
    "concept_detection.png": detection,
    "concept_streams.png": streams,
}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says, or `given` in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("dynbn-demo"), help="the folder that `dynbn demo` wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES), help="which of them")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Draw the pictures."""
    options = arguments(given)
    try:
        demo = Demo.read(options.demo)
        check_output_folder(options.output)
    except DynBNError as error:
        print(error, file=sys.stderr)
        return 2
    for name in options.only:
        with torch.inference_mode():
            figure = PICTURES[name](demo)
        with whole_file(file := options.output / name) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png", pil_kwargs={"optimize": True})
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
