"""Writing files that are whole or not there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynbn_lightning.errors import OutputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it at the end; on failure or interrupt, `path` is left as it was.

    Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished_file(name: str) -> str | None:
    """The name of the file that `whole_file` was making when it was killed and left `name` behind; None for others."""
    left = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(\.[^.]+)", name)
    return None if left is None else left[1] + left[2]


def check_output_folder(folder: Path) -> None:
    """Raise `OutputError` if `folder` cannot be made or written to; makes nothing yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"cannot write to {folder}: {existing} is a file, and a folder is needed there")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: no permission to write in {existing}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
