"""The command that makes the pictures of the README and of the concept pages, on a short demo."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dynbn_lightning.demo import demo

COMMAND = Path(__file__).parent.parent / "docs" / "pictures.py"
PICTURES = (
    "concept_bank.png",
    "concept_detection.png",
    "concept_routing.png",
    "concept_streams.png",
    "overview.png",
)


@pytest.fixture(scope="session")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "demo"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="calibration gained nothing")  # one epoch is no detector
        demo(folder, accelerator="cpu", short=True, console=Console(quiet=True))
    return folder


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], int]:
    """What the command does, in this process: importing takes longer than drawing."""
    spec = importlib.util.spec_from_file_location("docs_pictures", COMMAND)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    return lambda folder, output: int(script.main(["--demo", str(folder), "--output", str(output)]))


def test_all_pictures(short_demo: Path, tmp_path: Path, draw: Callable[[Path, Path], int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of a layout that doesn't fit
        assert draw(short_demo, tmp_path) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(PICTURES)
    for name in PICTURES:
        picture = Image.open(tmp_path / name)
        levels = np.array(picture.convert("RGB"))
        assert levels.shape[1] >= 800, name
        assert (levels[0] == 255).all(), name  # white behind, on dark pages too
        assert (levels != 255).any(axis=2).mean() > 0.05, name
        assert len(np.unique(levels.reshape(-1, 3), axis=0)) > 50, name
        assert (tmp_path / name).stat().st_size < 200 * 1024, name


def test_a_folder_without_a_demo(
    tmp_path: Path, draw: Callable[[Path, Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(tmp_path / "nothing", tmp_path) == 2
    said = capsys.readouterr().err
    assert "has no classifier.safetensors, no detector.ckpt, no bank.safetensors, no results.json" in said
    assert "run `dynbn demo --output" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_the_committed_pictures_are_those_of_the_command() -> None:
    assert {file.name for file in (COMMAND.parent / "images").glob("concept_*.png")} == set(PICTURES) - {"overview.png"}
    assert (COMMAND.parent / "images" / "overview.png").is_file()
