"""The progress bar of long work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def progress_bar(*, shown: bool, of_bytes: bool = False) -> Progress:
    """A bar with a description, a count and the time left; prints nothing unless `shown`, and on the first process."""
    # Which one torchrun, SLURM and Lightning say; torch.distributed would be imported here even for --help.
    ranks = [os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK")]
    shown = shown and set(ranks) == {"0"}
    count = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description:<34}"), BarColumn(), count, TimeRemainingColumn())
    return Progress(*columns, console=Console(quiet=not shown))


def shown_if_slow(items: Sequence[T], description: str, *, after: float = 3.0) -> Iterator[T]:
    """The items, with a progress bar from when they have taken so many seconds."""
    begun, bar = time.monotonic(), progress_bar(shown=True)
    task = bar.add_task(description, total=len(items))
    try:
        for done, item in enumerate(items):
            bar.update(task, completed=done)
            if time.monotonic() - begun >= after:
                bar.start()  # which does nothing where it was started
            yield item
        bar.update(task, completed=len(items))
    finally:
        if bar.live.is_started:  # else it would print an empty line
            bar.stop()
