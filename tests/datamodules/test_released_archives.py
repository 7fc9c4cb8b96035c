"""What of an archive is put into place, and where nothing is."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from released_sets import write_arrays, write_folders
from rich.progress import Progress

from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, EXTRA_CORRUPTIONS
from dynbn_lightning.datamodules import CIFAR10C, ImageNetC, ReleasedSet
from dynbn_lightning.datamodules.released import downloading
from dynbn_lightning.errors import DataError
from dynbn_lightning.progress import shown_if_slow


def put_archive(root: Path, content: Path, reader: type[ReleasedSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of the reader's that holds the corruptions in a folder, as if it were downloaded by hand."""
    holds = {path.name.removesuffix(".npy") for path in content.rglob("*")}
    number = next(number for number, one in enumerate(reader.archives) if holds & set(one.corruptions))
    archives = list(reader.archives)
    root.mkdir(exist_ok=True)
    with tarfile.open(root / archives[number].file_name, "w") as tar:
        tar.add(content, content.name)
    md5 = hashlib.md5((root / archives[number].file_name).read_bytes()).hexdigest()
    archives[number] = replace(archives[number], md5=md5, url="http://127.0.0.1:1/nothing")
    monkeypatch.setattr(reader, "archives", tuple(archives))


def test_all_of_an_archive_is_put_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_arrays(tmp_path / "CIFAR-10-C", (*COMMON_CORRUPTIONS, *EXTRA_CORRUPTIONS[:2]), count=1)
    put_archive(root, tmp_path / "CIFAR-10-C", CIFAR10C, monkeypatch)
    CIFAR10C(root, download=True).prepare()
    (root / "CIFAR-10-C.tar").unlink()
    names = (*COMMON_CORRUPTIONS, *EXTRA_CORRUPTIONS[:2], "labels")
    assert sorted(os.listdir(root / "CIFAR-10-C")) == sorted(f"{name}.npy" for name in names)
    CIFAR10C(root, download=True, corruptions=EXTRA_CORRUPTIONS[:2]).prepare()
    with pytest.raises(DataError, match="can't be downloaded"):
        CIFAR10C(root, download=True, corruptions=EXTRA_CORRUPTIONS[2:]).prepare()


def test_what_is_there_stays_and_what_is_broken_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_folders(tmp_path / "weather", ("snow", "fog", "frost", "brightness"))
    shutil.rmtree(tmp_path / "weather" / "brightness" / "4")
    put_archive(root, tmp_path / "weather", ImageNetC, monkeypatch)
    write_folders(root / "ImageNet-C" / "weather", ("frost",), severities=(2,))
    ImageNetC(root, download=True, corruptions=("fog",)).prepare()
    assert sorted(os.listdir(root / "ImageNet-C")) == ["fog", "snow", "weather"], "frost is in a folder of its group"
    assert os.listdir(root / "ImageNet-C" / "weather" / "frost") == ["2"]
    with pytest.raises(DataError, match=r"weather\.tar, from .* lacks brightness"):
        ImageNetC(root, download=True, corruptions=("brightness",)).prepare()


def test_nothing_is_downloaded_into_a_set_that_dynbn_corrupt_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "CIFAR-10-C"
    write_corrupted_set("shapes", folder, corruptions=("fog",), severities=(1,), progress=False)
    with pytest.raises(DataError, match=r"CIFAR-10-C was written by dynbn corrupt, and .*another root="):
        CIFAR10C(tmp_path, download=True)
    (folder / "dynbn_corrupt.json").write_text("{")
    for download in (True, False):
        with pytest.raises(DataError, match=r"dynbn_corrupt\.json says nothing of a corrupted set"):
            CIFAR10C(tmp_path, download=download)


class Bars:
    """What the progress bars that were started said at their end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[str, Any, float]] = []
        started: set[int] = set()
        start, stop = Progress.start, Progress.stop

        def starting(bar: Progress) -> None:
            started.add(id(bar))
            start(bar)

        def stopping(bar: Progress) -> None:
            if id(bar) in started:
                self.said += [(task.description, task.total, task.completed) for task in bar.tasks]
            stop(bar)

        monkeypatch.setattr(Progress, "start", starting)
        monkeypatch.setattr(Progress, "stop", stopping)


def test_bars_of_downloads_and_of_unpacking_end_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars(monkeypatch)
    write_arrays(tmp_path / "made", ("fog",), count=3)
    np.save(tmp_path / "made" / "large.npy", np.zeros(2_500_001, dtype=np.uint8))
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz", compresslevel=1) as tar:
        tar.add(tmp_path / "made", "made")
    size = (tmp_path / "made.tar.gz").stat().st_size
    downloading.download((tmp_path / "made.tar.gz").as_uri(), tmp_path / "came.tar.gz")
    downloading.unpack(tmp_path / "came.tar.gz", tmp_path / "unpacked")
    assert bars.said == [("came.tar.gz", size, size), ("unpacking came.tar.gz", size, size)]
    for path in (tmp_path / "made").iterdir():
        assert (tmp_path / "unpacked" / "made" / path.name).read_bytes() == path.read_bytes()


def test_only_what_takes_long_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars(monkeypatch)
    assert list(shown_if_slow("abc", "quick")) == ["a", "b", "c"]
    assert bars.said == []
    assert capsys.readouterr().out == ""
    assert list(shown_if_slow("abc", "slow", after=0)) == ["a", "b", "c"]
    assert bars.said == [("slow", 3, 3)]
    assert "slow" in capsys.readouterr().out
