"""What `dynbn` understands: its commands and their options."""

from __future__ import annotations

from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from dynbn_lightning import __version__
from dynbn_lightning.cli import run
from dynbn_lightning.cli.options import (
    at_least_two,
    data_options,
    model_options,
    names,
    positive,
    process_options,
    released_options,
    run_options,
)

Command = Callable[[Namespace, Console], None]

TRAINER_COMMANDS: dict[str, str] = {
    "fit": "Trainer.fit of any LightningModule, by a YAML file (--config) that names model, data and callbacks.",
    "validate": "Trainer.validate, configured in the same way.",
    "test": "Trainer.test, configured in the same way.",
    "predict": "Trainer.predict, configured in the same way.",
}
"""The commands that `cli/lightning.py` runs, which needs Lightning to know their options."""


class _Help(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def build_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = ArgumentParser(
        prog="dynbn",
        description="Keep a BatchNorm network's accuracy on corrupted images: detect the corruption of each image, "
        "look its BatchNorm statistics up, and patch every layer before each step.",
        epilog="`dynbn COMMAND --help` explains a command. With no model of your own, begin with `dynbn demo`.",
    )
    parser.add_argument("--version", action="version", version=f"dynbn-lightning {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add(to: Any, name: str, command: Command, summary: str, *parents: ArgumentParser) -> ArgumentParser:
        added: ArgumentParser = to.add_parser(
            name, help=summary, description=summary, parents=parents, formatter_class=_Help
        )
        added.set_defaults(run=command)
        return added

    demo = add(
        commands,
        "demo",
        run.demo,
        "The whole job on embedded images: train a model and a detector, collect a bank, evaluate.",
        run_options("dynbn-demo"),
    )
    demo.add_argument("--short", action="store_true", help="few epochs and cells: shows the way, not the result")

    detector = commands.add_parser("detector", help="`dynbn detector fit`: make a detector of corruptions.")
    detector_commands = detector.add_subparsers(required=True, dest="action", metavar="fit")
    fit = add(
        detector_commands,
        "fit",
        run.detector_fit,
        "Fit a detector on corrupted training images; writes DIR/detector.ckpt.",
        run_options(),
        process_options(),
        data_options(),
    )
    fit.add_argument(
        "--network",
        default="perceptron",
        choices=["perceptron", "prototype"],
        help="perceptron, the better one, or prototype, which needs no training",
    )
    fit.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="passes over the training images; if not given 10 for a perceptron, 1 for prototypes",
    )

    bank = commands.add_parser("bank", help="`dynbn bank build`: measure a model's statistics under each corruption.")
    bank_commands = bank.add_subparsers(required=True, dest="action", metavar="build")
    build = add(
        bank_commands,
        "build",
        run.bank_build,
        "Measure a model's BatchNorm statistics under each corruption; writes DIR/bank.safetensors. Interrupted, the "
        "same command goes on after the last finished row.",
        run_options(),
        process_options(),
        model_options(),
        data_options(),
    )
    build.add_argument(
        "--images-per-row",
        type=positive,
        metavar="N",
        help="training images for each row; if not given 2000 for a row per corruption, 500 for one per cell",
    )
    build.add_argument(
        "--quantile-count",
        type=at_least_two,
        metavar="N",
        help="besides, measure N quantiles of the activations in each row, for distribution matching on top of the "
        "bank; writes DIR/quantiles.safetensors. 64 is usual",
    )
    build.set_defaults(interrupted="finished rows are kept, and the same command goes on after them")
    build.add_argument(
        "--skip", type=names, default=(), metavar="A,B", help="layers to leave as they are, for unsupported ones"
    )

    calibrate = add(
        commands,
        "calibrate",
        run.calibrate,
        "Choose how a bank's rows are blended with the source statistics, so that routing costs clean images as little "
        "as possible, by looking at held-out training images; writes DIR/bank.safetensors. Takes the data options that "
        "detector and bank were made with.",
        run_options(),
        model_options(),
        data_options(),
    )
    refine = add(
        commands,
        "refine",
        run.refine,
        "Tune scales and shifts of a calibrated bank's rows on corrupted training images, which is more than "
        "statistics; writes DIR/bank.safetensors. The model is not changed.",
        run_options(),
        model_options(),
        data_options(),
    )
    for command, images, criterion in ((calibrate, 12_800, "consistency"), (refine, 64_000, "labels")):
        command.set_defaults(interrupted="what was done is kept, and the same command goes on")
        command.add_argument("--bank", type=Path, required=True, metavar="FILE", help="bank.safetensors of this model")
        command.add_argument("--images", type=positive, default=images, metavar="N", help="drawn images to tune on")
        command.add_argument(
            "--criterion",
            default=criterion,
            choices=["consistency", "labels"],
            help="agreement with the model's own prediction for the clean image, or with the true class",
        )
    calibrate.add_argument(
        "--detector", type=Path, required=True, metavar="FILE", help="detector.ckpt with the bank's rows"
    )

    evaluate = add(
        commands,
        "evaluate",
        run.evaluate,
        "Test a model on corrupted test images by several methods; writes results.json, results.csv, results.md, "
        "results.tex and report.html to DIR. Interrupted, the same command goes on; methods added later stand beside "
        "those that are there.",
        run_options(),
        process_options(),
        model_options(),
        data_options(batch_sizes=True),
        released_options(),
    )
    evaluate.add_argument(
        "--methods",
        type=names,
        metavar="A,B",
        help="source; batch_stats, batch_stats/prior, few_shot, ema, distribution_matching, "
        "distribution_matching/image, unmix_tns, tent; with a bank and a detector dynamic_bn, the bank as it is, or "
        "dynamic_bn/hard, dynamic_bn/soft; with a calibrated bank dynamic_bn/calibrated, dynamic_bn/batch, "
        "dynamic_bn/stream, and dynamic_bn/refined if it is refined; with quantiles distribution_matching/dynamic_bn; "
        "oracle, oracle/calibrated. If not given: source, batch_stats, and the best that bank and detector allow",
    )
    evaluate.add_argument(
        "--stream",
        type=names,
        default="mixed",
        metavar="A,B",
        help="mixed (cells shuffled), sequential (a cell at a time), continual (the same, nothing begins anew), "
        "correlated (a cell at a time, labels in runs)",
    )
    evaluate.add_argument(
        "--quantiles",
        type=Path,
        metavar="FILE",
        help="quantiles.safetensors of `dynbn bank build --quantile-count`; for distribution_matching and "
        "distribution_matching/image measured on clean training images if not given",
    )
    evaluate.set_defaults(
        interrupted="what is finished is kept and the same command goes on; `dynbn report` shows what there is"
    )
    evaluate.add_argument("--bank", type=Path, metavar="FILE", help="bank.safetensors of this model")
    evaluate.add_argument("--detector", type=Path, metavar="FILE", help="detector.ckpt with the bank's rows")

    report = add(
        commands,
        "report",
        run.report,
        "Write results.csv, results.md, results.tex and report.html from the results of `dynbn evaluate` or of a "
        "CorruptionReportCallback; several folders become one comparison. An interrupted run will do: the report says "
        "what is missing.",
    )
    report.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder with a results.json")
    report.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to write to; that of the results if there is only one"
    )
    report.add_argument(
        "--baseline",
        metavar="NAME|DIR",
        help="denominators of the corruption errors: alexnet (ImageNet-C), benz-cifar10, benz-cifar100, or results "
        "whose source is the baseline; if not given the literature's for cifar10, cifar100 and imagenet",
    )

    figures = add(
        commands,
        "figures",
        run.figures,
        "Draw what was measured, as PNG files in DIR: with --results accuracy against severity; with --source the mean "
        "spectrum of each corruption; with --detector too, its confusion matrix and the reliability of its confidence.",
        run_options(),
        data_options(),
    )
    figures.add_argument("--results", type=Path, metavar="FILE", help="results.json, or the folder it lies in")
    figures.add_argument(
        "--stream", metavar="NAME", help="which stream of the results; mixed, or else the first, if not given"
    )
    figures.add_argument("--detector", type=Path, metavar="FILE", help="detector.ckpt with the rows of the data")
    figures.add_argument(
        "--bank", type=Path, metavar="FILE", help="calibrated bank, whose temperature the detector's confidence takes"
    )
    figures.add_argument("--images", type=positive, default=200, metavar="N", help="test images in each cell")

    corrupt = add(
        commands,
        "corrupt",
        run.corrupt,
        "Write corrupted test images to DIR in the layout of CIFAR-10-C or ImageNet-C, for any tool that reads these. "
        "The source may also be a folder of class folders. Interrupted, the same command goes on.",
        run_options(),
        data_options(corruptions="all 19", rows=False),
    )
    corrupt.add_argument(
        "--layout",
        default="auto",
        choices=["auto", "cifar", "imagenet"],
        help="cifar (CORRUPTION.npy and labels.npy), imagenet (CORRUPTION/SEVERITY/CLASS/NAME.JPEG), or auto: the one "
        "that was released with the preset",
    )
    corrupt.add_argument(
        "--image-format",
        choices=["jpeg", "png"],
        help="in the imagenet layout: jpeg, compressed once more after the corruption, at quality 85, as ImageNet-C is "
        "(if not given), or png, lossless: the pixels that `dynbn evaluate` corrupts on the fly",
    )
    corrupt.set_defaults(interrupted="whole files are kept, and the same command goes on")

    for name, summary in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)  # `main` has them run before this parser sees them
    return parser
