"""The archives that sets were released in: downloaded, checked, and unpacked whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.utils import calculate_md5

from ...errors import DataError, OutputError, first_few
from ...files import FolderLock
from .downloading import download, unpack

_DEPTH = 4


@dataclass(frozen=True)
class Archive:
    """A tar file that a set, or a part of one, was released in.

    Attributes:
        url: where it is.
        md5: its published checksum; None where none is published. Then all that can be checked is that it unpacks
            whole and holds what it should.
        corruptions: what it holds.
        file_name: what to call it here; names of archives are not all different.
    """

    url: str
    md5: str | None
    corruptions: tuple[str, ...]
    file_name: str

    def fetch(
        self,
        root: Path,
        folder: Path,
        entries: Iterable[str],
        whole: Callable[[Path], bool],
        welcome: Iterable[str] = (),
    ) -> None:
        """Download it to `root`, unless it is there, and put entries of it into `folder`.

        An interrupted download is gone on with. Everything is unpacked beside the folder and then renamed into place,
        so that what is there is whole. An archive that was downloaded now is removed at the end, one that was there
        already is left there.

        Args:
            root: where the archive goes.
            folder: where the entries go; made if missing.
            entries: names of files and folders, anywhere in the archive, that must be in it.
            whole: tells whether an unpacked entry is.
            welcome: names of others, which are put there too where they are in it and whole.

        Raises:
            DataError: for network errors, a wrong checksum, and an archive that is damaged or lacks entries.
            OutputError: if nothing can be written.
        """
        archive, needed = root / self.file_name, set(entries)
        was_there = archive.exists()
        if not was_there:
            download(self.url, archive)
        self._check(archive, was_there=was_there)
        try:
            for left in root.glob(f".{folder.name}.unpacking-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            unpacked = Path(tempfile.mkdtemp(prefix=f".{folder.name}.unpacking-", dir=root))
            try:
                unpack(archive, unpacked)
                found = _find(unpacked, needed | set(welcome))
                found = {name: path for name, path in found.items() if whole(path)}
                self._move(found, needed, folder, unpacked / ".whole")
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
            if not was_there:
                archive.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{archive} can't be unpacked to {folder}: {error}") from error

    def _check(self, archive: Path, *, was_there: bool) -> None:
        if self.md5 is None:
            return
        found = calculate_md5(str(archive))
        if found == self.md5:
            return
        if was_there:
            what = "it is left as it is: remove it to download it anew"
        else:
            archive.unlink(missing_ok=True)
            what = "it was removed: try again"
        raise DataError(f"{archive}, from {self.url}, has the MD5 checksum {found} where {self.md5} is right; {what}")

    def _move(self, found: dict[str, Path], needed: set[str], folder: Path, staged: Path) -> None:
        lacking = sorted(needed - found.keys())
        if lacking:
            raise DataError(f"{self.file_name}, from {self.url}, lacks {first_few(lacking)}, or not all is there")
        if not folder.exists():
            staged.mkdir()
            for name, path in found.items():
                path.rename(staged / name)
            staged.rename(folder)
            return
        for name, path in found.items():
            if not (folder / name).exists():
                path.rename(folder / name)


@contextmanager
def one_at_a_time(root: Path, name: str) -> Iterator[None]:
    """Waits until no other process works on this set, where the system has locks.

    Args:
        root: a folder, made if missing.
        name: of the set.
    """
    lock, locked = FolderLock(), root / f".{name}.lock"
    try:
        locked.mkdir(parents=True, exist_ok=True)  # and left there: whoever removes it may unlock what others wait for
    except OSError as error:
        raise OutputError(f"{root} can't be made: {error}") from error
    while True:
        try:
            lock.take(locked)
            break
        except OutputError:
            time.sleep(0.2)
        except OSError as error:
            raise OutputError(f"nothing can be written to {root}: {error}") from error
    try:
        yield
    finally:
        lock.give_back()


def _find(folder: Path, names: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name in names:
                found.setdefault(name, Path(path) / name)
        # Not into what was found, which may hold a million files.
        deep = len(Path(path).relative_to(folder).parts) >= _DEPTH
        folders[:] = [] if deep else [name for name in folders if name not in names]
    return found
