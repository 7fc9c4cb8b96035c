"""Downloads of released sets, from a server on this machine: resumed, checked, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodule_helpers import run_test
from released_sets import chw, write_arrays, write_folders

from dynbn_lightning import CorruptionDataModule
from dynbn_lightning.datamodules import CIFAR10C, ImageNet3DCC, ImageNetC, ReleasedSet
from dynbn_lightning.datamodules.released import archive as archive_module
from dynbn_lightning.datamodules.released import downloading
from dynbn_lightning.errors import DataError, OutputError


class Server:
    """Serves bytes by path, with ranges or not, and may end a connection early."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.ranges = True
        self.end_after: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.asked.append((self.path, wanted))
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and outer.ranges else 0
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if wanted and outer.ranges else 200)
                if wanted and outer.ranges:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                length = outer.end_after.pop(0) if outer.end_after else len(content)
                self.wfile.write(content[start : start + length])

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloading, "WAIT", 0.0)
    its = Server()
    yield its
    its.close()


def tar_of(folder: Path, mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as tar:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return content.getvalue()


def serve(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    reader: type[ReleasedSet],
    archives: dict[int, bytes],
    **change: Any,
) -> None:
    """Let a reader's archives be these, by their number."""
    served = list(reader.archives)
    for number, content in archives.items():
        server.files[f"/{served[number].file_name}"] = content
    for number, archive in enumerate(served):
        md5 = None if archive.md5 is None else hashlib.md5(archives.get(number, b"")).hexdigest()
        served[number] = replace(archive, url=f"{server.url}/{archive.file_name}", **{"md5": md5, **change})
    monkeypatch.setattr(reader, "archives", tuple(served))


def cifar_tar(tmp_path: Path) -> tuple[dict[str, Any], bytes]:
    written = write_arrays(tmp_path / "made" / "CIFAR-10-C", ("fog", "contrast"))
    return written, tar_of(tmp_path / "made")


def listing(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != ".CIFAR-10-C.lock")


def test_a_set_is_downloaded_by_prepare_and_not_before(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog", "contrast"))
    data = CorruptionDataModule(None, test=released, severities=(5,), batch_size=8)
    assert not server.asked
    assert not (tmp_path / "data").exists()
    images = run_test(data).images("test")
    assert len(server.asked) == 1
    assert torch.equal((images["fog/5", 11] * 255).round().byte(), chw(written["fog"][-1]))
    assert listing(tmp_path / "data") == ["CIFAR-10-C"]
    CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",)).prepare()
    assert len(server.asked) == 1, "nothing is missing"


def test_only_the_archives_that_are_needed(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "weather", ("fog", "snow", "frost", "brightness"))
    write_folders(tmp_path / "extra" / "deeper", ("spatter", "saturate", "speckle_noise", "gaussian_blur"))
    serve(server, monkeypatch, ImageNetC, {2: tar_of(tmp_path / "weather"), 4: tar_of(tmp_path / "extra")})
    released = ImageNetC(tmp_path / "data", download=True, corruptions=("fog", "snow"))
    released.prepare()
    assert [path for path, _ in server.asked] == ["/ImageNet-C.weather.tar"]
    assert sorted(os.listdir(tmp_path / "data" / "ImageNet-C")) == ["brightness", "fog", "frost", "snow"]
    released.prepare(("fog", "spatter"))
    assert [path for path, _ in server.asked[1:]] == ["/ImageNet-C.extra.tar"]
    assert len(ImageNetC(tmp_path / "data", corruptions=("fog", "snow", "spatter"))) == 6
    with pytest.raises(DataError, match=r"noise\.tar.*404"):
        released.prepare(("shot_noise",))


def test_nothing_is_fetched_that_was_not_asked_for(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, monkeypatch, ImageNetC, {})
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    data = CorruptionDataModule(None, test=ImageNetC(tmp_path, download=True), corruptions=("fog",), batch_size=8)
    assert len(data.cells) == 5
    assert len(run_test(data).images("test")) == 5 * 6
    assert not server.asked
    shutil.rmtree(tmp_path / "ImageNet-C" / "fog" / "4")
    with pytest.raises(DataError, match="has only a part of fog, it lacks fog/4/"):
        ImageNetC(tmp_path, download=True).prepare(("fog",))
    assert not server.asked


def test_archives_without_a_checksum(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "made", ("flash",))
    whole = tar_of(tmp_path / "made", "w:gz")
    serve(server, monkeypatch, ImageNet3DCC, {3: whole, 4: whole})
    released = ImageNet3DCC(tmp_path / "data", download=True, corruptions=("flash",))
    assert len(released) == 6
    with pytest.raises(DataError, match=r"color_quant\.tar\.gz, from .* lacks color_quant"):
        released.prepare(("color_quant",))
    server.files["/ImageNet-3DCC.color_quant.tar.gz"] = whole[: len(whole) // 2]
    (tmp_path / "data" / "ImageNet-3DCC.color_quant.tar.gz").unlink()
    with pytest.raises(DataError, match=r"color_quant\.tar\.gz can't be unpacked .*damaged"):
        released.prepare(("color_quant",))
    assert sorted(os.listdir(tmp_path / "data" / "ImageNet-3DCC")) == ["flash"]
    assert not list((tmp_path / "data").glob(".*unpacking*"))


def test_an_interrupted_download_goes_on(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    server.end_after = [1000, 500]
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))
    assert len(released) == 12
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1500-"]


def test_a_download_that_gives_up_is_gone_on_with_by_the_next_call(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    server.end_after = [1000, 0, 10]
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))
    message = rf"{server.url}/CIFAR-10-C\.tar can't .*{tmp_path}.*1010 of {len(content)}.*CIFAR-10-C\.tar\.part"
    with pytest.raises(DataError, match=message):
        released.prepare()
    assert (tmp_path / "data" / "CIFAR-10-C.tar.part").read_bytes() == content[:1010]
    assert not (tmp_path / "data" / "CIFAR-10-C").exists()
    server.asked.clear()
    assert len(released) == 12
    assert server.asked[0][1] == "bytes=1010-"


@pytest.mark.parametrize("case", ["no ranges", "all there", "too much there"])
def test_going_on_where_servers_differ(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    server.ranges = case != "no ranges"
    (tmp_path / "data").mkdir()
    there = {"no ranges": b"x" * 1000, "all there": content, "too much there": content + b"x"}[case]
    (tmp_path / "data" / "CIFAR-10-C.tar.part").write_bytes(there)
    assert len(CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))) == 12
    assert len(server.asked) == (2 if case == "too much there" else 1)
    assert listing(tmp_path / "data") == ["CIFAR-10-C"]


def test_a_wrong_checksum_is_named_and_the_file_removed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content}, md5="0" * 32)
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))
    right = hashlib.md5(content).hexdigest()
    with pytest.raises(DataError, match=rf"CIFAR-10-C\.tar, from {server.url}.*{right} where 0000.*removed"):
        released.prepare()
    assert listing(tmp_path / "data") == []
    (tmp_path / "data" / "CIFAR-10-C.tar").write_bytes(content)
    with pytest.raises(DataError, match="left as it is: remove it"):
        released.prepare()
    assert listing(tmp_path / "data") == ["CIFAR-10-C.tar"]


def test_an_archive_that_is_there_is_used_and_left_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "CIFAR-10-C.tar").write_bytes(content)
    assert len(CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))) == 12
    assert not server.asked
    assert listing(tmp_path / "data") == ["CIFAR-10-C", "CIFAR-10-C.tar"]


def test_files_that_are_there_are_kept(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    written, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    own = write_arrays(tmp_path / "data" / "CIFAR-10-C", ("contrast",), count=12)["contrast"]
    own = own[::-1].copy()
    np.save(tmp_path / "data" / "CIFAR-10-C" / "contrast.npy", own)
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog", "contrast"))
    released.prepare()
    assert torch.equal(released.image(0, "fog/1"), chw(written["fog"][0]))
    assert torch.equal(released.image(0, "contrast/1"), chw(own[0]))


def _prepare(root: Path, url: str, md5: str, slow: bool) -> None:
    archive = replace(CIFAR10C.archives[0], url=url, md5=md5)
    CIFAR10C.archives = (archive,)
    if slow:
        unpack = downloading.unpack

        def slowly(archive: Path, folder: Path) -> None:
            unpack(archive, folder)
            (root / "unpacked").touch()
            time.sleep(60)

        archive_module.unpack = slowly  # type: ignore[assignment]
    CIFAR10C(root, download=True, corruptions=("fog",)).prepare()


def test_a_process_killed_while_unpacking_leaves_no_set(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    root, archive = tmp_path / "data", CIFAR10C.archives[0]
    process = multiprocessing.get_context("fork").Process(target=_prepare, args=(root, archive.url, archive.md5, True))
    process.start()
    while not (root / "unpacked").exists():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert not (root / "CIFAR-10-C").exists()
    assert list(root.glob(".CIFAR-10-C.unpacking-*"))
    released = CIFAR10C(root, download=True, corruptions=("fog", "contrast"))
    assert not released.is_there
    assert len(released) == 12
    assert len(server.asked) == 1, "the archive was whole"
    assert not list(root.glob(".CIFAR-10-C.unpacking-*"))


def test_one_of_several_processes_downloads(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    archive = CIFAR10C.archives[0]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_prepare, args=(tmp_path / "data", archive.url, archive.md5, False)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.asked) == 1
    assert listing(tmp_path / "data") == ["CIFAR-10-C"]


@pytest.mark.parametrize(
    ("names", "link", "why"),
    [
        (["../../escaped.npy"], None, "would lie outside the folder"),
        (["/{root}/escaped.npy"], None, "would lie outside the folder"),
        (["way", "way/escaped.npy"], "{root}", "is no file and no folder"),
    ],
)
def test_members_outside_the_folder_are_refused(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, names: list[str], link: str | None, why: str
) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name.format(root=tmp_path))
            if link is not None and name == names[0]:
                member.type, member.linkname = tarfile.SYMTYPE, link.format(root=tmp_path)
            tar.addfile(member)
    serve(server, monkeypatch, CIFAR10C, {0: content.getvalue()})
    with pytest.raises(DataError, match=rf"CIFAR-10-C\.tar can't be unpacked \(.*{why}"):
        CIFAR10C(tmp_path / "data" / "deep", download=True, corruptions=("fog",)).prepare()
    assert not list(tmp_path.rglob("escaped.npy"))


def test_what_stops_a_download_is_named(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = cifar_tar(tmp_path)
    serve(server, monkeypatch, CIFAR10C, {0: content})
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "CIFAR-10-C.tar.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"CIFAR-10-C\.tar\.part can't be written: .*No space left"):
        released.prepare()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        CIFAR10C(tmp_path / "file", download=True, corruptions=("fog",)).prepare()
    server.close()
    with pytest.raises(DataError, match=rf"{server.url}/CIFAR-10-C\.tar can't be downloaded to .*refused"):
        CIFAR10C(tmp_path / "other", download=True, corruptions=("fog",)).prepare()
