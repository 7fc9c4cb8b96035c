"""The `dynbn` command."""

from __future__ import annotations

import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dynbn_lightning.errors import DynBNError
from dynbn_lightning.files import check_output_folder

if TYPE_CHECKING:
    from dynbn_lightning.datamodules import CorruptionDataModule

Command = Callable[[Namespace, Console], None]

# What does the work is imported when a command runs: Lightning takes seconds, and --help should answer at once.


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ArgumentTypeError("expected one or more names, with commas between them")
    return names


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in _names(text)]
    except ValueError as error:
        raise ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from error


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def _run_options(output: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    parser.add_argument(
        "--output", type=Path, required=output is None, default=output, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--accelerator", default="auto", choices=["auto", "cpu", "gpu", "cuda", "mps"], help="where to run"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of all that is drawn: corruptions, splits, orders, weights"
    )
    return parser


def _data_options(*, corruptions: str = "the benchmark's 15", rows: bool = True) -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--source",
        default="shapes",
        help="shapes (embedded), cifar10, cifar100, or a folder with train/ and test/ (or val/), a folder per class "
        "in each",
    )
    group.add_argument("--root", type=Path, default="data", metavar="DIR", help="where cifar10 and cifar100 lie or go")
    group.add_argument("--image-size", type=_positive, metavar="PX", help="resize and crop images to this size")
    group.add_argument(
        "--preset", default="auto", choices=["auto", "imagenet", "tiny_imagenet", "cifar"], help="severity constants"
    )
    group.add_argument(
        "--frost-textures",
        type=Path,
        metavar="DIR",
        help="photographs of ice for frost, such as the published ones; generated ones if not given",
    )
    group.add_argument(
        "--corruptions", type=_names, metavar="A,B", help=f"names, such as fog,snow; {corruptions} if not given"
    )
    group.add_argument("--severities", type=_numbers, default="1,2,3,4,5", metavar="1,2", help="from 1 to 5")
    if rows:
        group.add_argument(
            "--row-per", default="corruption", choices=["corruption", "cell"], help="what detector and bank tell apart"
        )
    group.add_argument("--batch-size", type=_positive, default=128, metavar="N", help="images per batch")
    group.add_argument("--num-workers", type=int, default=0, metavar="N", help="loader processes")
    return parser


def _model_options() -> ArgumentParser:
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=True, help="cifar_resnet20, timm:NAME, torchvision:NAME or hub:OWNER/REPO:NAME"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="local weights; the published ones if not given")
    group.add_argument("--num-classes", type=_positive, metavar="N", help="where the checkpoint has others than usual")
    group.add_argument(
        "--normalization",
        metavar="NAME",
        help="what the model was trained with: imagenet, cifar10, cifar100, half or none; the model's own if not given",
    )
    return parser


class _Help(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="dynbn",
        description="Keep a BatchNorm network's accuracy on corrupted images: detect the corruption of each image, "
        "look its BatchNorm statistics up, and patch every layer before each step.",
        epilog="`dynbn COMMAND --help` explains a command. With no model of your own, begin with `dynbn demo`.",
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    def add(to: Any, name: str, run: Command, summary: str, *parents: ArgumentParser) -> ArgumentParser:
        added: ArgumentParser = to.add_parser(
            name, help=summary, description=summary, parents=parents, formatter_class=_Help
        )
        added.set_defaults(run=run)
        return added

    demo = add(
        commands,
        "demo",
        _demo,
        "The whole job on embedded images: train a model and a detector, collect a bank, evaluate.",
        _run_options("dynbn-demo"),
    )
    demo.add_argument("--short", action="store_true", help="few epochs and cells: shows the way, not the result")

    detector = commands.add_parser("detector", help="`dynbn detector fit`: make a detector of corruptions.")
    detector_commands = detector.add_subparsers(required=True, dest="action", metavar="fit")
    fit = add(
        detector_commands,
        "fit",
        _detector_fit,
        "Fit a detector on corrupted training images; writes DIR/detector.ckpt.",
        _run_options(),
        _data_options(),
    )
    fit.add_argument("--epochs", type=_positive, default=10, metavar="N", help="passes over the training images")

    bank = commands.add_parser("bank", help="`dynbn bank build`: measure a model's statistics under each corruption.")
    bank_commands = bank.add_subparsers(required=True, dest="action", metavar="build")
    build = add(
        bank_commands,
        "build",
        _bank_build,
        "Measure a model's BatchNorm statistics under each corruption; writes DIR/bank.safetensors. Interrupted, the "
        "same command goes on after the last finished row.",
        _run_options(),
        _model_options(),
        _data_options(),
    )
    build.add_argument(
        "--images-per-row", type=_positive, default=2000, metavar="N", help="training images for each row"
    )
    build.set_defaults(interrupted="finished rows are kept, and the same command goes on after them")
    build.add_argument(
        "--skip", type=_names, default=(), metavar="A,B", help="layers to leave as they are, for unsupported ones"
    )

    evaluate = add(
        commands,
        "evaluate",
        _evaluate,
        "Test a model on corrupted test images by several methods; writes DIR/results.json.",
        _run_options(),
        _model_options(),
        _data_options(),
    )
    evaluate.add_argument(
        "--methods",
        type=_names,
        default="source,batch_stats,dynamic_bn/soft",
        metavar="A,B",
        help="source, batch_stats, dynamic_bn/hard, dynamic_bn/soft, oracle",
    )
    evaluate.add_argument(
        "--stream", type=_names, default="mixed", metavar="A,B", help="mixed (cells shuffled), sequential, or both"
    )
    evaluate.add_argument("--bank", type=Path, metavar="FILE", help="bank.safetensors of this model")
    evaluate.add_argument("--detector", type=Path, metavar="FILE", help="detector.ckpt with the bank's rows")

    corrupt = add(
        commands,
        "corrupt",
        _corrupt,
        "Write corrupted test images to DIR in the layout of CIFAR-10-C or ImageNet-C, for any tool that reads these. "
        "The source may also be a folder of class folders. Interrupted, the same command goes on.",
        _run_options(),
        _data_options(corruptions="all 19", rows=False),
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
    return parser


def _datamodule(options: Namespace, normalization: Any = None) -> CorruptionDataModule:
    from dynbn_lightning.corruptions import COMMON_CORRUPTIONS
    from dynbn_lightning.datamodules import CorruptionDataModule

    return CorruptionDataModule(
        options.source,
        root=options.root,
        normalization=normalization,
        image_size=options.image_size,
        preset=options.preset,
        frost_textures=options.frost_textures,
        corruptions=COMMON_CORRUPTIONS if options.corruptions is None else options.corruptions,
        severities=options.severities,
        row_per=options.row_per,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        seed=options.seed,
    )


def _load(options: Namespace) -> Any:
    from dynbn_lightning.models import load_model

    return load_model(
        options.model, options.checkpoint, num_classes=options.num_classes, normalization=options.normalization
    )


def _detector_fit(options: Namespace, console: Console) -> None:
    from lightning.pytorch import seed_everything

    from dynbn_lightning.fitting import fit_detector

    seed_everything(options.seed, verbose=False)
    data = _datamodule(options)
    data.prepare_data()
    path = options.output / "detector.ckpt"
    detector = fit_detector(data, options.epochs, output=path, accelerator=options.accelerator)
    accuracy = detector.trainer.callback_metrics["val/acc"]
    console.print(f"{path}: {len(detector.rows)} rows, accuracy {accuracy:.1%} on held-out training images")


def _bank_build(options: Namespace, console: Console) -> None:
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.fitting import device_of

    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    data.prepare_data()
    device = device_of(options.accelerator)
    loaders = data.row_loaders(images_per_row=options.images_per_row, device=device)
    path = options.output / "bank.safetensors"
    bank = BNStatsBank.collect(model.to(device), loaders, skip=options.skip, path=path)
    console.print(f"{path}: {len(bank)} rows of {len(bank.layers)} layers, {bank.mean.shape[1]} channels")


def _evaluate(options: Namespace, console: Console) -> None:
    from dynbn_lightning.batchnorm import BNStatsBank
    from dynbn_lightning.evaluation import check_methods, check_streams, evaluate
    from dynbn_lightning.reporting import results_table, write_results

    check_methods(options.methods, has_bank=options.bank is not None, has_detector=options.detector is not None)
    check_streams(options.stream)
    model = _load(options)
    data = _datamodule(options, model.input_normalization)
    data.prepare_data()
    results = evaluate(
        model,
        data,
        methods=options.methods,
        streams=options.stream,
        bank=None if options.bank is None else BNStatsBank.load(options.bank, model),
        detector=options.detector,
        accelerator=options.accelerator,
    )
    results["protocol"] = {
        "model": options.model,
        "checkpoint": None if options.checkpoint is None else options.checkpoint.name,
        **{key: value for key, value in results["protocol"].items() if key != "model"},
    }
    path = write_results(results, options.output)
    console.print(results_table(results))
    console.print(f"results: {path}")


def _corrupt(options: Namespace, console: Console) -> None:
    from dynbn_lightning.corrupted_set import write_corrupted_set
    from dynbn_lightning.corruptions import CORRUPTIONS
    from dynbn_lightning.fitting import device_of

    made = write_corrupted_set(
        options.source,
        options.output,
        root=options.root,
        corruptions=CORRUPTIONS if options.corruptions is None else options.corruptions,
        severities=options.severities,
        preset=options.preset,
        layout=options.layout,
        image_format=options.image_format,
        frost_textures=options.frost_textures,
        image_size=options.image_size,
        seed=options.seed,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=device_of(options.accelerator),
    )
    done = f"{made.written} images written" if made.written else "it was whole already, nothing to do"
    console.print(f"{made.folder}: {made.images} images in {len(made.cells)} cells, {made.layout} layout; {done}")


def _demo(options: Namespace, console: Console) -> None:
    from dynbn_lightning.demo import demo

    demo(options.output, accelerator=options.accelerator, seed=options.seed, short=options.short, console=console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dynbn` with command-line arguments; returns its status: 2 for input of no use, 130 when interrupted."""
    options = _build_parser().parse_args(arguments)
    errors = Console(stderr=True, style="red", markup=False, soft_wrap=True)
    try:
        check_output_folder(options.output)
        options.run(options, Console())
    except DynBNError as error:
        errors.print(f"dynbn {options.command}: {error}")
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "interrupted", f"what was not finished is not in {options.output}")
        errors.print(f"dynbn {options.command}: interrupted; {kept}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
