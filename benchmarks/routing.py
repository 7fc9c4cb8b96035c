"""What routing costs: a forward with a row of statistics for every image beside the plain one and the alternatives.

    OMP_NUM_THREADS=2 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 python benchmarks/routing.py --output DIR

A ResNet-50 with seeded random weights and a bank made up around its statistics, neither of which matters to a clock;
about four minutes on two slow, idle cores. First the logits must agree: routing's with those of a loop over the rows
that shares no code with the package, the source row's with the unpatched model's. Then the contestants take turns, in a
new order every round, after an untimed round; the median and quartiles of each one's time over the plain forward's in
the same round count. "plain, again" is a copy of the plain model: how far its ratio is from 1 is noise.

The two variables, glibc's, let the process keep large activations for the next ones. Without them a third of a plain
forward goes into new pages, in numbers that vary by more than what routing costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from corruption_environments import BenchmarkError
from corruption_peers import peak_mib
from corruptions import machine
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BatchStatisticsPolicy, BNStatsBank, Calibration, Patch, patch_with_bank
from dynbn_lightning.batchnorm.collecting import collect_statistics
from dynbn_lightning.files import whole_file

PLAIN, AGAIN, BN_1, GROUPS = "plain", "plain, again", "BN-1", "a forward for each row"
HARD, SOFT = "routed, a row per image", "routed, a mixture per image"
CALIBRATED = "routed, calibrated mixtures with images' own moments"
ONE_ROW, SOURCE, SEQUENTIAL = "routed, one row for all", "routed, source row for all", "measuring a row, sequential"
MEASURING = {"measuring a row, batch": "batch", "measuring a row, source": "source", SEQUENTIAL: "sequential"}
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}  # how far an image's logits may be off, relative to their norm
CLOCKS = {"cpu": ("wall", "CPU"), "cuda": ("events", "wall")}  # of all threads; until the host has waited for the GPU
Call = Callable[[], Any]


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, help="folder for routing.json and routing.md; default: only print")
    add("--device", default="cpu", choices=list(CLOCKS))
    add("--dtype", default="float32", choices=list(BOUNDS), help="model and images are cast; no autocast")
    add("--channels-last", action="store_true", help="model and images in that memory format")
    add("--compile", action="store_true", help="torch.compile all forwards, untimed; measuring rows runs uncompiled")
    add("--batch", type=int, help="images; default: 32, 8 with --short")
    add("--size", type=int, help="pixels; default: 224, 64 with --short")
    add("--rows", type=int, default=16, help="of the bank; the images get them in turn; default: 16")
    add("--rounds", type=int, help="default: 4, 50 on cuda, 2 with --short")
    add("--full", action="store_true", help="also measuring a row sequentially, some 27 forwards in each round")
    add("--memory", action="store_true", help="also the peak memory of three forwards, each in a process of its own")
    add("--short", action="store_true", help="ResNet-18 and little of everything, to see that it runs")
    options = parser.parse_args(arguments)
    options.model = "resnet18" if options.short else "resnet50"
    usual = {"batch": 32, "size": 224, "rounds": 50 if options.device == "cuda" else 4}
    for name, default in ({"batch": 8, "size": 64, "rounds": 2} if options.short else usual).items():
        setattr(options, name, getattr(options, name) or default)
    return options


class Setting(NamedTuple):
    """A model, a batch, a bank around the model's statistics, and what the images of the batch are assigned."""

    model: nn.Module
    images: Tensor
    bank: BNStatsBank
    rows: Tensor
    weights: Tensor


def running(model: nn.Module, part: str) -> dict[str, Tensor]:
    """The running means ("mean") or variances ("var") by layer."""
    end = f".running_{part}"
    return {name.removesuffix(end): buffer for name, buffer in model.named_buffers() if name.endswith(end)}


def made_up_bank(model: nn.Module, rows: int) -> BNStatsBank:
    """Row 0 is the model's own; the others are near it, in numbers that the model's dtype can hold."""
    widths = {name: len(buffer) for name, buffer in running(model, "mean").items()}
    mean, var = (torch.cat([*running(model, part).values()]).float().cpu() for part in ("mean", "var"))
    noise = 0.3 * torch.randn(2, rows, len(mean), generator=torch.Generator().manual_seed(1))
    noise[:, 0] = 0
    dtype = next(model.parameters()).dtype
    mean, var = ((mean + var.sqrt() * noise[0]).to(dtype), (var * noise[1].exp()).to(dtype))
    return BNStatsBank(("clean", *map(str, range(1, rows))), widths, mean.float(), var.float())


def setting(options: argparse.Namespace) -> Setting:
    torch.manual_seed(0)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    how: dict[str, Any] = {"dtype": getattr(torch, options.dtype), "memory_format": layout}
    model = torchvision.models.get_model(options.model, weights=None).eval().to(options.device, **how)
    images = torch.randn(options.batch, 3, options.size, options.size).to(options.device, **how)
    weights = (2 * torch.randn(options.batch, options.rows)).softmax(1).to(options.device)
    rows = torch.arange(options.batch, device=options.device) % options.rows
    return Setting(model, images, made_up_bank(model, options.rows), rows, weights)


class ForwardForEachRow:
    """What people write without the package: each row's statistics into the model, then its images through it."""

    def __init__(self, model: nn.Module, mean: Tensor, var: Tensor, compiled: bool = False) -> None:
        buffers = [*running(model, "mean").values(), *running(model, "var").values()]
        tables = torch.cat([mean, var], 1).to(buffers[0].device).split([len(buffer) for buffer in buffers], 1)
        self.buffers = list(zip(buffers, tables, strict=True))
        self.forward = torch.compile(model) if compiled else model

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """The logits of `images`, each normalised with its row."""
        layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
        numbers, logits = torch.tensor(rows.tolist()), []
        groups = [(numbers == row).nonzero().flatten().to(images.device) for row in numbers.unique()]
        for row, group in zip(numbers.unique().tolist(), groups, strict=True):
            for buffer, table in self.buffers:
                buffer.copy_(table[row])
            logits.append(self.forward(images[group].contiguous(memory_format=layout)))
        return torch.cat(logits)[torch.cat(groups).argsort()]


def routed_calls(model: nn.Module, given: Setting, compiled: bool = False) -> dict[str, Call]:
    """The ways to route the batch through one model, which stays patched; each includes assigning the rows."""
    patch, routing = patch_with_bank(model, given.bank)
    patch.apply()
    forward = torch.compile(model) if compiled else model

    def call(assignment: Tensor, held: Patch) -> Any:  # a patch that nobody holds is undone
        routing.set(assignment)
        return forward(given.images)

    assignments = {HARD: given.rows, SOFT: given.weights, ONE_ROW: 0 * given.rows + 1, SOURCE: 0 * given.rows}
    return {name: partial(call, assignment, patch) for name, assignment in assignments.items()}


def calibrated_setting(given: Setting) -> Setting:
    """The setting with a bank whose rows are blended, all alike, which doesn't matter to a clock."""
    shares = torch.full((len(given.bank), len(given.bank.layers)), 0.1)
    shares[0] = 0
    calibration = Calibration(source_share=shares, image_share=shares)
    return given._replace(bank=replace(given.bank, calibration=calibration))


def contestants(given: Setting, options: argparse.Namespace) -> dict[str, Call]:
    """What is timed; each has its own copy of the model, save that all routing shares one."""

    def forward(model: nn.Module, held: Patch | None = None) -> Call:
        compiled = torch.compile(model) if options.compile else model
        return lambda: (compiled(given.images), held)[0]

    plain, again, routed, calibrated, bn_1, grouped = (deepcopy(given.model) for _ in range(6))
    calls = {PLAIN: forward(plain), AGAIN: forward(again), **routed_calls(routed, given, options.compile)}
    calls[CALIBRATED] = routed_calls(calibrated, calibrated_setting(given), options.compile)[SOFT]
    calls[BN_1] = forward(bn_1, Patch(bn_1, lambda name, layer: BatchStatisticsPolicy()).apply())
    groups = ForwardForEachRow(grouped, given.bank.mean, given.bank.var, options.compile)
    calls[GROUPS] = partial(groups, given.images, given.rows)
    measure = partial(collect_statistics, given.model, [given.images])
    measuring = {name: how for name, how in MEASURING.items() if options.full or name != SEQUENTIAL}
    return calls | {name: partial(measure, how) for name, how in measuring.items()}


@torch.no_grad()
def check_logits(calls: Mapping[str, Call], given: Setting, bound: float) -> dict[str, float]:
    """How far the contestants' logits are from each other's; raises `BenchmarkError` if farther than `bound`."""
    weights, mean, var = given.weights.cpu().double(), given.bank.mean.double(), given.bank.var.double()
    mixed = weights @ mean
    mixtures = ForwardForEachRow(deepcopy(given.model), mixed, weights @ (var + mean.square()) - mixed.square())
    one_row = ForwardForEachRow(deepcopy(given.model), given.bank.mean, given.bank.var)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain, each = calls[PLAIN](), torch.arange(len(given.images))
        expected = {AGAIN: plain, SOURCE: plain, HARD: calls[GROUPS](), SOFT: mixtures(given.images, each)}
        expected[ONE_ROW] = one_row(given.images, torch.ones_like(given.rows))
        logits = {name: calls[name]() for name in expected}
    logits["effect"], expected["effect"] = logits[HARD], plain
    pairs = {name: (logits[name].double(), right.double()) for name, right in expected.items()}
    off = {name: float(((own - right).norm(dim=1) / right.norm(dim=1)).max()) for name, (own, right) in pairs.items()}
    if not off["effect"] > 2 * bound:
        raise BenchmarkError(f"the rows move the logits by {off['effect']:.2g} of their norm: no error would show")
    if wrong := {name: distance for name, distance in off.items() if name != "effect" and not distance <= bound}:
        raise BenchmarkError(f"logits are off by more than {bound} of their norm: {wrong}")
    return off


def timed(call: Call, device: str) -> tuple[float, float]:
    """Seconds of a call by both clocks of the device."""
    if device == "cpu":
        began = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - began[0], time.process_time() - began[1]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began_at = time.perf_counter()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, time.perf_counter() - began_at


def time_rounds(calls: Mapping[str, Call], options: argparse.Namespace) -> dict[str, Any]:
    """By contestant and clock: the seconds of each round, and the quartiles of the milliseconds and of the ratios."""
    seconds: dict[str, list[Any]] = {name: [] for name in calls}
    for number in range(options.rounds):
        for name in random.Random(number).sample(list(calls), len(calls)):
            seconds[name].append(timed(calls[name], options.device))
    times: dict[str, Any] = {name: {} for name in calls}
    for name, (which, clock) in itertools.product(calls, enumerate(CLOCKS[options.device])):
        own, plain = (np.array(seconds[who])[:, which] for who in (name, PLAIN))
        ms, ratio = (np.quantile(each, (0.25, 0.5, 0.75)).tolist() for each in (1000 * own, own / plain))
        times[name][clock] = {"seconds": own.tolist(), "ms": ms, "ratio": ratio}
    return times


@torch.no_grad()
def peak_of(name: str, options: argparse.Namespace) -> dict[str, float]:
    """MiB at the peak of the first forward, and at that before it; to be asked for in a fresh process."""
    given = setting(options)
    calls = {PLAIN: partial(given.model, given.images)} if name == PLAIN else routed_calls(given.model, given)
    peak = peak_mib if options.device == "cpu" else lambda: torch.cuda.max_memory_allocated() / 2**20
    before, _, after = peak(), calls[name](), peak()
    return {"before": before, "peak": after}


def loading(model: nn.Module) -> dict[str, float]:
    """Seconds to load a bank that was written just now, so is in the cache, and the size of its file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bank.safetensors"
        made_up_bank(model, 76).save(file)  # a row for each of 15 corruptions at 5 severities, and clean
        seconds = [timed(lambda: BNStatsBank.load(file), "cpu")[0] for _ in range(5)]
        return {"rows": 76, "seconds": median(seconds), "mib": file.stat().st_size / 2**20}


def markdown(results: Mapping[str, Any]) -> str:
    """The table, and what was measured beside it."""
    where, how, loaded = results["environment"], results["options"], results["loading"]
    ways = ", ".join([how["dtype"], *(way for way in ("channels_last", "compile") if how[way]), *where["malloc"]])
    clocks, row = CLOCKS[how["device"]], results["row_mib"]
    lines = [
        f"{results['date']}, {where['gpu'] or where['cpu']}, threads: {where['threads']} on {where['cores']} cores, "
        f"load average before the run {where['load_before']}, torch {where['torch']}, commit {where['commit']}. "
        f"{how['model']}, {how['batch']} images of {how['size']} px, {how['rows']} rows, {ways}; medians of "
        f"{how['rounds']} rounds; ratio: to the plain forward in the same round.",
        "",
        "| " + "".join(f"| {clock}, ms | ratio | quartiles " for clock in clocks) + "|",
        "|---" + "|---:|---:|---:" * len(clocks) + "|",
    ]
    for name, times in results["times"].items():
        spreads = [(times[clock]["ms"][1], *times[clock]["ratio"]) for clock in clocks]
        cells = [f"{ms:.1f} | {middle:.3f} | {low:.3f} to {high:.3f}" for ms, low, middle, high in spreads]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    effect, *off = (results["logits"][name] for name in ("effect", HARD, SOFT, ONE_ROW, SOURCE))
    lines += [
        "",
        f"- Logits agree to {max(off):.1g} of their norm; the rows move them by {effect:.2g}.",
        f"- A file of {loaded['rows']} rows, {loaded['mib']:.1f} MiB, is loaded in {1000 * loaded['seconds']:.0f} ms.",
        f"- Tables of the bank, MiB: {how['rows'] * row:.1f}; of the batch: {how['batch'] * row:.1f}.",
    ]
    for name, peak in results["memory"].items():
        lines.append(f"- Peak memory of {name}: {peak['peak']:.0f} MiB, {peak['before']:.0f} before the forward.")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    git = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, check=False, capture_output=True, text=True).stdout.strip()
    where = {**machine(os.cpu_count() or 1), "threads": torch.get_num_threads(), "torch": torch.__version__}
    where |= {"commit": commit, "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None}
    where["malloc"] = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    results: dict[str, Any] = {"schema_version": 1, "date": date.today().isoformat(), "environment": where}
    given = setting(options)
    calls = contestants(given, options)
    results |= {"options": vars(options), "logits": check_logits(calls, given, BOUNDS[options.dtype])}
    for name in [name for name in calls if name != SEQUENTIAL]:
        calls[name]()
    with torch.compiler.set_stance("fail_on_recompile" if options.compile else "default"):
        results["times"] = time_rounds(calls, options)
    results |= {"loading": loading(given.model), "row_mib": 2 * given.bank.mean[0].nbytes / 2**20, "memory": {}}
    for name in (PLAIN, HARD, SOFT) if options.memory else ():
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            results["memory"][name] = fresh.submit(peak_of, name, options).result()
    texts = {"json": json.dumps(results, indent=1, default=str) + "\n", "md": markdown(results)}
    for kind in texts if options.output else ():
        with whole_file(options.output / f"routing.{kind}") as temporary:
            temporary.write_text(texts[kind])
    print(texts["md"])


if __name__ == "__main__":
    main(sys.argv[1:])
