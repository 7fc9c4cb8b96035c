"""How fast our corruptions are beside the two packages that people can install: corrupt-tta and imagecorruptions.

    DYNBN_DATA=../shared/data python benchmarks/corruptions.py --output results/corruptions

Makes a virtual environment for each peer (kept for the next run), times every corruption at every severity, writes
DIR/corruptions.json and DIR/corruptions.md and prints the latter.

The peers take one image at a time, so as many workers as there are cores run at once, one thread each, each with its
share of the batch; ours is one process with that many threads and gets the whole batch. The contestants take turns,
call by call, on the same images and cores. Each is first called untimed, peers on a single image; then the best of up
to `Effort.repetitions` calls counts, fewer if they are slow. Peers get fewer images where their share of the batch
would take longer than `Effort.seconds`. What is slow goes by CPU time, so that a machine that stalls for a moment
doesn't spoil a figure.

Other work on the machine slows two threads that wait for each other far more than two processes that don't: on a busy
machine prefix the command with `taskset -c 0`, which compares on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import IO, Any

import numpy as np
from corruption_environments import ENVIRONMENTS, PEERS, BenchmarkError, environment
from corruption_tables import OURS, markdown, summary
from PIL import Image

import dynbn_lightning
from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES
from dynbn_lightning.files import whole_file
from dynbn_lightning.progress import progress_bar

WORKER = Path(__file__).with_name("corruption_peers.py")


@dataclass(frozen=True)
class Size:
    """A batch to time, smaller in a short run; `pattern` is where the folder of real data has such images."""

    pixels: int
    images: int
    images_if_short: int
    preset: str
    pattern: str


SIZES = (Size(224, 32, 8, "imagenet", "imagenet/*/*.png"), Size(32, 256, 64, "cifar", "cifar10/test/*/*.png"))


@dataclass(frozen=True)
class Effort:
    """Calls of a contestant end after `repetitions`, or sooner once they took `repetitions * seconds` of CPU time."""

    repetitions: int
    seconds: float
    severities: tuple[int, ...]


WHOLE = Effort(3, 0.3, SEVERITIES)
SHORT = Effort(2, 0.05, (3,))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for corruptions.json and corruptions.md")
    parser.add_argument("--data", type=Path, default=os.environ.get("DYNBN_DATA"), help="default: $DYNBN_DATA")
    parser.add_argument("--short", action="store_true", help="severity 3 only, small batches, shorter calls")
    parser.add_argument("--only", help="corruptions to time, with commas; default: all 19")
    parser.add_argument("--peers", default="both", choices=list(PEERS))
    parser.add_argument(
        "--images",
        type=int,
        help="in a batch of either size; default: 32 of 224 px, 256 of 32 px; 8 and 64 with --short",
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of ours; the peers have the CPU only")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help=f"default: {ENVIRONMENTS}")
    options = parser.parse_args()
    options.only = options.only.split(",") if options.only else list(CORRUPTIONS)
    if unknown := set(options.only) - set(CORRUPTIONS):
        parser.error(f"no such corruption: {', '.join(sorted(unknown))}")
    if options.images is not None and options.images < 1:
        parser.error("--images must be at least 1")
    return options


def batch(size: Size, data: Path | None) -> tuple[Any, str]:
    """The images (N, H, W, 3) and what they are: real ones, evenly spread, or smooth random ones."""
    files = sorted(data.glob(size.pattern)) if data else []
    square = (size.pixels, size.pixels)
    if files:
        chosen = [files[index * max(1, len(files) // size.images) % len(files)] for index in range(size.images)]
        pictures = [Image.open(file).convert("RGB").resize(square) for file in chosen]
    else:
        coarse = np.random.default_rng(0).integers(0, 256, (size.images, 8, 8, 3), dtype=np.uint8)
        pictures = [Image.fromarray(image).resize(square, Image.Resampling.BICUBIC) for image in coarse]
    return np.stack([np.asarray(picture) for picture in pictures]), "real images" if files else "smooth random images"


class Team:
    """The worker processes of one contestant, each with its share of a batch."""

    def __init__(self, name: str, python: Path, workers: int, threads: int, device: str, log: IO[str]) -> None:
        self.name, self.threads, self.log = name, threads, log
        threads_of = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
        surroundings = {**os.environ, **threads_of}
        alone = [] if name == OURS else ["-I"]
        command = [str(python), *alone, str(WORKER), name, "--threads", str(threads), "--device", device]
        pipe = subprocess.PIPE
        self.workers = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=surroundings)
            for _ in range(workers)
        ]
        hellos = [self._reply(worker) for worker in self.workers]
        self.versions: dict[str, str] = hellos[0]["versions"]
        self.facts: dict[str, Any] = hellos[0]["facts"]
        self.imported_mib: float = sum(hello["peak_mib"] for hello in hellos)
        self.memory: dict[str, float] = {}

    def load(self, file: Path, images: int, preset: str) -> None:
        """Give every worker its share of the images."""
        edges = [round(images * number / len(self.workers)) for number in range(len(self.workers) + 1)]
        ranges = list(itertools.pairwise(edges))
        self.shares = [stop - start for start, stop in ranges]
        self._ask([{"load": str(file), "start": start, "stop": stop, "preset": preset} for start, stop in ranges])

    def warm_up(self, corruption: str, severity: int, seconds: float) -> dict[str, Any]:
        """An untimed call; from then on a peer's workers get as many images as they manage in that CPU time."""
        self.most = max(self.shares) if self.name == OURS else 1
        call = self.call(corruption, severity)
        if self.name == OURS or "error" in call:
            return call
        if call["busy"] < seconds:  # what the first call had to load counts for too much in a short one
            call = self.call(corruption, severity)
        self.most = max(1, int(seconds / call.get("busy", seconds)))
        return call

    def call(self, corruption: str, severity: int) -> dict[str, Any]:
        """Corrupt the images in all workers at once: seconds until the last is done and number of images, or error.

        `cpu` is the CPU time of all workers together, `busy` that of the busiest, for each of its threads.
        """
        images = [min(self.most, share) for share in self.shares]
        command = {"corruption": corruption, "severity": severity, "begin_at": time.monotonic() + 0.01}
        replies = self._ask([{**command, "images": count} for count in images])
        if errors := [reply["error"] for reply in replies if "error" in reply]:
            return {"error": errors[0]}
        seconds = max(reply["ended"] for reply in replies) - min(reply["began"] for reply in replies)
        cpu = [reply["cpu"] for reply in replies]
        return {"seconds": seconds, "cpu": sum(cpu), "busy": max(cpu) / self.threads, "images": sum(images)}

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _ask(self, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for worker, command in zip(self.workers, commands, strict=True):
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(command) + "\n")
            worker.stdin.flush()
        replies = [self._reply(worker) for worker in self.workers]
        peak = sum(reply["peak_mib"] for reply in replies)
        self.memory = {"peak_mib": peak, "increase_mib": peak - self.imported_mib}
        self.memory |= {key: value for key, value in replies[0].items() if key == "gpu_peak_mib"}
        return replies

    def _reply(self, worker: subprocess.Popen[str]) -> dict[str, Any]:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            self.log.seek(0)
            raise BenchmarkError(f"the worker of {self.name} ended: {self.log.read()[-2000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def time_cell(teams: list[Team], corruption: str, severity: int, effort: Effort) -> dict[str, dict[str, Any]]:
    """Each contestant's best call at one corruption and severity, or what it raised; they take turns."""
    warm = {team.name: team.warm_up(corruption, severity, effort.seconds) for team in teams}
    calls: dict[str, list[dict[str, Any]]] = {name: [call] if "error" in call else [] for name, call in warm.items()}
    for _ in range(effort.repetitions):
        for team in teams:
            done = calls[team.name]
            failed = any("error" in call for call in done)
            if not failed and sum(call["busy"] for call in done) < effort.repetitions * effort.seconds:
                done.append(team.call(corruption, severity))
    return {name: min(done, key=lambda call: call.get("seconds", 0.0)) for name, done in calls.items()}  # errors first


def over_severities(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A contestant's time for a corruption from its best call at each severity."""
    error = next((cell["error"] for cell in cells if "error" in cell), None)
    if error is not None:
        return {"ms_per_image": None, "error": error}
    each, cpu = ([1000 * cell[clock] / cell["images"] for cell in cells] for clock in ("seconds", "cpu"))
    images = [cell["images"] for cell in cells]
    return {"ms_per_image": fmean(each), "cpu_ms_per_image": fmean(cpu), "per_severity": each, "images": images}


def time_size(size: Size, teams: list[Team], names: list[str], effort: Effort) -> dict[str, Any]:
    """The times of every corruption, their ratios and the memory used."""
    corruptions: dict[str, dict[str, Any]] = {}
    with progress_bar(shown=True) as bar:
        task = bar.add_task("", total=len(names) * len(effort.severities))
        for name in names:
            cells = []
            for severity in effort.severities:
                bar.update(task, description=f"{size.pixels} px, {name}/{severity}")
                cells.append(time_cell(teams, name, severity, effort))
                bar.advance(task)
            corruptions[name] = {team.name: over_severities([cell[team.name] for cell in cells]) for team in teams}
    times = {team.name: {name: row[team.name]["ms_per_image"] for name, row in corruptions.items()} for team in teams}
    return {
        "images": size.images,
        "pixels": size.pixels,
        "preset": size.preset,
        "corruptions": corruptions,
        "summary": {team.name: summary(times[OURS], times[team.name]) for team in teams if team.name != OURS},
        "memory": {team.name: team.memory for team in teams},
    }


@contextmanager
def teams_of(pythons: dict[str, Path], cores: int, device: str) -> Iterator[list[Team]]:
    """The workers of every contestant: started, and ended whatever happens."""
    with ExitStack() as stack:
        teams = []
        for name, python in pythons.items():
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            workers, threads = (1, cores) if name == OURS else (cores, 1)
            teams.append(Team(name, python, workers, threads, device, log))
            stack.callback(teams[-1].close)
        yield teams


def machine(cores: int) -> dict[str, Any]:
    """What the benchmark runs on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    return {"cpu": cpu, "cores": cores, "system": platform.platform(), "load_before": round(os.getloadavg()[0], 1)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that `arguments` asks for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    effort = SHORT if options.short else WHOLE
    pythons = {OURS: Path(sys.executable)}
    pythons |= {peer.name: environment(peer, options.environments) for peer in PEERS[options.peers]}
    results: dict[str, Any] = {"schema_version": 1, "date": date.today().isoformat(), "machine": machine(cores)}
    results["protocol"] = {
        "severities": list(effort.severities),
        "repetitions": effort.repetitions,
        "seconds": effort.seconds,
        "statistic": "best",
        "device": options.device,
    }
    results["versions"], results["sizes"] = {}, {}
    for size in SIZES:
        size = replace(size, images=options.images or (size.images_if_short if options.short else size.images))
        images, results["protocol"]["images"] = batch(size, options.data)
        with tempfile.TemporaryDirectory() as folder, teams_of(pythons, cores, options.device) as teams:
            np.save(Path(folder) / "images.npy", images)
            for team in teams:
                team.load(Path(folder) / "images.npy", size.images, size.preset)
                results["versions"][team.name] = team.versions
                results["machine"] |= team.facts
            results["sizes"][str(size.pixels)] = time_size(size, teams, options.only, effort)
    results["versions"][OURS] = {"dynbn-lightning": dynbn_lightning.__version__, **results["versions"][OURS]}
    return results


def main() -> int:
    options = arguments()
    try:
        results = run(options)
    except BenchmarkError as error:
        print(f"corruptions.py: {error}", file=sys.stderr)
        return 1
    with whole_file(options.output / "corruptions.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    with whole_file(options.output / "corruptions.md") as temporary:
        temporary.write_text(markdown(results))
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
