"""What the processes that work on batches at the same time tell each other, so that a stream's memory is one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Exchange:
    """Tells what each process of a round has found in its batch to all of them; alone, there is nothing to tell.

    Processes that deal a stream's batches in turn work on as many batches at a time, in a round. What a policy learns
    from a batch goes through here, and every process then takes in what all have found, in the order of the batches.
    So all remember the same, and an image meets the memory that it would meet on one process. All processes of a round
    must call the same methods in the same order.

    Attributes:
        rank: which batch of the round is this process's.
        size: how many processes are in the round, those before `size`.
        group: of `torch.distributed`; None for all of its processes.
        guard: what is entered while this process waits for the others.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.group: Any = None
        self.guard: Callable[[], AbstractContextManager[Any]] = nullcontext

    def begin_round(self, rank: int, size: int, group: Any = None) -> None:
        """Exchange with these processes from now on."""
        self.rank, self.size, self.group = rank, size, group

    def leave(self) -> None:
        """Be alone again."""
        self.begin_round(0, 1)
        self.guard = nullcontext

    def moments(self, count: int, mean: Tensor, var: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """The number of values and their moments, (C,) each, from each process, in float64; its own as they are."""
        if self.size == 1:
            return [(count, mean, var)]
        counts = self.counts(count, mean.device)
        told = self._gathered(torch.stack([mean.double(), var.double()]))
        found = [(its_count, its[0], its[1]) for its_count, its in zip(counts, told, strict=True)]
        found[self.rank] = count, mean, var
        return found

    def rows(self, *tables: Tensor) -> list[tuple[Tensor, ...]]:
        """These tables, (N, ...) with N of each process's own, from each of them; its own as they are."""
        if self.size == 1:
            return [tables]
        counts = self.counts(len(tables[0]), tables[0].device)
        found: list[list[Tensor]] = [[] for _ in counts]
        for table in tables:
            padded = table.new_zeros(max(counts), *table.shape[1:])
            padded[: len(table)] = table
            for rank, its in enumerate(self._gathered(padded)):
                found[rank].append(table if rank == self.rank else its[: counts[rank]])
        return [tuple(its) for its in found]

    def counts(self, count: int, device: torch.device) -> list[int]:
        """This whole number from each process; sent by way of a device that the group can send from."""
        if self.size == 1:
            return [count]
        counts: list[int] = torch.cat(self._gathered(torch.tensor([count], device=device))).tolist()
        return counts

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return tensor if self.size == 1 else torch.stack(self._gathered(tensor)).sum(0)

    def objects(self, value: Any) -> list[Any]:
        """Anything that can be pickled from each process; slow."""
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        with self.guard():
            dist.all_gather_object(told, value, group=self.group)
        return told

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes; slow."""
        told = [make() if self.rank == 0 else None]
        if self.size > 1:
            with self.guard():
                dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        tensor = tensor.contiguous()
        told = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.guard():
            dist.all_gather(told, tensor, group=self.group)
        return told

    def __deepcopy__(self, memo: object) -> Exchange:
        return Exchange()

    def __reduce__(self) -> tuple[type[Exchange], tuple[()]]:
        return Exchange, ()
