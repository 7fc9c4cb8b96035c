"""Two processes that write to one folder, and disks that are full while one does."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paused_writers import WRITERS, wait_for
from PIL import Image

from dynbn_lightning.errors import OutputError
from dynbn_lightning.reporting import ImageRecords, methods_of, read_results, results


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def numbers_in(folder: Path) -> dict[str, Any]:
    """The accuracies of each cell, or the arrays of a corrupted set."""
    if (folder / "results.json").exists():
        block = methods_of(read_results(folder))["source"]
        return {"clean": block["clean"], **block["cells"]}
    return {path.name: np.load(path).tolist() for path in folder.glob("[!.]*.npy")}


def nothing(*args: Any) -> None:
    pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, write in WRITERS.items():
        write(folder / name, nothing)
    return {name: numbers_in(folder / name) for name in WRITERS}


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    script = Path(__file__).with_name("paused_writers.py")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def test_one_process_writes_at_a_time_and_another_goes_on_when_it_has_finished_or_was_killed(
    tmp_path: Path, other_process: subprocess.Popen[bytes], undisturbed: dict[str, dict[str, Any]]
) -> None:
    for name, write in WRITERS.items():
        output = tmp_path / name
        wait_for(tmp_path / f"{name}.paused")
        before = files_in(output)
        with pytest.raises(OutputError, match=f"another run is writing to {output}: wait until it has finished"):
            write(output, nothing)
        assert files_in(output) == before
        if name == "corrupt":
            other_process.kill()
            other_process.wait()
            assert numbers_in(output) != undisturbed[name]
        else:
            (tmp_path / f"{name}.go").touch()
            wait_for(tmp_path / f"{name}.done")
            assert numbers_in(output) == undisturbed[name]
        write(output, nothing)
        assert numbers_in(output) == undisturbed[name]


# Full disks


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.filterwarnings("ignore:.*no example images")
@pytest.mark.parametrize("name", ["evaluate", "report"])
@pytest.mark.parametrize(
    ("owner", "method"),
    [(Path, "write_bytes"), (results.json, "dump"), (Path, "replace")],
    ids=["records", "results.json", "any file"],
)
def test_a_disk_that_is_full_at_the_end_is_named_and_the_same_call_goes_on(
    name: str,
    owner: Any,
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, dict[str, Any]],
) -> None:
    output, write = tmp_path / name, WRITERS[name]
    message = f"writing to {output} stopped: .*No space left on device; whole files are kept"
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, full)
        with pytest.raises(OutputError, match=message):
            write(output, nothing)
    assert not (output / "results.json").exists()
    assert not list(output.rglob(".*"))
    for path in output.rglob("*.safetensors"):
        ImageRecords.load(path)
    write(output, nothing)
    assert numbers_in(output) == undisturbed[name]


def test_a_page_that_does_not_fit_on_the_disk_is_named_and_the_numbers_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr("dynbn_lightning.callbacks.corruption_report.write_report", full)
    with pytest.raises(OutputError, match=f"writing to {tmp_path} stopped: .*No space left on device"):
        WRITERS["report"](tmp_path, nothing)
    assert numbers_in(tmp_path) == undisturbed["report"]


@pytest.mark.parametrize("name", ["evaluate", "report"])
def test_examples_that_do_not_fit_on_the_disk_end_no_test(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, dict[str, Any]]
) -> None:
    monkeypatch.setattr("dynbn_lightning.callbacks.corruption_report.write_report", nothing)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.warns(UserWarning, match="no example images: .*No space left on device"):
        WRITERS[name](tmp_path, nothing)
    assert numbers_in(tmp_path) == undisturbed[name]
    assert not list(tmp_path.rglob("*.png"))
