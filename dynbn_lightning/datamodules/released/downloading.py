"""Downloads that go on after an interruption, and archives that are unpacked whole."""

from __future__ import annotations

import gzip
import http
import http.client
import lzma
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from ...errors import DataError, OutputError
from ...progress import progress_bar

TRIES = 3
"""How often an interrupted download is gone on with before giving up."""
WAIT = 1.0
"""Seconds between two tries."""

_CHUNK = 2**20
_LARGE = 100 * 2**20  # unpacking what is smaller takes no time that a bar is for
_TIMEOUT = 60


class _Interrupted(Exception):
    """A download that ended early, and may be gone on with."""


def download(url: str, path: Path, *, progress: bool = True) -> None:
    """Download a file, going on where an interrupted download of it came to.

    What came so far is in `path` with `.part` behind its name; `path` itself is there when it is whole.

    Args:
        url: of the file.
        path: where it goes.
        progress: show a progress bar.

    Raises:
        DataError: if the server can't be reached, refuses, or breaks off again and again.
        OutputError: if nothing can be written, as on a full disk; what came is kept.
    """
    part = path.with_name(path.name + ".part")
    with progress_bar(shown=progress, of_bytes=True) as bar:
        task = bar.add_task(path.name, total=None)
        for tried in range(1, TRIES + 1):
            try:
                _go_on(url, part, bar, task)
                break
            except urllib.error.HTTPError as error:
                raise DataError(f"{url} can't be downloaded to {path}: the server says {error}") from error
            except (
                _Interrupted,
                urllib.error.URLError,
                http.client.HTTPException,
                TimeoutError,
                ConnectionError,
            ) as why:
                if tried == TRIES:
                    kept = f"what came is kept in {part}, and the same call goes on with it" if part.exists() else ""
                    raise DataError(f"{url} can't be downloaded to {path} ({why}); {kept or 'try again'}") from why
                time.sleep(WAIT)
    try:
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{part} can't be renamed to {path}: {error}") from error


def _go_on(url: str, part: Path, bar: Progress, task: TaskID) -> None:
    begun = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "dynbn-lightning", **({"Range": f"bytes={begun}-"} if begun else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not begun:
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{begun}":
            return  # it was all there
        part.unlink()
        raise _Interrupted("what was there is not of this file") from error
    with answer:
        if begun and not _continues(answer, begun):  # the server sends all of it again
            begun = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else begun + int(length)
        bar.update(task, total=total, completed=begun)
        got = _write(answer, part, begun, bar, task)
    if total is not None and got < total:
        raise _Interrupted(f"the connection ended after {got} of {total} bytes")


def _continues(answer: Any, begun: int) -> bool:
    said = str(answer.headers.get("Content-Range", ""))
    return answer.status == http.HTTPStatus.PARTIAL_CONTENT and said.startswith(f"bytes {begun}-")


def _write(answer: Any, part: Path, begun: int, bar: Progress, task: TaskID) -> int:
    got = begun
    try:
        file = part.open("ab" if begun else "wb")
    except OSError as error:
        raise OutputError(f"{part} can't be written: {error}") from error
    with file:
        while chunk := answer.read(_CHUNK):
            try:
                file.write(chunk)
                file.flush()  # here, not when it is closed, a full disk can be told from a network error
            except OSError as error:
                raise OutputError(f"{part} can't be written: {error}; what came is kept") from error
            got += len(chunk)
            bar.update(task, completed=got)
    return got


def unpack(archive: Path, folder: Path, *, progress: bool = True) -> None:
    """Unpack a tar file, compressed or not; nothing of it may lie outside the folder.

    Args:
        archive: the tar file.
        folder: where it goes.
        progress: show a progress bar, of the bytes of the archive, if it takes long.

    Raises:
        DataError: if it is damaged, or no tar file.
        OSError: if nothing can be written.
    """
    try:
        with (
            archive.open("rb") as file,
            tarfile.open(fileobj=file) as tar,
            progress_bar(shown=progress and archive.stat().st_size > _LARGE, of_bytes=True) as bar,
        ):
            task = bar.add_task(f"unpacking {archive.name}", total=archive.stat().st_size)
            for member in tar:
                _write_member(tar, member, folder)
                bar.update(task, completed=file.tell())
            bar.update(task, completed=archive.stat().st_size)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive} can't be unpacked ({error}): it is damaged; remove it to download it anew"
        ) from error


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # By hand: the filter of `extractall` that keeps members inside is not in every Python that we support.
    target = folder / member.name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise tarfile.TarError(f"{member.name} would lie outside the folder")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise tarfile.TarError(f"{member.name} is no file and no folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
