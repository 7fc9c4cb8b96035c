"""The command that makes the sheets of `docs/corruptions.md`, on a picture made by a formula."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = Path(__file__).parent.parent / "docs" / "contact_sheets.py"


def test_the_sheet_of_severities(tmp_path: Path) -> None:
    levels = np.arange(300, dtype=np.uint16)[:, None] * np.array([1, 2, 3]) % 256
    Image.fromarray(np.broadcast_to(levels[:, None], (300, 260, 3)).astype(np.uint8)).save(tmp_path / "waves.png")
    environment = {name: value for name, value in os.environ.items() if name != "DYNBN_DATA"}
    command = [sys.executable, str(COMMAND), "--picture", str(tmp_path / "waves.png"), "--output", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert [file.name for file in tmp_path.glob("*.jpg")] == ["corruptions.jpg"]
    sheet = np.array(Image.open(tmp_path / "corruptions.jpg"))
    assert sheet.shape[0] > 19 * 132
    assert sheet.shape[1] > 6 * 132


def test_the_sheet_of_published_images(dynbn_data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "black.png")
    options = ["--picture", str(tmp_path / "black.png"), "--data", str(dynbn_data), "--output", str(tmp_path)]
    finished = subprocess.run([sys.executable, str(COMMAND), *options], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    sheet = np.array(Image.open(tmp_path / "corruptions_beside_reference.jpg"))
    assert sheet.shape[0] > 2 * 19 * 64
    assert sheet.shape[1] > 2 * 6 * 64
