"""Our corruptions beside the published generator's: statistics of what they do, and the accuracies they leave.

    DYNBN_DATA=../shared/data python benchmarks/corruption_fidelity.py --jobs 2 --output results/corruption_fidelity

Corrupts the 500 CIFAR-10 test images in every cell, the random corruptions several times, and compares with
`cifar_c_statistics.json` beside the data, which comes from one draw of the published generator. Prints tables and
writes them, with every number, to DIR/fidelity.md and DIR/fidelity.json. What may differ by how much is said in
`allowed_differences` and `accuracies_fit`; the tests of the corruptions hold it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, CORRUPTIONS, SEVERITIES, corrupt
from dynbn_lightning.corruptions.batch import RANDOM
from dynbn_lightning.files import whole_file
from dynbn_lightning.models import Normalization, load_model

Array = npt.NDArray[np.float64]
Published = Mapping[str, Mapping[str, Any]]

NETWORKS = ("20", "32", "56")
SEEDS = 5
SHORT_CORRUPTIONS = ("gaussian_noise", "frost", "contrast")

SIDE = 32
ROWS, COLUMNS = np.mgrid[-SIDE // 2 : SIDE // 2, -SIDE // 2 : SIDE // 2]
RADIUS = np.hypot(ROWS, COLUMNS).astype(int)
RADII = range(SIDE // 2)
PIXELS_AT_RADIUS = np.array([(radius == RADIUS).sum() for radius in RADII])

# The reference is one draw and may stray from the generator's mean by as much as one of ours does from ours.
STRAYING = 3 * math.sqrt(2)
LEVELS_OFF = 0.5
SHARE_OFF = {"mean": 0.03, "std": 0.03, "radial_power": 0.15}
WEIGHTY = 0.01
POINTS_OFF_IN_ANY_CELL, POINTS_OFF_IN_MOST_CELLS, POINTS_OFF_ON_AVERAGE = 5.0, 3.0, 0.7
MOST = 0.95

# Of float32 images of 32 x 32 pixels, as many as let a network's first stage stay near the cache of a CPU.
BATCH_SIZE = 100


@dataclass(frozen=True)
class ResidualStatistics:
    """What one draw of a corruption does to all images, in levels: corrupted minus clean.

    Attributes:
        mean: Of each channel.
        std: Of each channel.
        radial_power: Of the mean over channels, averaged over images and over the frequencies of each whole radius.
    """

    mean: Array
    std: Array
    radial_power: Array


def residual_statistics(corrupted: Tensor, clean: Tensor) -> ResidualStatistics:
    """The statistics of uint8 images (N, 3, 32, 32)."""
    residual = (corrupted.int() - clean.int()).numpy().astype(np.float64)
    spectrum = np.fft.fftshift(np.fft.fft2(residual.mean(axis=1)), axes=(1, 2))
    power = (np.abs(spectrum) ** 2).mean(axis=0) / SIDE**2
    return ResidualStatistics(
        mean=residual.mean(axis=(0, 2, 3)),
        std=residual.std(axis=(0, 2, 3)),
        radial_power=np.array([power[radius == RADIUS].mean() for radius in RADII]),
    )


def allowed_differences(statistic: str, expected: Array, seed_std: Array) -> Array:
    """By how much the mean over seeds of a statistic may differ from the published draw of it; inf where that is nil.

    3 % or half a level for mean and standard deviation, 15 % for the power at each radius that holds more than 1 % of
    it; or what chance does to one draw, where that is more.
    """
    allowed = SHARE_OFF[statistic] * np.abs(expected)
    if statistic == "radial_power":
        held = expected * PIXELS_AT_RADIUS
        return np.where(held > WEIGHTY * held.sum(), np.maximum(allowed, STRAYING * seed_std), np.inf)
    return np.maximum(np.maximum(allowed, LEVELS_OFF), STRAYING * seed_std)


def shares_of_allowed(draws: Sequence[ResidualStatistics], published: Mapping[str, Any]) -> dict[str, Array]:
    """For each statistic, what part of the allowed difference there is by channel or radius; above 1 is a misfit."""
    shares = {}
    for statistic in SHARE_OFF:
        made = np.stack([getattr(one, statistic) for one in draws])
        seed_std = made.std(axis=0, ddof=1) if len(draws) > 1 else np.zeros(made.shape[1])
        expected = np.array(published[f"residual_{statistic}"], dtype=np.float64)
        shares[statistic] = np.abs(made.mean(axis=0) - expected) / allowed_differences(statistic, expected, seed_std)
    return shares


def misfits(draws: Sequence[ResidualStatistics], published: Mapping[str, Any]) -> list[str]:
    """Which statistics differ by more than is allowed, with what was made of them and what was published."""
    return [
        f"{statistic} {np.mean([getattr(one, statistic) for one in draws], axis=0).round(2).tolist()} "
        f"for {published[f'residual_{statistic}']}, {share.max():.2f} of what is allowed"
        for statistic, share in shares_of_allowed(draws, published).items()
        if share.max() > 1
    ]


def _accuracy_key(network: str) -> str:
    return f"resnet{network}_accuracy"


def accuracy_differences(made: Mapping[str, float], published: Published, network: str) -> dict[str, float]:
    """By how many points of top-1 accuracy each cell, by its name, differs from the published draw of it."""
    return {cell: 100 * (made[cell] - published[cell][_accuracy_key(network)]) for cell in made}


def accuracies_fit(differences: Mapping[str, float]) -> bool:
    """Whether cells differ by at most 5 points, 95 % of them by at most 3, and their mean by at most 0.7."""
    sizes = np.abs(list(differences.values()))
    return bool(
        sizes.max() <= POINTS_OFF_IN_ANY_CELL
        and (sizes <= POINTS_OFF_IN_MOST_CELLS).mean() >= MOST
        and abs(mean(differences.values())) <= POINTS_OFF_ON_AVERAGE
    )


def read_test_images(data: Path) -> tuple[Tensor, Tensor]:
    """The 500 CIFAR-10 test images in order of number, (500, 3, 32, 32) uint8, and their classes (500,)."""
    files = sorted((data / "cifar10" / "test").glob("*/*.png"), key=lambda file: int(file.stem))
    classes = sorted({file.parent.name for file in files})
    images = np.stack([np.array(Image.open(file)) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    return torch.from_numpy(images).movedim(-1, 1).contiguous(), labels


def read_published(data: Path) -> Published:
    """`cifar_c_statistics.json`: statistics and accuracies by cell."""
    published: Published = json.loads((data.parent / "reference" / "cifar_c_statistics.json").read_text())
    return published


def draw_seeds(corruption: str, severity: int, draw: int, count: int) -> range:
    """A seed for each image; no two draws of any cells share one."""
    cell = CORRUPTIONS.index(corruption) * len(SEVERITIES) + severity - 1
    first = (draw * len(CORRUPTIONS) * len(SEVERITIES) + cell) * 1_000_000
    return range(first, first + count)


def draw_corruption(images: Tensor, corruption: str, severity: int, seeds: int) -> list[Tensor]:
    """The images corrupted as many times as there are seeds, or once where nothing is random."""
    draws = range(seeds if corruption in RANDOM else 1)
    return [
        corrupt(images, corruption, severity, "cifar", seeds=draw_seeds(corruption, severity, draw, len(images)))
        for draw in draws
    ]


@lru_cache(maxsize=len(NETWORKS))
def load_network(data: Path, network: str) -> nn.Module:
    """A network of the data folder, laid out for speed."""
    (checkpoint,) = (data / "weights").glob(f"resnet{network}-*.th")
    return load_model(f"cifar_resnet{network}", checkpoint).to(memory_format=torch.channels_last)


@torch.inference_mode()
def top1_accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 images that a network from `load_network` gets right."""
    normalization = cast(Normalization, network.input_normalization)
    right = 0
    for batch, classes in zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True):
        pixels = normalization.apply(batch / 255).contiguous(memory_format=torch.channels_last)
        right += int((network(pixels).argmax(dim=1) == classes).sum())
    return right / len(images)


def measure_cell(
    data: Path, corruption: str, severity: int, seeds: int, networks: Sequence[str]
) -> tuple[list[ResidualStatistics], dict[str, list[float]], float]:
    """Statistics of each draw of a cell, accuracies of each network on each draw, and the seconds of corrupting."""
    torch.set_num_threads(1)
    images, labels = read_test_images(data)
    began = time.perf_counter()
    draws = draw_corruption(images, corruption, severity, seeds)
    seconds = time.perf_counter() - began
    accuracies = {
        network: [top1_accuracy(load_network(data, network), draw, labels) for draw in draws] for network in networks
    }
    return [residual_statistics(draw, images) for draw in draws], accuracies, seconds


def measure(
    data: Path, corruptions: Sequence[str], seeds: int, networks: Sequence[str], jobs: int, *, shown: bool = False
) -> dict[str, Any]:
    """Every cell of some corruptions, in as many processes as `jobs`, compared with what was published.

    Returns:
        `seeds`: how many; `cells`: by name, the shares of what is allowed by statistic and the statistics themselves;
        `accuracies`: by network, the mean over seeds of each cell of which one is published; `seconds`, of corrupting,
        by corruption.
    """
    published = read_published(data)
    results: dict[str, Any] = {"seeds": seeds, "cells": {}, "seconds": {}}
    results["accuracies"] = {network: {} for network in networks}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        measured = {}
        for corruption, severity in product(corruptions, SEVERITIES):
            known = published[f"{corruption}/{severity}"]
            compared = [network for network in networks if _accuracy_key(network) in known]
            measured[corruption, severity] = pool.submit(measure_cell, data, corruption, severity, seeds, compared)
        for (corruption, severity), future in measured.items():
            draws, accuracies, seconds = future.result()
            cell = f"{corruption}/{severity}"
            shares = shares_of_allowed(draws, published[cell])
            results["cells"][cell] = {
                "share_of_allowed": {statistic: float(share.max()) for statistic, share in shares.items()},
                "draws": [{key: value.tolist() for key, value in vars(draw).items()} for draw in draws],
            }
            for network, values in accuracies.items():
                results["accuracies"][network][cell] = mean(values)
            results["seconds"][corruption] = results["seconds"].get(corruption, 0.0) + seconds
            if shown:
                worst = max(results["cells"][cell]["share_of_allowed"].items(), key=lambda pair: pair[1])
                print(f"{cell}: at most {worst[1]:.2f} of the allowed difference ({worst[0]})", file=sys.stderr)
    return results


def network_table(results: Mapping[str, Any], published: Published) -> str:
    """Accuracy of each network over the common corruptions, ours and published."""
    lines = [
        "| network | ours, % | published, % | difference | cells within 3 points | farthest cell |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for network, accuracies in results["accuracies"].items():
        made = {cell: value for cell, value in accuracies.items() if cell.split("/")[0] in COMMON_CORRUPTIONS}
        differences = accuracy_differences(made, published, network)
        expected = mean(published[cell][_accuracy_key(network)] for cell in made)
        near = sum(abs(difference) <= POINTS_OFF_IN_MOST_CELLS for difference in differences.values())
        farthest = max(differences, key=lambda cell: abs(differences[cell]))
        lines.append(
            f"| ResNet-{network} | {100 * mean(made.values()):.2f} | {100 * expected:.2f} "
            f"| {mean(differences.values()):+.2f} | {near} of {len(made)} | {farthest} {differences[farthest]:+.1f} |"
        )
    return "\n".join(lines)


def corruption_table(results: Mapping[str, Any], published: Published) -> str:
    """By corruption: the worst severity's shares of the allowed differences, and the differences of accuracy."""
    networks = list(results["accuracies"])
    headings = ["mean", "std", "power", *(f"ResNet-{network}, mean (farthest)" for network in networks)]
    lines = [" | ".join(["| corruption", *headings]) + " |", "|---" + "|---:" * len(headings) + "|"]
    for corruption in dict.fromkeys(cell.split("/")[0] for cell in results["cells"]):
        cells = [f"{corruption}/{severity}" for severity in SEVERITIES]
        shares = [results["cells"][cell]["share_of_allowed"] for cell in cells]
        row = [f"{max(share[statistic] for share in shares):.2f}" for statistic in SHARE_OFF]
        for network in networks:
            accuracies = results["accuracies"][network]
            made = {cell: accuracies[cell] for cell in cells if cell in accuracies}
            differences = list(accuracy_differences(made, published, network).values())
            row.append(f"{mean(differences):+.1f} ({max(differences, key=abs):+.1f})" if differences else "")
        lines.append(" | ".join([f"| {corruption}", *row]) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many draws of each random corruption")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="their depths, or nothing for statistics alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--short", action="store_true", help="three corruptions, two seeds, ResNet-20")
    parser.add_argument("--output", type=Path, help="folder for fidelity.md and fidelity.json")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


def main() -> int:
    options = arguments()
    data = Path(options.data)
    corruptions, seeds = (SHORT_CORRUPTIONS, 2) if options.short else (CORRUPTIONS, options.seeds)
    networks = ["20"] if options.short else [network for network in options.networks.split(",") if network]
    began = time.perf_counter()
    results = measure(data, corruptions, seeds, networks, options.jobs, shown=True)
    if options.output is not None:
        with whole_file(options.output / "fidelity.json") as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    published = read_published(data)
    text = network_table(results, published) + "\n\n" if networks else ""
    text += corruption_table(results, published) + "\n"
    print(text)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if options.output is not None:
        with whole_file(options.output / "fidelity.md") as temporary:
            temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
