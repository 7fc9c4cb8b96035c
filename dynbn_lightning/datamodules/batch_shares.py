"""The part of a stream that one of several processes gets: whole batches in turn, none twice and none dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import Dataset, DistributedSampler

from ..errors import DataError

Share = tuple[int, int]
"""The number of a process, and how many there are."""

ALONE: Share = (0, 1)


class BatchShare(DistributedSampler[Any]):
    """Every so many-th batch of a data set in its order: process r of R gets the batches r, r + R, r + 2 R, ...

    So all processes together see each image once, in the batches in which one process alone would see them, and what
    depends on an image's batch is as it is on one. torch's `DistributedSampler`, which this is an instance of because
    Lightning leaves only these as they are, repeats images until all processes have as many. Here the first ones may
    have a batch more than the others.

    Args:
        dataset: whose items are dealt.
        share: the number of this process, and how many there are.
        batch_size: items per batch; the last batch of all may be smaller.
    """

    def __init__(self, dataset: Dataset[Any], share: Share, batch_size: int) -> None:
        rank, processes = share
        super().__init__(dataset, num_replicas=processes, rank=rank, shuffle=False)
        self.batch_size, self.count = batch_size, len(dataset)  # type: ignore[arg-type]
        self.num_samples = sum(len(batch) for batch in self._batches())
        self.total_size = self.count

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches():
            yield from batch

    def _batches(self) -> Iterator[range]:
        step = self.batch_size
        for start in range(self.rank * step, self.count, self.num_replicas * step):
            yield range(start, min(start + step, self.count))


def check_enough_batches(batches: Sequence[int], names: Sequence[str], share: Share, limit: float) -> None:
    """Refuse loaders that have no batch for some process.

    That process would not take part in what the others do when the loader is over, and they would wait for it.

    Args:
        batches: how many batches each loader has.
        names: of the loaders.
        share: of any of the processes.
        limit: the Trainer's, of batches; a share of them where it is no whole number.

    Raises:
        DataError: if there are fewer batches than processes, or so few that the limit leaves none of them to some.
    """
    _, processes = share
    for count, name in zip(batches, names, strict=True):
        if count < processes:
            raise DataError(
                f"the loader {name!r} has {count} batches for {processes} processes, and each needs at least one: make "
                "batch_size smaller, take fewer processes, or the stream 'mixed', which has one loader for all cells"
            )
        if processes > 1 and isinstance(limit, float) and int(count // processes * limit) == 0 < limit:
            raise DataError(
                f"the loader {name!r} has {count} batches for {processes} processes, of which a limit of {limit} "
                "leaves none to some of them: limit it to a whole number of batches"
            )


def refuse_collectives_in_steps(trainer: Any, batches: Sequence[int]) -> None:
    """Refuse what would hang: a step that waits for all processes, where some have a batch less than others.

    Args:
        trainer: what its steps have logged up to now is looked at.
        batches: how many batches each loader has, for all processes together.

    Raises:
        DataError: if a step logs with `on_step=True` and `sync_dist=True`, or has a metric that waits in it, and the
            batches don't go round evenly.
    """
    if trainer is None or trainer.world_size == 1 or trainer.state.fn not in (TrainerFn.TESTING, TrainerFn.VALIDATING):
        return  # in a fit Lightning's sampler gives all processes as many, and predictions log nothing
    limit = limit_of(trainer)
    most = limit if isinstance(limit, int) else float("inf")
    if not any(count % trainer.world_size and count // trainer.world_size < most for count in batches):
        return
    logged = [metric.meta for metric in (trainer._results or {}).values()]
    waiting = [f"{meta.name!r} is logged with sync_dist=True and on_step=True" for meta in logged if _waits(meta)]
    modules = trainer.lightning_module.modules()
    waiting += [f"{type(one).__name__} has dist_sync_on_step=True" for one in modules if _syncs_in_steps(one)]
    if waiting:
        raise DataError(
            f"{waiting[0]}, so that all processes wait in each step, but {max(batches)} batches don't go round evenly "
            f"among {trainer.world_size} processes (no image is repeated to fill up): do it at the end of the epoch, "
            "or choose batch_size= so that they do"
        )


def _waits(meta: Any) -> bool:
    return bool(meta.on_step and meta.sync.should)


def _syncs_in_steps(module: Any) -> bool:
    return bool(getattr(module, "dist_sync_on_step", False))


def limit_of(trainer: Any) -> float:
    """How many batches of each loader a Trainer's run has at the most; a share of them where it is no whole number."""
    if trainer is None:
        return 1.0
    name = "test" if trainer.testing else "predict" if trainer.predicting else "val"
    limit: float = getattr(trainer, f"limit_{name}_batches")
    return limit


def share_of_trainer(trainer: Any) -> Share:
    """The share of a Trainer's process; that of a process alone where there is no Trainer, or one without processes."""
    given = None if trainer is None else trainer.distributed_sampler_kwargs
    return ALONE if given is None else (given["rank"], given["num_replicas"])


def share_of_process() -> Share:
    """The share of this process of `torch.distributed`, where that runs."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return dist.get_rank(), dist.get_world_size()
