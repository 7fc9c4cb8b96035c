"""How far distribution matching should go, chosen on held-out training images: ResNets on CIFAR-10.

    DYNBN_DATA=../shared/data python benchmarks/matching_strength.py --made results/cifar10_real \
        --quantiles results/methods/resnet20/seed0/quantiles.safetensors

Held-out training images in random cells, which neither detector, rows nor quantiles were made from (calibration chose
its shares on them, without labels); the network has memorised them, so that accuracies are optimistic and only their
differences count. Test images are not looked at. Prints top-1 accuracies of corrupted and of clean images for each
image's own F_test and on top of a calibrated bank.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning import BNStatsBank, CorruptionDataModule, QuantileBank, load_model
from dynbn_lightning.batchnorm import (
    DistributionMatchingPolicy,
    Patch,
    RoutedMatchingPolicy,
    Routing,
    RoutingPolicy,
)
from dynbn_lightning.callbacks.frozen_detector import FrozenDetector
from dynbn_lightning.datamodules.batches import DrawnBatch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--made", type=Path, required=True, help="output folder of cifar10_real.py")
    parser.add_argument("--quantiles", type=Path, required=True, help="of methods.py, with all rows of the bank")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--seed", type=int, default=0, help="of detector, bank and draws")
    parser.add_argument("--images", type=int, default=1600, help="drawn images")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


@torch.no_grad()
def accuracies(model: Any, batches: list[DrawnBatch], patch: Patch, assign: Callable[[int], None] | None = None) -> str:
    """Top-1 of the corrupted and of the clean images, as cells of a table."""
    right = {False: [0, 0], True: [0, 0]}
    with patch:
        for number, batch in enumerate(batches):
            if assign is not None:
                assign(number)
            hits = model(batch.images).argmax(1) == batch.labels
            for clean in right:
                these = (batch.rows == 0) == clean
                right[clean][0] += int(hits[these].sum())
                right[clean][1] += int(these.sum())
    return " | ".join(f"{100 * hits / count:.1f}" for hits, count in right.values())


def main() -> int:
    options = arguments()
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    model = load_model(f"cifar_{options.network}", checkpoint)
    bank = BNStatsBank.load(options.made / options.network / f"seed{options.seed}" / "bank.safetensors", model)
    bank = bank.unrefined()
    detector = FrozenDetector(options.made / "detectors" / f"seed{options.seed}.ckpt", bank)
    quantiles = QuantileBank.load(options.quantiles)
    rows = QuantileBank(bank.rows, quantiles.layers, quantiles.of_rows(bank.rows))
    data = CorruptionDataModule(
        options.data / "cifar10", normalization=model.input_normalization, row_per="cell", seed=options.seed
    )
    batches = list(data.drawn_batches(options.images, "choose", batch_size=200))
    with torch.no_grad():
        weights = [detector(data.normalization.stored_pixels(batch.images)) for batch in batches]
    routing = Routing(bank, model)

    def assign(number: int) -> None:
        routing.set(weights[number])

    print("| F_test | strength | corrupted | clean |\n|---|---:|---:|---:|")
    for strength in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0):

        def matching(name: str, layer: Any, strength: float = strength) -> DistributionMatchingPolicy:
            return DistributionMatchingPolicy(rows.of_layer(name)[0], "image", strength)

        print(f"| each image's | {strength} | {accuracies(model, batches, Patch(model, matching))} |", flush=True)
    plain = Patch(model, lambda name, layer: RoutingPolicy(name, routing))
    print(f"| the detected row's | 0 | {accuracies(model, batches, plain, assign)} |", flush=True)
    for strength in (0.25, 0.5, 0.75, 1.0):

        def routed(name: str, layer: Any, strength: float = strength) -> RoutedMatchingPolicy:
            return RoutedMatchingPolicy(name, routing, rows.of_layer(name), strength)

        found = accuracies(model, batches, Patch(model, routed), assign)
        print(f"| the detected row's | {strength} | {found} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
