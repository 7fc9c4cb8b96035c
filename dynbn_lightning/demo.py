"""`dynbn demo`: the whole job on the embedded images, from nothing to a table."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import seed_everything
from rich.console import Console

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.evaluation import evaluate
from dynbn_lightning.fitting import fit_classifier, fit_detector
from dynbn_lightning.models import load_model
from dynbn_lightning.reporting import results_table, write_results


def demo(
    output: Path, *, accelerator: str = "auto", seed: int = 0, short: bool = False, console: Console | None = None
) -> Path:
    """Train a small ResNet and a detector on `shapes`, collect a bank, evaluate source, BN-1 and dynamic BN.

    Args:
        output: folder for weights, detector, bank and `results.json`.
        accelerator: of the Trainer.
        seed: of everything that is drawn.
        short: few epochs and cells, to see that everything runs.
        console: where to print.

    Returns:
        The path of `results.json`.
    """
    console = console or Console()
    began = time.perf_counter()
    seed_everything(seed, verbose=False)
    data = CorruptionDataModule("shapes", severities=(1, 3, 5), batch_size=200, seed=seed)
    model = load_model("cifar_resnet8", pretrained=False, num_classes=10, normalization="none")

    console.rule("1 of 4: a small ResNet on clean images")
    fit_classifier(
        model, data, epochs=1 if short else 10, output=output / "classifier.safetensors", accelerator=accelerator
    )
    console.rule("2 of 4: the detector, on the Fourier spectra of corrupted images")
    detector = fit_detector(data, epochs=1 if short else 10, output=output / "detector.ckpt", accelerator=accelerator)
    console.rule("3 of 4: the bank, a row of BatchNorm statistics per corruption")
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=500 if short else 2000))
    bank.save(output / "bank.safetensors")
    console.rule("4 of 4: source, BN-1 and dynamic BN on the mixed stream")
    if short:
        data = CorruptionDataModule("shapes", severities=(5,), batch_size=200, seed=seed)
    results = evaluate(model, data, bank=bank, detector=detector, accelerator=accelerator)
    results["protocol"] = {"model": "cifar_resnet8", **results["protocol"]}
    path = write_results(results, output)
    console.print(results_table(results))
    console.print(f"{time.perf_counter() - began:.0f} s. Weights, detector, bank and results.json: {output.resolve()}")
    return path
