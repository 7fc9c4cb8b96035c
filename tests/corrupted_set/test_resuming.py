"""Interrupted anywhere, the same call goes on, and what comes out is what one run writes."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corrupted_set_helpers import contents, write_images, write_set

from dynbn_lightning.corrupted_set import batches, layouts
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.errors import OutputError
from dynbn_lightning.files import unfinished_file

LAYOUTS = ["cifar", "imagenet"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in")


def raises_at(number: int, real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """`real`, which is interrupted at its call of that number."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return real(*args, **kwargs)

    return call


def is_whole(folder: Path) -> bool:
    """Whether the manifest says so of all three corruptions."""
    return len(json.loads((folder / "dynbn_corrupt.json").read_text())["whole"]) == 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (PixelDataset, "__getitem__"),  # reading: before anything is written, and later
        (batches, "corrupt_pixels"),
        (Path, "replace"),  # the last moment of every file: manifest, labels, arrays or images
        (np, "save"),
        (layouts.Image.Image, "save"),  # in another thread
    ],
)
def test_an_interrupt_at_every_point_loses_and_spoils_nothing(
    owner: Any, name: str, layout: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(source, tmp_path / "expected", layout=layout)
    expected = contents(tmp_path / "expected")
    real = getattr(owner, name)
    for number in range(1, 1000):
        output = tmp_path / f"out{number}"
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, raises_at(number, real, KeyboardInterrupt()))
            try:
                write_set(source, output, layout=layout)
            except KeyboardInterrupt:
                pass
            else:
                break  # it has fewer such points
        left = contents(output)
        manifest = left.pop("dynbn_corrupt.json", None)
        assert manifest is not None or not left, "nothing is written before it is said what"
        assert left.items() <= expected.items(), "files are whole or not there"
        write_set(source, output, layout=layout)
        assert contents(output) == expected
    assert contents(output) == expected
    if name in ("replace", "corrupt_pixels"):
        assert number > 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_killed_run_left_is_removed(
    layout: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(source, tmp_path / "expected", layout=layout)
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", raises_at(5, Path.replace, KeyboardInterrupt()))
        patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # killed, it tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            write_set(source, output, layout=layout)
    (output / ".dynbn_corrupt.abcd_123.json").write_bytes(b"half")
    left = [path for path in output.rglob("*") if unfinished_file(path.name)]
    assert len(left) == 2
    (output / ".not.ours.abcd_123.npy").write_bytes(b"mine")
    write_set(source, output, layout=layout)
    found = contents(output)
    assert found.pop(".not.ours.abcd_123.npy") == b"mine"
    assert found == contents(tmp_path / "expected")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_set_is_left_alone(layout: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    write_set(source, output, layout=layout)
    assert is_whole(output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    monkeypatch.setattr(batches, "corrupt_pixels", None)
    made = write_set(source, output, layout=layout)
    assert made.written == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


def test_a_set_knows_its_images_wherever_they_lie(source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "out")
    moved = source.rename(tmp_path / "elsewhere")
    assert write_set(moved, tmp_path / "out").written == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_removed_is_written_again_and_nothing_else(layout: str, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_set(source, output, layout=layout)
    expected = contents(output)
    names = {"cifar": ["labels.npy", "contrast.npy"], "imagenet": ["contrast/5/dog/001.JPEG"]}[layout]
    for name in names:
        (output / name).unlink()
    assert write_set(source, output, layout=layout).written == (12 if layout == "cifar" else 1)
    assert contents(output) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corruptions_may_be_added(layout: str, source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "expected", layout=layout)
    for corruptions in (("jpeg_compression",), ("contrast", "gaussian_noise")):
        write_set(source, tmp_path / "out", layout=layout, corruptions=corruptions)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_full_disk_is_named_and_the_same_call_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    full = OSError(errno.ENOSPC, "No space left on device")
    points = (("cifar", np.lib.format, "write_array_header_1_0"), ("imagenet", Path, "write_bytes"))
    for layout, owner, name in points:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, raises_at(2, getattr(owner, name), full))
            with pytest.raises(OutputError, match="No space left on device; whole files are kept"):
                write_set(source, output / layout, layout=layout)
        write_set(source, output / layout, layout=layout)
        assert is_whole(output / layout)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_shape(path: Path) -> None:
    np.save(path, np.load(path)[1:])


def other_type(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def pickled(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    path.write_bytes(buffer.getvalue())


def other_labels(path: Path) -> None:
    np.save(path, 1 - np.load(path))


@pytest.mark.parametrize("spoil", [cut, empty, other_shape, other_type, pickled])
@pytest.mark.parametrize("name", ["contrast.npy", "labels.npy"])
def test_arrays_that_are_not_of_the_set_are_named(
    name: str, spoil: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    write_set(source, tmp_path / "out")
    spoil(tmp_path / "out" / name)
    with pytest.raises(OutputError, match=rf"{name} .*remove it, or choose another output folder"):
        write_set(source, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    write_set(source, tmp_path / "out")


def test_other_labels_are_named(source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "out")
    other_labels(tmp_path / "out" / "labels.npy")
    with pytest.raises(OutputError, match=r"labels.npy holds other labels"):
        write_set(source, tmp_path / "out")
