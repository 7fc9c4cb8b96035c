"""The whole job on real images: ResNet-20 on CIFAR-10, detector and bank from training images, tested on test images.

    DYNBN_DATA=../shared/data python benchmarks/cifar10_real.py --output results/cifar10_real

Prints the top-1 accuracy of each method on {sequential, mixed} x {highest severity, all severities} and on clean
images, mean over the seeds of detector, bank and corruptions, and writes the same to DIR/results.json. Nothing is
chosen by looking at test images.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import seed_everything
from rich.console import Console

from dynbn_lightning import BNStatsBank, CorruptionDataModule, load_model
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, SEVERITIES
from dynbn_lightning.evaluation import METHODS, evaluate
from dynbn_lightning.fitting import fit_detector
from dynbn_lightning.reporting import write_results

BATCH_SIZE = 200
SHORT_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "contrast")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--seeds", default="0,1,2", help="one run each; results are their mean")
    parser.add_argument("--epochs", type=int, default=60, help="of the detector, over 4,577 training images")
    parser.add_argument("--row-per", default="corruption", choices=["corruption", "cell"])
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds that run at a time, without progress bars if above 1"
    )
    parser.add_argument("--short", action="store_true", help="four corruptions, two severities, one seed, few epochs")
    parser.add_argument("--output", type=Path, help="folder for results.json and each seed's detector and bank")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


def run(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One seed: fit the detector, collect the bank, evaluate every method on every stream."""
    console, progress = Console(), options.jobs == 1
    if not progress:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    seed_everything(seed, verbose=False)
    corruptions, severities = (SHORT_CORRUPTIONS, (3, 5)) if options.short else (COMMON_CORRUPTIONS, SEVERITIES)
    epochs = min(options.epochs, 8) if options.short else options.epochs
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    model = load_model(f"cifar_{options.network}", checkpoint)
    folder = None if options.output is None else options.output / f"seed{seed}"

    def images(chosen: tuple[int, ...], batch_size: int) -> CorruptionDataModule:
        return CorruptionDataModule(
            options.data / "cifar10",
            normalization=model.input_normalization,
            corruptions=corruptions,
            severities=chosen,
            row_per=options.row_per,
            batch_size=batch_size,
            seed=seed,
        )

    began = time.perf_counter()
    data = images(severities, 128)
    detector = fit_detector(data, epochs, output=folder and folder / "detector.ckpt", enable_progress_bar=progress)
    accuracy = detector.trainer.callback_metrics["val/acc"]
    console.print(
        f"seed {seed}, detector: {time.perf_counter() - began:.0f} s, {accuracy:.1%} right on held-out training images"
    )
    began = time.perf_counter()
    bank = BNStatsBank.collect(model, data.row_loaders(), progress=progress)
    console.print(f"seed {seed}, bank: {time.perf_counter() - began:.0f} s")
    if folder is not None:
        bank.save(folder / "bank.safetensors")
    streams: dict[str, Any] = {}
    for suffix, chosen in (("", severities), (f"/severity_{severities[-1]}", severities[-1:])):
        results = evaluate(
            model,
            images(chosen, BATCH_SIZE),
            methods=list(METHODS),
            streams=("sequential", "mixed"),
            bank=bank,
            detector=detector,
            progress=progress,
        )
        console.print(f"seed {seed}, severities {', '.join(map(str, chosen))}: evaluated")
        streams |= {name + suffix: block for name, block in results["streams"].items()}
        if not suffix:
            outline = results
    outline["protocol"] |= {"model": options.network, "checkpoint": checkpoint.name, "detector_epochs": epochs}
    results = {**outline, "streams": streams}
    if folder is not None:
        write_results(results, folder)
    return results


def mean_results(runs: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """The mean over seeds of every accuracy; `mean_std` is the standard deviation of `mean` over seeds."""
    results = copy.deepcopy(runs[0])
    results["protocol"]["seeds"] = seeds
    for stream, block in results["streams"].items():
        for method, numbers in block["methods"].items():
            each = [run["streams"][stream]["methods"][method] for run in runs]
            for key in ("clean", "mean", "detection", "seconds"):
                if key in numbers:
                    numbers[key] = mean(one[key] for one in each)
            numbers["cells"] = {cell: mean(one["cells"][cell] for one in each) for cell in numbers["cells"]}
            numbers["mean_std"] = stdev(one["mean"] for one in each) if len(each) > 1 else 0.0
    return results


def markdown(results: dict[str, Any]) -> str:
    """The table of the README."""
    streams = results["streams"]
    names = {"source": "source", "batch_stats": "BN-1", "dynamic_bn/hard": "dynamic BN, hard"}
    names |= {"dynamic_bn/soft": "dynamic BN, soft", "oracle": "oracle"}
    hardest = next(name.partition("/severity_")[2] for name in streams if "/" in name)
    order = [f"sequential/severity_{hardest}", f"mixed/severity_{hardest}", "sequential", "mixed"]
    headings = [f"{name.partition('/')[0]}, {'severity ' + hardest if '/' in name else 'all'}" for name in order]
    lines = [" | ".join(["| top-1, %", *headings, "clean |"]), "|---" + "|---:" * (len(order) + 1) + "|"]
    for method, name in names.items():
        blocks = [streams[stream]["methods"][method] for stream in order]
        cells = [f"{100 * block['mean']:.1f} ± {100 * block['mean_std']:.1f}" for block in blocks]
        lines.append(" | ".join([f"| {name}", *cells, f"{100 * blocks[-1]['clean']:.1f} |"]))
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    seeds = [0] if options.short else [int(seed) for seed in options.seeds.split(",")]
    one = partial(run, options=options)
    if options.jobs == 1:
        runs = [one(seed) for seed in seeds]
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(one, seeds))
    results = mean_results(runs, seeds)
    print(markdown(results))
    if options.output is not None:
        print(f"results: {write_results(results, options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
