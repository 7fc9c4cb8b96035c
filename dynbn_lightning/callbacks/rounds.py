"""Which processes work on a stream's batches at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from .failure_watch import FailureWatch


class Rounds:
    """The rounds of a run: in round i of a loader each process works on its i-th batch of it, if it has as many.

    Args:
        name: of whoever enters them, different from that of others in the same run.
        watch: of the run.
        counts: for each loader, how many batches each process has of it; none more than the process before it.
    """

    def __init__(self, name: str, watch: FailureWatch, counts: Sequence[Sequence[int]]) -> None:
        self._name, self._watch = name, watch
        self._sizes = [
            [sum(batches > number for batches in of_loader) for number in range(max(of_loader))] for of_loader in counts
        ]
        sizes = {size for of_loader in self._sizes for size in of_loader} - {1, watch.size}
        with watch.collective():
            self._groups: dict[int, Any] = {size: dist.new_group(list(range(size))) for size in sorted(sizes)}
        self._place = (-1, 0)

    def enter(self, loader: int) -> tuple[int, bool]:
        """Go on to this process's next batch of a loader, and wait for the others of its round.

        Returns:
            How many processes are in the round, and whether some of them were not in the round before.

        Raises:
            RankError: if another process has failed.
        """
        before = self._place
        self._place = (loader, before[1] + 1) if loader == before[0] else (loader, 0)
        size = self._sizes[loader][self._place[1]]
        self._watch.meet(f"{self._name}, loader {loader}", sum(self._sizes[loader][: self._place[1] + 1]))
        return size, self._size_before() < size

    def group(self, size: int) -> Any:
        """The group of `torch.distributed` of that many first processes; None for all of them."""
        return self._groups.get(size)

    @property
    def last_size(self) -> int:
        """How many processes were in the last round of all."""
        return next((of_loader[-1] for of_loader in reversed(self._sizes) if of_loader), self._watch.size)

    def _size_before(self) -> int:
        loader, number = self._place
        if number:
            return self._sizes[loader][number - 1]
        earlier = [of_loader for of_loader in self._sizes[:loader] if of_loader]
        return earlier[-1][-1] if earlier else self._watch.size

    def end(self) -> None:
        """Give the groups back."""
        for group in self._groups.values():
            dist.destroy_process_group(group)
        self._groups = {}


def begin_rounds(name: str, trainer: Trainer, watch: FailureWatch) -> Rounds | None:
    """The rounds of a Trainer's run; None, with a warning, where its processes don't deal batches in turn.

    All processes must call it, with the same name, which nobody else in this run has.
    """
    own = [None if count == float("inf") else int(count) for count in _batches_of_loaders(trainer)]
    counts = list(zip(*watch.values(f"{name} batches", own), strict=True))
    if all(_are_in_turn(of_loader) for of_loader in counts):
        return Rounds(name, watch, counts)
    rank_zero_warn(
        f"{name}: of their loaders the processes have {counts} batches, which are not dealt in "
        "turn, so each process remembers its own share of the stream alone; a CorruptionDataModule deals them in turn"
    )
    return None


def _batches_of_loaders(trainer: Trainer) -> list[float]:
    counts: Any = trainer.num_test_batches
    if trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.FITTING):
        counts = trainer.num_val_batches
    elif trainer.state.fn == TrainerFn.PREDICTING:
        counts = trainer.num_predict_batches
    return list(counts) if isinstance(counts, list) else [counts]


def _are_in_turn(batches: Sequence[int | None]) -> bool:
    """Whether numbers of batches are known, and no process has more than the one before it."""
    known = [its for its in batches if its is not None]
    return len(known) == len(batches) and known == sorted(known, reverse=True)
