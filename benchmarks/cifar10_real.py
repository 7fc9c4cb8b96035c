"""The whole job on real images: ResNets on CIFAR-10, all that is fitted from training images, tested on test images.

    DYNBN_DATA=../shared/data python benchmarks/cifar10_real.py --output results/cifar10_real

For each seed: fits a detector, collects a bank (a row per cell), calibrates it, refines its rows, and evaluates every
method on the streams that it is for, and on the four extra corruptions, which neither detector nor bank has seen.
Prints top-1 accuracies, mean over the seeds, with paired bootstrap intervals over the images, and writes them to
DIR/NETWORK/results.json.

What is fitted and chosen looks at `cifar10/train` alone: detector, bank and refined rows at the nine tenths of it that
are not held out, calibration at the held-out tenth. Nothing is chosen by looking at `cifar10/test`.

What is in DIR already is not made again, so an interrupted run goes on, and more seeds or methods can be added.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cifar10_tables import summary, tables
from lightning.pytorch import seed_everything
from rich.console import Console

from dynbn_lightning import BNStatsBank, CorruptionDataModule, calibrate, load_model, refine
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from dynbn_lightning.evaluation import evaluate
from dynbn_lightning.fitting import fit_detector
from dynbn_lightning.reporting import is_complete, write_results

BATCH_SIZE = 200
SHORT_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "contrast")
EVALUATIONS: tuple[tuple[str, str], ...] = (
    ("mixed", "source"),
    ("mixed", "dynamic_bn/calibrated"),
    ("mixed", "dynamic_bn/refined"),
    ("extra", "source"),
    ("extra", "dynamic_bn/calibrated"),
    ("extra", "dynamic_bn/refined"),
    ("sequential", "dynamic_bn/stream"),
    ("mixed", "dynamic_bn/soft"),
    ("mixed", "oracle"),
    ("mixed", "oracle/calibrated"),
    ("mixed", "batch_stats"),
    ("sequential", "batch_stats"),
    ("sequential", "dynamic_bn/batch"),
    ("mixed", "dynamic_bn/hard"),
)
"""Which methods are evaluated on which streams; `extra` is a mixed stream of the four extra corruptions. By the
evidence of each image alone, the other streams would give the same."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of detector, bank and corruptions; one run each")
    parser.add_argument("--epochs", type=int, default=40, help="of the detector, over 4,577 training images")
    parser.add_argument("--criterion", default="consistency", choices=["consistency", "labels"], help="of calibration")
    parser.add_argument("--methods", help="only these, with commas between them; all if not given")
    parser.add_argument(
        "--jobs", type=int, default=1, help="seeds that run at a time, without progress bars if above 1"
    )
    parser.add_argument("--short", action="store_true", help="four corruptions, two severities, one seed, few epochs")
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is made, and results.json")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


class Run:
    """One seed of one network: everything is made once and kept in the output folder."""

    def __init__(self, seed: int, options: argparse.Namespace) -> None:
        self.seed, self.options = seed, options
        self.console, self.progress = Console(), options.jobs == 1
        self.epochs = min(options.epochs, 8) if options.short else options.epochs
        found = sorted((options.data / "weights").glob(f"{options.network}-*.th"))
        if len(found) != 1:
            sys.exit(f"{options.data}/weights: {len(found)} files {options.network}-*.th; RESULTS.md says what is read")
        self.checkpoint = found[0]
        self.model = load_model(f"cifar_{options.network}", self.checkpoint)
        self.folder = options.output / options.network / f"seed{seed}"
        self.detector = options.output / "detectors" / f"seed{seed}.ckpt"  # it knows no network
        self.bank = self.folder / "bank.safetensors"

    def images(self, batch_size: int, *, extra: bool = False) -> CorruptionDataModule:
        """The images in the cells that are fitted, or in the extra ones."""
        corruptions = SHORT_CORRUPTIONS if self.options.short else COMMON_CORRUPTIONS
        return CorruptionDataModule(
            self.options.data / "cifar10",
            normalization=self.model.input_normalization,
            corruptions=EXTRA_CORRUPTIONS if extra else corruptions,
            severities=(3, 5) if self.options.short else SEVERITIES,
            row_per="cell",
            batch_size=batch_size,
            seed=self.seed,
        )

    def make(self) -> None:
        """Detector and bank, as far as they are not there."""
        data, short = self.images(128), self.options.short
        if not self.detector.is_file():
            began = time.perf_counter()
            seed_everything(self.seed, verbose=False)
            fit_detector(data, self.epochs, output=self.detector, enable_progress_bar=self.progress)
            self.say("detector fitted", began)
        made = BNStatsBank.load(self.bank, self.model) if self.bank.is_file() else None
        if made is None:
            began = time.perf_counter()
            made = BNStatsBank.collect(self.model, data.row_loaders(), progress=self.progress)
            made.save(self.bank)
            self.say("bank collected", began)
        if made.calibration is None:
            began = time.perf_counter()
            options: dict[str, Any] = {"images": 2_560} if short else {}
            made = calibrate(
                self.model,
                made,
                self.detector,
                data,
                criterion=self.options.criterion,
                progress=self.progress,
                **options,
            )
            made.save(self.bank)
            self.say("bank calibrated", began)
        if not made.refined and "dynamic_bn/refined" in self.methods:
            began = time.perf_counter()
            options = {"images": 2_560} if short else {}
            refine(self.model, made, data, progress=self.progress, **options).save(self.bank)
            self.say("rows refined", began)

    @property
    def methods(self) -> list[str]:
        """Which methods are asked for."""
        chosen = self.options.methods
        known = list(dict.fromkeys(method for _, method in EVALUATIONS))
        return known if chosen is None else [method for method in known if method in chosen.split(",")]

    def evaluate(self) -> None:
        """Every method on its streams, as far as that is not done."""
        bank = BNStatsBank.load(self.bank, self.model)
        for stream, method in EVALUATIONS:
            path = self.folder / stream / method.replace("/", "-")
            if method not in self.methods or is_complete(path):
                continue
            began = time.perf_counter()
            evaluate(
                self.model,
                self.images(BATCH_SIZE, extra=stream == "extra"),
                methods=[method],
                streams=["sequential" if stream == "sequential" else "mixed"],
                bank=bank,
                detector=self.detector,
                output=path,
                about={
                    "model": self.options.network,
                    "checkpoint": self.checkpoint.name,
                    "detector_epochs": self.epochs,
                },
                progress=self.progress,
            )
            self.say(f"{method} on the {stream} stream", began)

    def say(self, what: str, began: float) -> None:
        """Print what was done, and how long it took."""
        self.console.print(f"{self.options.network}, seed {self.seed}: {what}, {time.perf_counter() - began:.0f} s")


def run(seed: int, options: argparse.Namespace) -> dict[str, Path]:
    """One seed; the folder of what was measured, by "stream method"."""
    if options.jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    one = Run(seed, options)
    one.make()
    one.evaluate()
    return found(one.folder)


def found(folder: Path) -> dict[str, Path]:
    """The folders of what was measured for a seed, by "stream method"."""
    paths = {f"{stream} {method}": folder / stream / method.replace("/", "-") for stream, method in EVALUATIONS}
    return {name: path for name, path in paths.items() if is_complete(path)}


def main() -> int:
    options = arguments()
    seeds = [0] if options.short else [int(seed) for seed in options.seeds.split(",")]
    one = partial(run, options=options)
    if options.jobs == 1:
        runs = [one(seed) for seed in seeds]
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(one, seeds))
    results = summary(dict(zip(seeds, runs, strict=True)))
    print(tables(results))
    print(f"results: {write_results(results, options.output / options.network)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
