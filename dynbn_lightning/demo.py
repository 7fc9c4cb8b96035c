"""`dynbn demo`: the whole job on the embedded images, from nothing to a table."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch import seed_everything
from rich.console import Console

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.calibrating import calibrate
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.evaluation import evaluate
from dynbn_lightning.fitting import device_of, fit_classifier, fit_detector
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import ResultsFolder, results_table, write_report


def demo(
    output: Path, *, accelerator: str = "auto", seed: int = 0, short: bool = False, console: Console | None = None
) -> Path:
    """Train a small ResNet and a detector on `shapes`, collect and calibrate a bank, evaluate source, BN-1, dynamic BN.

    Args:
        output: folder for weights, detector, bank, results and report; replaces those of an earlier demo.
        accelerator: of the Trainer.
        seed: of everything that is drawn.
        short: few epochs and corruptions, to see that everything runs.
        console: where to print.

    Returns:
        The path of `report.html`, which lies beside `results.json`.
    """
    console = console or Console()
    began = time.perf_counter()
    seed_everything(seed, verbose=False)

    def shapes(batch_size: int) -> CorruptionDataModule:
        return CorruptionDataModule(
            "shapes",
            normalization="half",
            corruptions=COMMON_CORRUPTIONS[::4] if short else COMMON_CORRUPTIONS,
            severities=(5,) if short else (1, 3, 5),
            row_per="cell",
            batch_size=batch_size,
            seed=seed,
        )

    console.rule("1 of 5: a small ResNet on clean images")
    model = fit_classifier(
        cifar_resnet8(num_classes=10, width=8),
        shapes(batch_size=64),
        epochs=1 if short else 12,
        output=output / "classifier.safetensors",
        accelerator=accelerator,
    )
    data = shapes(batch_size=200)
    console.rule("2 of 5: the detector, on the Fourier spectra of corrupted images")
    detector = fit_detector(data, epochs=1 if short else 10, output=output / "detector.ckpt", accelerator=accelerator)
    console.rule("3 of 5: the bank, a row of BatchNorm statistics per corruption and severity")
    device = device_of(accelerator)
    bank = BNStatsBank.collect(model.to(device), data.row_loaders(device=device))
    console.rule("4 of 5: calibration, how far to trust each row, on held-out training images")
    bank = calibrate(model, bank, detector, data, images=640 if short else 6_400)
    bank.save(output / "bank.safetensors")
    console.rule("5 of 5: source, BN-1 and dynamic BN on the mixed stream")
    ResultsFolder(output).clear()  # of an earlier demo, whose model may be another
    about = {"model": "cifar_resnet8, width 8, trained by the demo"}
    results = evaluate(model, data, bank=bank, detector=detector, output=output, about=about, accelerator=accelerator)
    console.print(results_table(results))
    report = write_report([output], output)[-1]
    console.print(f"{time.perf_counter() - began:.0f} s. Weights, detector and bank: {output.resolve()}")
    console.print(f"The report: {report.resolve()}", soft_wrap=True)
    return report
