"""How to propagate while a bank's rows are measured, and from how many images: accuracy with each cell's row loaded.

    DYNBN_DATA=../shared/data python benchmarks/propagation.py --output results/propagation

A public CIFAR-10 network, a row for every cell measured on corrupted training images, then top-1 accuracy and
cross-entropy of each cell under its own row, on training images that no row was measured on (by which the default is
chosen) and on the test images (which say whether it holds). Prints a table and writes it, with every number, to
DIR/propagation.md and DIR/propagation.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.datasets import ImageFolder

from dynbn_lightning.batchnorm import BNStatsBank, Propagation, routed
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, Cell, corrupt
from dynbn_lightning.files import whole_file
from dynbn_lightning.models import Normalization, load_model

SEVERITIES = (2, 5)
IMAGE_COUNTS = (32, 100, 400, 2000)
BATCH_SIZES = (8, 100)
HELD_OUT = 508
EVALUATION_BATCH = 127


@dataclass(frozen=True)
class Way:
    """One way to measure a row; `batch_size` None stands for all images in one batch."""

    propagate: Propagation
    images: int
    batch_size: int | None

    @property
    def name(self) -> str:
        """As the table has it."""
        return self.propagate + ("" if self.batch_size is None else f", batches of {self.batch_size}")


def ways(image_counts: Iterable[int], sequential_up_to: int) -> Iterator[Way]:
    """All that are compared; `"batch"` with one batch of all images stands for `"sequential"` where that is slow."""
    for count in image_counts:
        yield Way("source", count, None)
        for batch_size in BATCH_SIZES:
            if batch_size < count:
                yield Way("batch", count, batch_size)
        yield Way("batch", count, None)
        if count <= sequential_up_to:
            yield Way("sequential", count, 100 if count > 100 else None)


def read_images(folder: Path, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """The images (N, 3, 32, 32) uint8 and labels of class folders, shuffled if there is a seed."""
    samples = ImageFolder(str(folder)).samples
    order = range(len(samples)) if seed is None else np.random.default_rng(seed).permutation(len(samples)).tolist()
    pixels = np.stack([np.asarray(Image.open(samples[index][0])) for index in order])
    labels = torch.tensor([samples[index][1] for index in order])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def corrupted(images: Tensor, cell: Cell, normalization: Normalization, seed: int) -> Tensor:
    """The images under a cell, as the network takes them."""
    generator = torch.Generator().manual_seed(1_000_000 * seed + cell.code)
    levels = corrupt(images, cell.corruption, cell.severity, "cifar", generator)
    return normalization.apply(levels.float() / 255)


@torch.inference_mode()
def measure(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy and cross-entropy, the network as it is now."""
    logits = torch.cat([network(batch) for batch in images.split(EVALUATION_BATCH)])
    right = (logits.argmax(1) == labels).double().mean()
    return {"accuracy": right.item(), "cross_entropy": cross_entropy(logits.double(), labels).item()}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For every way, the mean over cells of both measures on both sets, and the seconds that a row took."""
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    network = load_model(f"cifar_{options.network}", checkpoint)
    normalization = network.input_normalization
    train, train_labels = read_images(options.data / "cifar10" / "train", seed=0)
    test, test_labels = read_images(options.data / "cifar10" / "test")
    held_out, held_out_labels = train[-HELD_OUT:], train_labels[-HELD_OUT:]
    cells = [Cell(name, severity) for name in options.corruptions for severity in options.severities]
    compared = list(ways(options.images, options.sequential_up_to))
    found: dict[Way | None, list[dict[str, Any]]] = {way: [] for way in [None, *compared]}
    for cell in track(cells, "Cells"):
        images = corrupted(train[: max(options.images)], cell, normalization, seed=0)
        sets = {
            "held_out": (corrupted(held_out, cell, normalization, seed=1), held_out_labels),
            "test": (corrupted(test, cell, normalization, seed=2), test_labels),
        }
        found[None].append({name: measure(network, *data) for name, data in sets.items()} | {"seconds": 0.0})
        for way in compared:
            began = time.perf_counter()
            batches = images[: way.images].split(way.batch_size or way.images)
            rows = {cell.name: batches}
            bank = BNStatsBank.collect(network, rows, propagate=way.propagate, progress=False)
            seconds = time.perf_counter() - began
            with routed(network, bank) as routing:
                routing.set(cell.name)
                found[way].append({name: measure(network, *data) for name, data in sets.items()} | {"seconds": seconds})
    return [summary(way, by_cell, options) for way, by_cell in found.items()]


def summary(way: Way | None, by_cell: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The means over all cells, and over those of each severity."""
    per_severity = len(options.severities)
    block: dict[str, Any] = {
        "way": None if way is None else asdict(way),
        "name": "source row" if way is None else way.name,
    }
    for part in ("held_out", "test"):
        block[part] = {
            measure: mean(cell[part][measure] for cell in by_cell) for measure in ("accuracy", "cross_entropy")
        }
        for position, severity in enumerate(options.severities):
            chosen = by_cell[position::per_severity]
            block[part][f"accuracy_severity_{severity}"] = mean(cell[part]["accuracy"] for cell in chosen)
    return block | {"seconds_per_row": mean(cell["seconds"] for cell in by_cell)}


def markdown(results: list[dict[str, Any]]) -> str:
    lines = [
        "| images | rows measured by | held-out training images: top-1, % | cross-entropy | test images: top-1, % | "
        "cross-entropy | s per row |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        images = "" if one["way"] is None else one["way"]["images"]
        held_out, test = one["held_out"], one["test"]
        lines.append(
            f"| {images} | {one['name']} | {100 * held_out['accuracy']:.2f} | {held_out['cross_entropy']:.4f} | "
            f"{100 * test['accuracy']:.2f} | {test['cross_entropy']:.4f} | {one['seconds_per_row']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--images", type=numbers, default=IMAGE_COUNTS, help="per row, default 32,100,400,2000")
    parser.add_argument("--severities", type=numbers, default=SEVERITIES, help="default 2,5")
    parser.add_argument("--sequential-up-to", type=int, default=400, metavar="IMAGES", help="default 400")
    parser.add_argument("--short", action="store_true", help="two corruptions, 32 images")
    parser.add_argument("--output", type=Path, help="folder for propagation.md and propagation.json")
    options = parser.parse_args(given)
    options.corruptions = COMMON_CORRUPTIONS[:2] if options.short else COMMON_CORRUPTIONS
    if options.short:
        options.images = (32,)
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    began = time.perf_counter()
    results = compare(options)
    table = markdown(results)
    print(f"{options.network}, severities {options.severities}, {time.perf_counter() - began:.0f} s\n\n{table}")
    if options.output is not None:
        described: Mapping[str, Any] = {"network": options.network, "torch": torch.__version__, "results": results}
        for name, text in (("propagation.md", table), ("propagation.json", json.dumps(described, indent=1))):
            with whole_file(options.output / name) as temporary:
                temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
