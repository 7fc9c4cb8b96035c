"""Processes of `torch.distributed` as `torchrun` would start them, each running one function of a test file."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

SECONDS_FOR_ANOTHER = 60


def start(world: int, function: Callable[[int, int, Path], None], folder: Path, seconds: float = 240) -> None:
    """Run `function(rank, world, folder)` in so many processes; those that take longer are killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(function, rank, world, port, folder), daemon=True) for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    for process in processes:
        if process.is_alive():
            process.kill()


def _run(function: Callable[[int, int, Path], None], rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        function(rank, world, folder)
    except BaseException:
        (folder / f"{rank}.failed").write_text(traceback.format_exc())
    finally:
        dist.destroy_process_group()


def failures(folder: Path) -> list[str]:
    """What ended the processes that an exception has ended."""
    return [file.read_text() for file in sorted(folder.glob("*.failed"))]


def of_several(world: int) -> dict[str, Any]:
    """Options of a Trainer on all the processes that `start` has started."""
    strategy = DDPStrategy(start_method="popen", timeout=timedelta(seconds=SECONDS_FOR_ANOTHER))
    return {"devices": world, "strategy": strategy}
