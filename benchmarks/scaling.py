"""Testing on several processes against testing on one: images a second, and whether the numbers are the same.

    DYNBN_DATA=../shared/data python benchmarks/cifar10_real.py --seeds 0 --methods source,dynamic_bn/calibrated \
        --network resnet20 --output results/cifar10_real
    DYNBN_DATA=../shared/data python benchmarks/scaling.py --made results/cifar10_real --output results/scaling

The first command makes detector and bank. Each number of processes is started anew, with one thread for each process on
a CPU and one device on GPUs; all methods are tested once to warm up and then `--repeats` times, and the fastest counts.
A time goes from when all processes have begun the test to when all have ended it, corruption and report callback
included, start of the processes not. Batch sizes are of each process, so that the batches are the same on any number.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dynbn_lightning import BNStatsBank, ClassifierModule, CorruptionDataModule, load_model
from dynbn_lightning.batchnorm import fingerprint_of
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.fitting import bare_trainer, quiet_lightning
from dynbn_lightning.methods import METHODS, Tools
from dynbn_lightning.reporting.tables import markdown

COMPARED = "source,batch_stats,ema,unmix_tns,tent,dynamic_bn/calibrated,dynamic_bn/stream"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--made", type=Path, required=True, help="output folder of cifar10_real.py")
    parser.add_argument("--methods", default=COMPARED, help="with commas between them")
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with commas between them")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--corruptions", default="gaussian_noise,defocus_blur,fog,jpeg_compression")
    parser.add_argument("--severities", default="1,3,5")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="folder for DIR/scaling.json")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # on so many processes, of which this is one
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


class Clock(Callback):
    """How long a test takes, from when all processes have begun it to when all have ended it."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin when all do."""
        trainer.strategy.barrier()
        self.began = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End when all have."""
        trainer.strategy.barrier()
        self.seconds = time.perf_counter() - self.began


def measure(options: argparse.Namespace) -> None:
    """Test on `options.measure` processes, all of which come here, and write what the first one finds."""
    made = options.made / "resnet20" / "seed0"
    model = load_model("cifar_resnet20", options.data / "weights" / "resnet20-12fca82f.th")
    tools = Tools(BNStatsBank.load(made / "bank.safetensors", model), options.made / "detectors" / "seed0.ckpt")
    data = CorruptionDataModule(
        options.data / "cifar10",
        normalization="imagenet",
        corruptions=options.corruptions.split(","),
        severities=[int(severity) for severity in options.severities.split(",")],
        row_per="cell",
        batch_size=options.batch_size,
    )
    found: dict[str, Any] = {}
    for name in options.methods.split(","):
        times = []
        for _ in range(options.repeats + 1):
            clock, recording = Clock(), RecordingCallback()
            with quiet_lightning():
                trainer = bare_trainer(
                    callbacks=[*METHODS[name].callbacks(tools), recording, clock],
                    enable_progress_bar=False,
                    inference_mode=not METHODS[name].gradients,
                    accelerator=options.accelerator,
                    devices=options.measure,
                    strategy="ddp" if options.measure > 1 else "auto",
                )
                trainer.test(ClassifierModule(model), datamodule=data, verbose=False)
            times.append(clock.seconds)
        records = recording.records_of_all_ranks()
        found[name] = {
            "images": len(records),
            "seconds": min(times[1:]),
            "accuracy": records.correct.float().mean().item(),
            "records": fingerprint_of([len(records)], records.cells, records.indices, records.predictions, records.nll),
        }
    if trainer.is_global_zero:
        path = options.output / f"{options.measure}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))


def main() -> None:
    options = arguments()
    if options.measure is not None:
        measure(options)
        return
    counts = [int(count) for count in options.processes.split(",")]
    found = {}
    for count in counts:
        environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if options.accelerator == "cpu" else {})}
        subprocess.run(
            [sys.executable, *sys.argv, "--measure", str(count)], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        found[count] = json.loads((options.output / f"{count}.json").read_text())
    (options.output / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    headings = ["method", *(f"images/s, {count}" for count in counts), "ratio", "accuracy, %", "every image the same"]
    rows = []
    for name in options.methods.split(","):
        its = [found[count][name] for count in counts]
        speeds = [one["images"] / one["seconds"] for one in its]
        rows.append(
            [
                name,
                *(f"{speed:.0f}" for speed in speeds),
                f"{speeds[-1] / speeds[0]:.2f}x",
                " / ".join(f"{one['accuracy']:.2%}".rstrip("%") for one in its),
                "yes" if len({one["records"] for one in its}) == 1 else "no",
            ]
        )
    device = torch.cuda.get_device_name() if options.accelerator == "gpu" else f"{os.cpu_count()} CPU cores"
    print(f"{device}, torch {torch.__version__}, batches of {options.batch_size}, best of {options.repeats}\n")
    print(markdown(headings, rows))


if __name__ == "__main__":
    main()
