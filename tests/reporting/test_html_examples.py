"""Example images: on disk, and in the strip of the page."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
import torch
from html_folders import make_folder
from html_tree import read_page
from PIL import Image
from torch import Tensor

from dynbn_lightning.corruptions import Cell
from dynbn_lightning.corruptions.cells import cells_of
from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.comparison import Comparison
from dynbn_lightning.reporting.examples import read_examples, write_example
from dynbn_lightning.reporting.html import write_html


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_come_back_pixel_by_pixel_and_foreign_files_are_left_out(tmp_path: Path, channels: int) -> None:
    shown = pixels(channels, 5, 7)
    path = write_example(tmp_path, Cell("fog", 3), 17, shown)
    assert path == tmp_path / "examples" / "fog-3-17.png"
    clean = write_example(tmp_path, Cell.clean(), 2, pixels(channels, 9, 9))
    assert clean.name == "clean-0-2.png"
    write_example(tmp_path, Cell("snow", 1), 2, pixels(channels, 9, 9))
    write_example(tmp_path, Cell("gaussian_noise", 5), 17, pixels(channels, 9, 9))
    for name in ("fog-9-1.png", "mist-3-1.png", "clean-1-1.png", "fog-3.png", ".fog-3-1.png", "fog-3-1.jpg"):
        (path.parent / name).write_bytes(path.read_bytes())
    (path.parent / "fog-3-18.png").write_bytes(b"no picture")
    (path.parent / "fog-3-19.png").mkdir()
    found = read_examples(tmp_path)
    assert [(one.cell.name, one.index) for one in found] == [
        ("clean", 2),
        ("snow/1", 2),
        ("gaussian_noise/5", 17),
        ("fog/3", 17),
    ]
    assert found[-1].png == path.read_bytes()
    assert found[-1].size == (7, 5)
    with Image.open(BytesIO(found[-1].png)) as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        back = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).reshape(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(back, shown)
    assert read_examples(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "bad", [pixels(4, 4), pixels(2, 4, 4), pixels(3, 0, 4), pixels(3, 4, 4).float(), pixels(3, 4, 4).to(torch.int8)]
)
def test_other_pixels_are_refused_and_leave_nothing(tmp_path: Path, bad: Tensor) -> None:
    with pytest.raises(DataError, match="expected uint8 pixels"):
        write_example(tmp_path, Cell("fog", 3), 1, bad)
    assert not list(tmp_path.rglob("*.png"))


def test_the_strip_says_what_became_of_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynbn_lightning.reporting.figures.canvas.find_spec", lambda name: None)
    cells = (Cell.clean(), *cells_of(("gaussian_noise", "fog"), (1, 3)))
    make_folder(tmp_path, images=20, cells=cells, methods={"source": 0.0, "dynamic_bn": 0.1, "tent": 0.2})
    shown = [(Cell.clean(), 3), (Cell("fog", 3), 3), (Cell("gaussian_noise", 1), 4), (Cell("snow", 5), 4)]
    for cell, index in shown:
        write_example(tmp_path, cell, index, pixels(3, 128 if index == 4 else 32, 32))
    comparison = Comparison.read([tmp_path])
    tree = read_page(write_html(comparison, tmp_path / "report.html").read_text())
    (strip,) = tree.of_class("examples")
    pictures = {item.all("strong")[0].text: item for item in strip.all("li")}
    assert list(pictures) == ["clean", "fog/3", "gaussian_noise/1", "snow/5"]
    records = next(entry for entry in comparison.entries if entry.method == "dynamic_bn").records
    assert records is not None
    for cell, index in shown:
        item = pictures[cell.name]
        image = item.one("img")
        png = (tmp_path / "examples" / f"{cell.corruption}-{cell.severity}-{index}.png").read_bytes()
        assert b64decode(image.attributes["src"].removeprefix("data:image/png;base64,")) == png
        assert image.attributes["alt"] == f"image {index} in {cell.name}"
        assert ("small" in image.attributes.get("class", "")) == (index == 3)
        there = (records.indices == index) & (records.cells == cell.code)
        words = [span.text for span in item.all("span")]
        if cell.corruption == "snow":
            assert words == [], "it was not among the tested cells"
            continue
        place = int(there.nonzero())
        row = records.rows[int(records.detected[place])]
        sure = 100 * float(records.detection_confidences[place])
        right = bool(records.correct[place])
        assert words == [f"{row}, {sure:.1f} %", "✓ class right" if right else "✗ class wrong"]
        assert item.all("span")[0].attributes["class"] == ("right" if row == cell.corruption else "wrong")
    assert "what dynamic_bn detected" in tree.text, "the best one, tent, detects nothing"
