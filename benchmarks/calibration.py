"""What calibration is made of, and whether what it finds on memorised training images holds on others.

    DYNBN_DATA=../shared/data python benchmarks/calibration.py --made results/cifar10_real --output results/calibration

Takes detector and uncalibrated bank of a network and a seed from where `cifar10_real.py` made them (`--made`),
calibrates in several ways, and shows for each: the agreement with the clean prediction and the accuracy on held-out
training images that nothing was chosen by (`cifar10/train`, which the networks have memorised), and, to report the bias
of those and not to choose by, the accuracy on the test images (`cifar10/test`).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning import BNStatsBank, CorruptionDataModule, calibrate, evaluate, load_model
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.calibrating import check
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS
from dynbn_lightning.reporting import SCHEMA_VERSION, accuracies, methods_of, write_results

WAYS: dict[str, dict[str, Any] | None] = {
    "rows as measured": None,
    "20 % of the source row in all": None,
    "source shares": {"image_moments": False},
    "source and image shares": {},
    "the same, by labels": {"criterion": "labels"},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--made", type=Path, required=True, help="--output of cifar10_real.py")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=12_800, help="drawn images to calibrate on")
    parser.add_argument("--severities", default="1,3,5", help="of the test images")
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


def constant(bank: BNStatsBank, share: float) -> BNStatsBank:
    """The bank with the same share of the source row in all of its other rows."""
    shares = torch.full((len(bank), len(bank.layers)), share)
    shares[0] = 0
    return replace(bank, calibration=Calibration(source_share=shares))


def main() -> int:
    options = arguments()
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    model = load_model(f"cifar_{options.network}", checkpoint)
    measured = BNStatsBank.load(options.made / options.network / f"seed{options.seed}" / "bank.safetensors", model)
    measured = measured.unrefined().uncalibrated()
    detector = options.made / "detectors" / f"seed{options.seed}.ckpt"

    def images(severities: tuple[int, ...]) -> CorruptionDataModule:
        return CorruptionDataModule(
            options.data / "cifar10",
            normalization=model.input_normalization,
            corruptions=COMMON_CORRUPTIONS,
            severities=severities,
            row_per="cell",
            batch_size=200,
            seed=options.seed,
        )

    everything = images((1, 2, 3, 4, 5))
    shown = images(tuple(int(severity) for severity in options.severities.split(",")))
    found: dict[str, Any] = {}
    headings = ["", "agreement, check", "accuracy, check", "test", "test, severity 5", "test, clean"]
    print(f"| {' | '.join(headings)} |\n|---{'|---:' * 5}|")
    for name, settings in {"source": None, **WAYS}.items():
        if settings is not None:
            bank = calibrate(model, measured, detector, everything, images=options.images, **settings)
        else:
            bank = constant(measured, 0.2 if name.startswith("20 %") else 0.0)
        checked = check(model, bank, detector, everything, options.images // 8)
        method = "source" if name == "source" else "dynamic_bn/calibrated"
        result = evaluate(model, shown, methods=[method], bank=bank, detector=detector)
        tested = methods_of(result)[method]
        held_out = checked["source" if name == "source" else "calibrated"]
        hardest = [accuracy for cell, accuracy in accuracies(tested).items() if cell.endswith("/5")]
        found[name] = {"check": held_out, **tested}
        columns = (held_out["agreement"], held_out["accuracy"], tested["mean"]["accuracy"], sum(hardest) / len(hardest))
        print(
            f"| {name} | "
            + " | ".join(f"{100 * share:.1f}" for share in (*columns, tested["clean"]["accuracy"]))
            + " |"
        )
    protocol = {**result["protocol"], "model": options.network, "calibrated_on": options.images}
    runs = [{"stream": "mixed", "batch_size": 200, "methods": found}]
    path = write_results(
        {"schema_version": SCHEMA_VERSION, "protocol": protocol, "missing": [], "runs": runs}, options.output
    )
    print(f"results: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
