"""A worker of the speed benchmark: one contestant in a process of its own, which gets commands as lines of JSON.

`corruptions.py` starts it, inside the contestant's environment; it needs NumPy and that contestant alone.

    {"load": FILE, "start": 0, "stop": 16, "preset": "imagenet"}
    -> {}
    {"corruption": "fog", "severity": 3, "images": 16, "begin_at": TIME}
    -> {"began": TIME, "ended": TIME, "cpu": SECONDS} or, if the corruption raises, {"error": TEXT}

FILE is an array of uint8 images (N, H, W, 3), TIME is `time.monotonic`. Every reply has "peak_mib", the most memory
that this process has held so far, and "gpu_peak_mib" for ours on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


class ImageByImage:
    """A package that takes one image at a time, NumPy (H, W, 3) of uint8, and draws from NumPy's global generator."""

    def __init__(self, corrupt: Callable[[Any, str, int], Any]) -> None:
        self.corrupt = corrupt
        self.facts: dict[str, Any] = {}

    def load(self, images: Any, preset: str) -> None:
        """Keep the images; these packages know one preset, that of ImageNet."""
        self.images = list(images)

    def run(self, corruption: str, severity: int, images: int) -> Any:
        """Corrupt that many of the images."""
        np.random.seed(severity)  # noqa: NPY002, what the packages draw from: the same draws in each repetition
        return [self.corrupt(image, corruption, severity) for image in self.images[:images]]

    def complaint(self, results: Any) -> str | None:
        """What is wrong with the results, if anything."""
        for result, image in zip(results, self.images, strict=False):
            if result.shape != image.shape or result.dtype != np.uint8:
                return f"gives {result.dtype} of shape {result.shape} for {image.dtype} of shape {image.shape}"
        return None

    def wait(self) -> None:
        """Nothing runs on after a call."""

    def memory(self) -> dict[str, float]:
        """Nothing beside the process's own."""
        return {}


class Batch:
    """Ours: a whole batch at a time, uint8 (N, 3, H, W), on the CPU or on a GPU."""

    def __init__(self, device: str, threads: int) -> None:
        import torch

        from dynbn_lightning.corruptions import corrupt

        torch.set_num_threads(threads)
        self.torch, self.device, self.corrupt = torch, torch.device(device), corrupt
        self.facts: dict[str, Any] = {"threads": torch.get_num_threads()}
        if device == "cuda":
            self.facts["gpu"] = torch.cuda.get_device_name()

    def load(self, images: Any, preset: str) -> None:
        """Put the images on the device."""
        self.preset = preset
        self.images = self.torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)
        self.wait()

    def run(self, corruption: str, severity: int, images: int) -> Any:
        """Corrupt that many of the images; the result stays on the device."""
        generator = self.torch.Generator(self.device).manual_seed(severity)
        return self.corrupt(self.images[:images], corruption, severity, self.preset, generator=generator)

    def complaint(self, results: Any) -> str | None:
        """What is wrong with the results, if anything."""
        expected = self.images[: len(results)]
        if results.shape != expected.shape or results.dtype != expected.dtype:
            return f"gives {results.dtype} of shape {tuple(results.shape)} for uint8 of shape {tuple(expected.shape)}"
        return None

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def memory(self) -> dict[str, float]:
        """The most memory of the GPU that tensors have held so far, if there is one."""
        if self.device.type != "cuda":
            return {}
        return {"gpu_peak_mib": self.torch.cuda.max_memory_allocated() / 2**20}


def contestant(name: str, device: str, threads: int) -> ImageByImage | Batch:
    """Import a contestant and set its threads."""
    if name == "ours":
        return Batch(device, threads)
    import cv2

    cv2.setNumThreads(0 if threads == 1 else threads)
    if name == "corrupt-tta":
        import corrupt_tta

        # it gives floats, which its documentation turns into uint8 like this
        return ImageByImage(
            lambda image, corruption, severity: corrupt_tta.corrupt(
                image, severity=severity, corruption_name=corruption
            ).astype(np.uint8)
        )
    import imagecorruptions

    return ImageByImage(
        lambda image, corruption, severity: imagecorruptions.corrupt(
            image, severity=severity, corruption_name=corruption
        )
    )


def peak_mib() -> float:
    """The most memory that this process has held, MiB.

    Linux hands `ru_maxrss` on from the process that started this one, so it is asked for elsewhere only.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def installed(packages: list[str]) -> dict[str, str]:
    """The versions of those packages that are here."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def timed(who: ImageByImage | Batch, command: dict[str, Any]) -> dict[str, Any]:
    """Begin at the agreed time, so that all workers of a contestant run at once, and say when it was done."""
    time.sleep(max(0.0, command["begin_at"] - time.monotonic() - 0.001))
    while time.monotonic() < command["begin_at"]:
        pass
    began, cpu = time.monotonic(), time.process_time()
    try:
        results = who.run(command["corruption"], command["severity"], command["images"])
        who.wait()
        ended, cpu = time.monotonic(), time.process_time() - cpu
        complaint = who.complaint(results)
    except Exception as error:  # whatever a package raises is a result of the benchmark
        complaint = f"{type(error).__name__}: {error}"
    return {"error": complaint} if complaint else {"began": began, "ended": ended, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestant", choices=["ours", "corrupt-tta", "imagecorruptions"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a package prints must not mix with the replies
    warnings.simplefilter("ignore")

    who = contestant(options.contestant, options.device, options.threads)

    def reply(**fields: Any) -> None:
        replies.write(json.dumps({**fields, "peak_mib": peak_mib(), **who.memory()}) + "\n")
        replies.flush()

    packages = ["torch", options.contestant, "numpy", "opencv-python-headless", "scikit-image", "scipy", "pillow"]
    reply(versions={"python": platform.python_version(), **installed(packages)}, facts=who.facts)
    for line in sys.stdin:
        command = json.loads(line)
        if "load" in command:
            images = np.load(command["load"], mmap_mode="r")
            who.load(np.array(images[command["start"] : command["stop"]]), command["preset"])
            reply()
        else:
            reply(**timed(who, command))


if __name__ == "__main__":
    main()
