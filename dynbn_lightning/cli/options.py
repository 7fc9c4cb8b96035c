"""The options that commands share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path


def names(text: str) -> list[str]:
    """Names with commas between them."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ArgumentTypeError("expected one or more names, with commas between them")
    return found


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(number) for number in names(text)]
    except ValueError as error:
        raise ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}") from error


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def at_least_two(text: str) -> int:
    """A whole number of at least 2."""
    number = positive(text)
    if number < 2:
        raise ArgumentTypeError(f"expected a whole number of at least 2, got {text!r}")
    return number


def sizes(text: str) -> list[int]:
    """Whole numbers of at least 1 with commas between them."""
    return [positive(number) for number in names(text)]


def process_options() -> ArgumentParser:
    """On how many devices to run, each with a process of its own."""
    parser = ArgumentParser(add_help=False)
    parser.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="on each machine; a process is started for each"
    )
    parser.add_argument(
        "--num-nodes", type=positive, default=1, metavar="N", help="machines; torchrun or srun starts it on each"
    )
    return parser


def run_options(output: str | None = None) -> ArgumentParser:
    """Where to write to, where to run, and the seed."""
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


def data_options(
    *, corruptions: str = "the benchmark's 15", rows: bool = True, batch_sizes: bool = False
) -> ArgumentParser:
    """Which images, corrupted how; with `batch_sizes` in batches of several sizes."""
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--source",
        help="shapes (embedded), cifar10, cifar100, or a folder with train/ and test/ (or val/), a folder per class "
        "in each; shapes if not given",
    )
    group.add_argument("--root", type=Path, default="data", metavar="DIR", help="where cifar10 and cifar100 lie or go")
    group.add_argument("--image-size", type=positive, metavar="PX", help="resize and crop images to this size")
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
        "--corruptions", type=names, metavar="A,B", help=f"names, such as fog,snow; {corruptions} if not given"
    )
    group.add_argument("--severities", type=numbers, metavar="1,2", help="from 1 to 5; all if not given")
    if rows:
        group.add_argument(
            "--row-per", default="corruption", choices=["corruption", "cell"], help="what detector and bank tell apart"
        )
    if batch_sizes:
        parser.set_defaults(batch_size=128)  # of the data itself, which each run sets to its own
        group.add_argument(
            "--batch-size",
            dest="batch_sizes",
            type=sizes,
            default="128",
            metavar="N,M",
            help="images per batch, one run for each",
        )
    else:
        group.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images per batch")
    group.add_argument("--num-workers", type=int, default=0, metavar="N", help="loader processes")
    return parser


RELEASED_SETS = (
    "cifar10-c",
    "cifar100-c",
    "cifar10-c-bar",
    "imagenet-c",
    "tiny-imagenet-c",
    "imagenet-3dcc",
    "imagenet-c-bar",
)


def released_options() -> ArgumentParser:
    """Which released set to test on, in place of images that are corrupted on the fly."""
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group(
        "released sets", "test on images as they were released; --source is then for training images alone"
    )
    group.add_argument("--released", choices=RELEASED_SETS, metavar="NAME", help=", ".join(RELEASED_SETS))
    group.add_argument("--download", action="store_true", help="fetch it into --root if it isn't there")
    group.add_argument("--subset", type=positive, metavar="N", help="so many images of each cell; all if not given")
    group.add_argument(
        "--clean", type=Path, metavar="DIR", help="folder of class folders with clean images; of CIFAR found in --root"
    )
    return parser


def model_options() -> ArgumentParser:
    """Which model."""
    parser = ArgumentParser(add_help=False)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", required=True, help="cifar_resnet20, timm:NAME, torchvision:NAME or hub:OWNER/REPO:NAME"
    )
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help="local weights; the published ones if not given")
    group.add_argument("--num-classes", type=positive, metavar="N", help="where the checkpoint has others than usual")
    group.add_argument(
        "--normalization",
        metavar="NAME",
        help="what the model was trained with: imagenet, cifar10, cifar100, half or none; the model's own if not given",
    )
    return parser
