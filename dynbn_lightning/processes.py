"""Work on several processes: starting them, and doing first on one what the others then find done."""

from __future__ import annotations

import os

import torch
from lightning.fabric import Fabric
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from dynbn_lightning.batchnorm.ranks import do_on_ranks
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.errors import DataError


def start_processes(accelerator: str = "auto", devices: int | list[int] = 1, num_nodes: int = 1) -> Fabric:
    """Start as many processes as there shall be devices, each of which runs this program from its beginning.

    Those that `torchrun` or SLURM have started already join instead. On one device nothing is started.

    Args:
        accelerator: as a Trainer's.
        devices: how many on each machine, or which.
        num_nodes: machines.

    Returns:
        What says which process this is, and its device.

    Raises:
        DataError: if `torchrun` has started another number of processes.
    """
    processes = (devices if isinstance(devices, int) else len(devices)) * num_nodes
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else processes
    if started != processes:
        raise DataError(
            f"torchrun has started {started} processes, and devices={devices} with num_nodes={num_nodes} asks for "
            f"{processes}: ask for as many"
        )
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy="ddp" if processes > 1 else "auto"
    )
    fabric.launch()
    return fabric


def start_processes_of(trainer: Trainer) -> None:
    """Start the processes that a Trainer would start when it is first used.

    Raises:
        DataError: for a strategy whose processes don't run this program from its beginning.
    """
    if not isinstance(trainer.strategy, DDPStrategy) or trainer.strategy._start_method != "popen":
        raise DataError(
            f"{type(trainer.strategy).__name__} can't work on several processes here: pass strategy='ddp', which runs "
            "the whole program in each process, or use Trainer(callbacks=[..., CorruptionReportCallback(DIR)])"
        )
    if not torch.distributed.is_initialized():
        devices = [device.index for device in trainer.strategy.parallel_devices or ()]
        on_cpu = None in devices
        start_processes(trainer.accelerator.name(), len(devices) if on_cpu else devices, trainer.num_nodes)


def prepare(data: CorruptionDataModule, local_rank: int) -> None:
    """Download what images `data` needs and doesn't find, on the first process of each machine before the others.

    Args:
        data: whose images.
        local_rank: the number of this process on its machine, as a Trainer or a Fabric says it.

    Raises:
        DataError: on all processes, if it fails on one.
    """
    for takes_part in (local_rank == 0, local_rank != 0):
        do_on_ranks(data.prepare_data if takes_part else lambda: None)
