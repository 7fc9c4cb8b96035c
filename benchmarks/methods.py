"""The methods compared: ResNets on real CIFAR-10 images, on every stream and with several batch sizes.

    DYNBN_DATA=../shared/data python benchmarks/cifar10_real.py --seeds 0 --methods source,dynamic_bn/calibrated \
        --network resnet20 --output results/cifar10_real
    DYNBN_DATA=../shared/data python benchmarks/methods.py --network resnet20 --made results/cifar10_real \
        --output results/methods

The first command makes detector and bank (a row per cell, calibrated) from `cifar10/train`; quantiles are measured on
the same images. Every method has its paper's settings, or those that were chosen on held-out training images; nothing
is chosen by looking at `cifar10/test`. Prints a table for one batch size (`--severities`, mixed and sequential stream)
and one for streams and batch sizes at severity 5, and writes DIR/NETWORK/seed0/results.json. What is in DIR already is
not run again.

Methods that look at each image alone run once for each batch size: every stream gives them the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning import BNStatsBank, CorruptionDataModule, QuantileBank, load_model
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS
from dynbn_lightning.evaluation import evaluate
from dynbn_lightning.methods import METHODS
from dynbn_lightning.reporting import SCHEMA_VERSION, is_complete, read_results, severity_means, write_results

COMPARED = (
    "source",
    "batch_stats",
    "batch_stats/prior",
    "few_shot",
    "ema",
    "distribution_matching",
    "unmix_tns",
    "tent",
    "dynamic_bn/calibrated",
    "distribution_matching/image",
    "distribution_matching/dynamic_bn",
)
STREAMS = ("mixed", "sequential", "continual", "correlated")
BATCH_SIZE = 200
Task = tuple[str, str, int, tuple[int, ...]]  # method, stream, batch size, severities


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--made", type=Path, required=True, help="output folder of cifar10_real.py")
    parser.add_argument("--network", default="resnet20", choices=["resnet20", "resnet32", "resnet56"])
    parser.add_argument("--seed", type=int, default=0, help="of detector, bank and corruptions")
    parser.add_argument("--methods", default=",".join(COMPARED), help="with commas between them")
    parser.add_argument("--severities", default="1,3,5", help="of the first table")
    parser.add_argument(
        "--places",
        default=",".join(
            [f"{stream}:{size}" for stream in STREAMS for size in (16, 200)] + ["mixed:1", "sequential:1"]
        ),
        help="STREAM:BATCH_SIZE of the second table's columns, with commas between them; empty for no second table",
    )
    parser.add_argument("--jobs", type=int, default=1, help="evaluations that run at a time, of one thread each")
    parser.add_argument("--corruptions", help="with commas between them; the benchmark's 15 if not given")
    parser.add_argument("--output", type=Path, required=True, help="folder for all results")
    options = parser.parse_args()
    if options.data is None:
        parser.error("set DYNBN_DATA to the folder of real images and weights, or pass --data")
    return options


def images(options: argparse.Namespace, model: Any, batch_size: int, severities: tuple[int, ...]) -> Any:
    return CorruptionDataModule(
        options.data / "cifar10",
        normalization=model.input_normalization,
        corruptions=COMMON_CORRUPTIONS if options.corruptions is None else options.corruptions.split(","),
        severities=severities,
        row_per="cell",
        batch_size=batch_size,
        seed=options.seed,
    )


def load(options: argparse.Namespace) -> tuple[Any, BNStatsBank]:
    (checkpoint,) = (options.data / "weights").glob(f"{options.network}-*.th")
    model = load_model(f"cifar_{options.network}", checkpoint)
    bank = BNStatsBank.load(options.made / options.network / f"seed{options.seed}" / "bank.safetensors", model)
    return model, bank.unrefined()


def folder(options: argparse.Namespace) -> Path:
    """Of one seed of one network."""
    path: Path = options.output / options.network / f"seed{options.seed}"
    return path


def quantiles_file(options: argparse.Namespace) -> Path:
    return folder(options) / "quantiles.safetensors"


def measure_quantiles(options: argparse.Namespace) -> None:
    """Quantiles of the rows that the methods need, where they are not there yet."""
    path = quantiles_file(options)
    needed = {METHODS[name].quantiles for name in options.methods.split(",")}
    if needed == {"none"} or (path.is_file() and ("rows" not in needed or len(QuantileBank.load(path).rows) > 1)):
        return
    model, bank = load(options)
    loaders = images(options, model, BATCH_SIZE, (1, 2, 3, 4, 5)).row_loaders()
    rows = bank.rows if "rows" in needed else bank.rows[:1]
    QuantileBank.collect(model, loaders, rows=rows, progress=options.jobs == 1).save(path)


def tasks(options: argparse.Namespace) -> list[Task]:
    """What is to be run, larger batches first."""
    severities = tuple(int(severity) for severity in options.severities.split(","))
    grid = [(stream, size, (5,)) for stream, size in columns(options)]
    found: list[Task] = []
    for method in options.methods.split(","):
        for stream, size, which in [("mixed", BATCH_SIZE, severities), ("sequential", BATCH_SIZE, severities), *grid]:
            task = (method, "mixed" if METHODS[method].by_image else stream, size, which)
            if task not in found:
                found.append(task)
    return sorted(found, key=lambda task: (-len(task[3]), -task[2]))


def columns(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The streams and batch sizes of the second table."""
    places = [place.partition(":") for place in options.places.split(",") if place]
    return [(stream, int(size)) for stream, _, size in places]


def folder_of(options: argparse.Namespace, task: Task) -> Path:
    method, stream, size, severities = task
    cells = "severity" + "".join(map(str, severities))
    cells += "" if options.corruptions is None else f"-{options.corruptions}"
    return folder(options) / cells / f"{stream}-{size}" / method.replace("/", "-")


def run(task: Task, options: argparse.Namespace) -> None:
    """One method on one stream with one batch size, unless that is there."""
    method, stream, size, severities = task
    path = folder_of(options, task)
    if is_complete(path):
        return
    if options.jobs > 1:
        torch.set_num_threads(1)
    model, bank = load(options)
    evaluate(
        model,
        images(options, model, size, severities),
        methods=[method],
        streams=[stream],
        bank=bank,
        detector=options.made / "detectors" / f"seed{options.seed}.ckpt",
        quantiles=QuantileBank.load(quantiles_file(options)) if METHODS[method].quantiles != "none" else None,
        output=path,
        about={"model": options.network},
        progress=options.jobs == 1,
        accelerator="cpu",
    )
    print(f"{options.network}: {method}, {stream}, batches of {size}, severities {severities}", flush=True)


def first_table(options: argparse.Namespace, found: dict[Task, dict[str, Any]]) -> str:
    """Accuracies on the mixed and the sequential stream, costs and needs."""
    severities = tuple(int(severity) for severity in options.severities.split(","))
    names = [f"severity {severity}" for severity in severities] if len(severities) > 1 else []
    headings = [
        "method",
        "mixed: mean",
        *names,
        "clean",
        "sequential: mean",
        *names,
        "clean",
        "time",
        "memory",
        "needs",
    ]
    lines = [headings, ["---", *["---:"] * (len(headings) - 2), "---"]]
    source = found["source", "mixed", BATCH_SIZE, severities]
    for method in options.methods.split(","):
        line = [method]
        for stream in ("mixed", "sequential"):
            task = (method, "mixed" if METHODS[method].by_image else stream, BATCH_SIZE, severities)
            block = found[task]
            means = severity_means(block)
            line += [
                percent(block["mean"]["accuracy"]),
                *(percent(means[one]) for one in severities if names),
                percent(block["clean"]["accuracy"]),
            ]
        block = found[method, "mixed", BATCH_SIZE, severities]
        for cost in ("ms_per_image", "memory_mib"):
            line.append(f"{block[cost] / source[cost]:.1f}" if source[cost] else "-")
        lines.append([*line, ", ".join(block["needs"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def second_table(options: argparse.Namespace, found: dict[Task, dict[str, Any]]) -> str:
    """Mean over the corruptions at severity 5 by stream and batch size, and clean images in brackets."""
    wanted = columns(options)
    lines = [["method", *(f"{stream}, {size}" for stream, size in wanted)], ["---", *["---:"] * len(wanted)]]
    for method in options.methods.split(","):
        line = [method]
        for stream, size in wanted:
            block = found[method, "mixed" if METHODS[method].by_image else stream, size, (5,)]
            line.append(f"{percent(block['mean']['accuracy'])} ({percent(block['clean']['accuracy'])})")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> int:
    options = arguments()
    measure_quantiles(options)
    todo = tasks(options)
    if options.jobs == 1:
        for task in todo:
            run(task, options)
    else:
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(partial(run, options=options), todo))
    found, runs = {}, []
    for task in todo:
        results = read_results(folder_of(options, task))
        found[task] = results["runs"][0]["methods"][task[0]]
        runs.append({**results["runs"][0], "protocol": results["protocol"]})
    protocol = {"network": options.network, "seed": options.seed}
    path = write_results(
        {"schema_version": SCHEMA_VERSION, "protocol": protocol, "missing": [], "runs": runs}, folder(options)
    )
    print(f"results: {path}\n")
    print(f"**{options.network}, batches of {BATCH_SIZE}, top-1, %; time and memory as multiples of the source's**\n")
    print(first_table(options, found))
    if options.places:
        print(f"\n**{options.network}, severity 5, by stream and batch size: top-1, %, and clean**\n")
        print(second_table(options, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
