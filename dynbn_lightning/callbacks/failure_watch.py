"""What the processes of a run tell each other of failures, so that none waits for one that has failed."""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from ..errors import RankError

PERIOD = 0.25
"""Seconds between two looks for a failure elsewhere."""
GRACE = 10.0
"""Seconds that a process may be in a collective after another one has failed; it would be there for ever, and ends."""
NO_SIGN = 60.0
"""Seconds without a sign of life after which a process is taken to be dead."""
HEARD = 3.0
"""Seconds, at most, that a process which fails waits until the others have heard of it: its end may end the store."""

_FAILED, _HEARD = "failed", "heard"
_runs = 0
_of_trainers: WeakKeyDictionary[Any, FailureWatch] = WeakKeyDictionary()


class FailureWatch:
    """Raises on all processes of a run what one of them has failed with.

    Over the store of `torch.distributed`, which works while collectives hang. A thread looks for failures of other
    processes; the steps of this one ask it with `check`. A process that waits in a collective, in which nothing can be
    raised, is ended.

    Args:
        store: that the processes share.
        rank: of this process.
        size: how many there are.

    Attributes:
        users: the callbacks that have not ended their run.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.users: list[Any] = []
        self.failure: str | None = None
        self._store, self._look_store = store, _with_own_connection(store)
        self._over, self._all_are_through = threading.Event(), False
        self._in_collective_since: float | None = None
        self._signs = _SignsOfLife(self._look_store, self.rank, self.size)
        self._thread = threading.Thread(target=self._look, name="dynbn failure watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `RankError` if another process has failed."""
        if self.failure is not None:
            raise RankError(self.failure)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Note that this process is in a collective, in which it could wait for one that has failed."""
        self._in_collective_since = time.monotonic()
        try:
            yield
        finally:
            self._in_collective_since = None

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process has failed; does nothing if another one did before."""
        with suppress(Exception):  # what went wrong is already on its way to the user
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, f"process {self.rank} failed: {type(error).__name__}: {error}")
            self.failure = self._store.get(_FAILED).decode()
            deadline = time.monotonic() + HEARD
            while int(self._store.add(_HEARD, 0)) < self.size - 1 and time.monotonic() < deadline:
                time.sleep(PERIOD / 10)
        if not (self.failure is None or self._is_own(self.failure) or isinstance(error, RankError)):
            # What an ended collective raises explains nothing.
            getattr(error, "add_note", warnings.warn)(f"before this, {self.failure}")

    def _is_own(self, failure: str) -> bool:
        return failure.startswith(f"process {self.rank} ")

    def meet(self, place: str, arrivals: int) -> None:
        """Wait until there were so many arrivals at a place, this one among them.

        Raises:
            RankError: if a process fails before.
        """
        self._wait(lambda new: int(self._store.add(place, new)) >= arrivals)

    def all_are_through(self) -> None:
        """Note that all processes have made their steps: one that is gone from now on was not needed any more."""
        self._all_are_through = True

    def values(self, name: str, value: Any) -> list[Any]:
        """A value that JSON can write, from each process, in their order; all of them must ask.

        Raises:
            RankError: if one of them fails before.
        """
        keys = [f"{name}/{rank}" for rank in range(self.size)]

        def all_are_there(new: int) -> bool:
            if new:
                self._store.set(keys[self.rank], json.dumps(value))
            return bool(self._store.check(keys))

        self._wait(all_are_there)
        return [json.loads(self._store.get(key)) for key in keys]

    def _wait(self, is_there: Callable[[int], bool]) -> None:
        new, pause = 1, 0.0
        while True:
            try:
                if is_there(new):
                    return
            except dist.DistError as error:
                raise RankError(f"process 0 is gone ({type(error).__name__})") from error
            self.check()
            time.sleep(pause)
            new, pause = 0, min(pause + 0.0002, 0.01)

    def stop(self) -> None:
        """Look no longer."""
        self._over.set()
        if self._thread is not threading.current_thread():
            # A thread that comes back from the store while Python ends takes the process down with it.
            self._thread.join(timeout=GRACE)

    def _look(self) -> None:
        while not self._over.wait(PERIOD):
            try:
                failed = self._look_store.check([_FAILED])
                failure = self._look_store.get(_FAILED).decode() if failed else self._signs.missing()
            except Exception as error:  # the first process, which keeps the store, is gone
                failure = f"process 0 is gone ({type(error).__name__})"
                failed = False
            if failure is None or (self._all_are_through and not failed):
                continue
            if not self._is_own(failure):
                self.failure = failure
                with suppress(Exception):
                    self._look_store.add(_HEARD, 1)
                self._end_what_hangs(time.monotonic())
            return

    def _end_what_hangs(self, since: float) -> None:
        while not self._over.wait(PERIOD):
            entered = self._in_collective_since
            if entered is not None and time.monotonic() - max(since, entered) > GRACE:
                print(f"{self.failure}; process {self.rank} waits for it and ends", file=sys.stderr, flush=True)
                os._exit(1)


class _SignsOfLife:
    """Gives signs of this process's life, and looks for those of others; a killed one tells nobody that it fails."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._own = store, f"alive/{rank}"
        self._keys = {f"alive/{other}": other for other in range(size) if other != rank}
        self._last: dict[str, tuple[int, float]] = {}
        self._next = 0.0
        store.add(self._own, 1)

    def missing(self) -> str | None:
        """Which process gave no sign for too long."""
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + NO_SIGN / 30
        self._store.add(self._own, 1)
        for key, rank in self._keys.items():
            count = int(self._store.add(key, 0))
            if self._last.get(key, (-1, 0.0))[0] != count:
                self._last[key] = count, now
            elif count and now - self._last[key][1] > NO_SIGN:
                return f"process {rank} gave no sign of life for {NO_SIGN:.0f} s"
        return None


def _with_own_connection(store: Any) -> Any:
    """The same store through another connection, where torch can: one that waits keeps others from asking."""
    try:
        return store.clone()
    except Exception:
        return store


def begin_watch(trainer: Any, user: Any) -> FailureWatch | None:
    """The watch of a Trainer's run, for one of its callbacks; None on a single process.

    The first callback that asks begins it, and one that has asked before begins that of another run. All processes
    must ask.
    """
    global _runs
    watch = _of_trainers.get(trainer)
    if watch is not None and (user in watch.users or watch._over.is_set()):
        stop_watch(trainer)
        watch = None
    if trainer.world_size == 1 or not (dist.is_available() and dist.is_initialized()):
        return None
    if watch is None:
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        _runs += 1
        store = PrefixStore(f"dynbn/{_runs}", _get_default_store())
        watch = _of_trainers[trainer] = FailureWatch(store, trainer.global_rank, trainer.world_size)
    watch.users.append(user)
    return watch


@atexit.register
def _stop_all() -> None:
    for watch in list(_of_trainers.values()):
        watch.stop()


def watch_of(trainer: Any) -> FailureWatch | None:
    """The watch of a Trainer's run, where one of its callbacks has begun it."""
    return _of_trainers.get(trainer)


def end_watch(trainer: Any, user: Any) -> None:
    """End the watch of a Trainer's run for one of its callbacks; it ends with the last of them."""
    watch = _of_trainers.get(trainer)
    if watch is not None:
        watch.users = [other for other in watch.users if other is not user]
        if not watch.users:
            stop_watch(trainer)


def stop_watch(trainer: Any, error: BaseException | None = None) -> None:
    """End the watch of a Trainer's run, where there is one; with an error, tell the others of it."""
    watch = _of_trainers.pop(trainer, None)
    if watch is not None:
        if error is not None:
            watch.tell(error)
        watch.stop()
