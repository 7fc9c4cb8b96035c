"""Writing files that are whole or not there."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynbn_lightning.errors import DynBNError, OutputError

_FCNTL: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has none


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


@contextmanager
def os_errors_named(folder: Path) -> Iterator[None]:
    """Raise `OutputError` with the folder's name for what goes wrong while writing to it, such as a full disk."""
    try:
        yield
    except DynBNError:
        raise
    except OSError as error:
        raise OutputError(f"writing to {folder} stopped: {error}; whole files are kept") from error


class FolderLock:
    """Keeps other processes, and other locks of this one, from writing to a folder; gone when the process is."""

    def __init__(self) -> None:
        self._handle: int | None = None
        self._made: Path | None = None

    def take(self, folder: Path) -> None:
        """Lock a folder, made if missing; does nothing where the system has no such locks.

        Raises:
            OutputError: if another one has it.
        """
        self._made = None if folder.exists() else folder
        folder.mkdir(parents=True, exist_ok=True)
        if _FCNTL is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            _FCNTL.flock(handle, _FCNTL.LOCK_EX | _FCNTL.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise OutputError(
                f"another run is writing to {folder}: wait until it has finished, or write to another folder"
            ) from error
        except OSError:  # a file system without locks
            os.close(handle)
        else:
            self._handle = handle

    def give_back(self) -> None:
        """Unlock it, and remove it if it was made and is empty; does nothing if it isn't locked."""
        made, self._made = self._made, None
        if made is not None:
            with suppress(OSError):
                made.rmdir()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = give_back

    def __deepcopy__(self, memo: object) -> FolderLock:
        return FolderLock()

    def __reduce__(self) -> tuple[type[FolderLock], tuple[()]]:
        return FolderLock, ()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep others from writing to a folder, made if missing; `OutputError` if another one does."""
    lock = FolderLock()
    lock.take(folder)
    try:
        yield
    finally:
        lock.give_back()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
