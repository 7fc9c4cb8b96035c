"""What the steps of a run cost: time, and memory above what was there when it began."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MIB = 2**20


class PeakMemory:
    """The most memory that was in use above what was there when this began.

    On CUDA what torch's tensors took of the device; on Linux the resident memory of the process; elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        self._before = _forget_peak()

    def mib(self) -> float | None:
        """The peak so far, in MiB; None where it isn't known."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = None if self._before is None else _resident("VmHWM")
        return None if peak is None or self._before is None else (peak - self._before) / _MIB


def _forget_peak() -> int | None:
    """Give freed memory back and let Linux forget the peak; what is resident then, in bytes, or None elsewhere."""
    try:
        # Or else what earlier runs freed would be taken again unseen. glibc alone has this.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        return _resident("VmRSS")
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library without a name
        return None


def _resident(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


class StepCost:
    """Callbacks around those of a method, which time its steps: put `first` before these and `last` behind them."""

    def __init__(self) -> None:
        self._each: list[float] = []
        self._batch = 0
        self._began = 0.0
        self._memory: PeakMemory | None = None
        self.first: Callback = _OnBatch(start=self._begin)
        self.last: Callback = _OnBatch(end=self._end)

    @property
    def ms_per_image(self) -> float | None:
        """Milliseconds for each image, the median over the steps of full batches; None before the first."""
        return None if not self._each else 1000 * median(self._each) / self._batch

    @property
    def mib(self) -> float | None:
        """The peak of memory since the first step, in MiB; None where it isn't known."""
        return None if self._memory is None else self._memory.mib()

    def _begin(self, device: torch.device, images: int) -> None:
        if self._memory is None:
            self._memory = PeakMemory(device)
        self._began = _now(device)

    def _end(self, device: torch.device, images: int) -> None:
        if images > self._batch:
            self._each, self._batch = [], images
        if images == self._batch:
            self._each.append(_now(device) - self._began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


_Hook = Callable[[torch.device, int], None]


class _OnBatch(Callback):
    def __init__(self, start: _Hook | None = None, end: _Hook | None = None) -> None:
        self.start, self.end = start, end

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
        if self.start is not None:
            self.start(pl_module.device, len(batch[0]))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self.end is not None:
            self.end(pl_module.device, len(batch[0]))
