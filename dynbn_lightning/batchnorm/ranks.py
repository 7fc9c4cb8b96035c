"""What the processes of `torch.distributed` tell each other; on one process, each function does the plain thing.

Every rank must call them, in the same order; an error on one is raised on all, so that none waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from dynbn_lightning.errors import DataError

T = TypeVar("T")


def gather_from_ranks(value: T) -> list[T]:
    """The `value` of every rank, in their order, on all of them; `[value]` where `torch.distributed` is not running."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def do_on_ranks(action: Callable[[], T]) -> list[T]:
    """What `action` returns on every rank.

    Raises:
        DataError: if it failed on another rank; its own error where it failed on this one.
    """
    error: Exception | None = None
    value: T | None = None
    try:
        value = action()
    except Exception as raised:
        error = raised
    answers = gather_from_ranks((value, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(answers):
        if message is not None:
            raise DataError(f"rank {rank} failed: {message}")
    return [its for its, _ in answers]  # type: ignore[misc]


def do_on_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on the first rank, which alone does it; the others go on when it is done.

    Raises:
        DataError: on the other ranks, if it failed; its own error on the first.
    """
    is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    return do_on_ranks(action if is_first else lambda: None)[0]  # type: ignore[return-value]
