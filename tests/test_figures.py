"""The figures as files: what they show of data and detector, and what is refused before any work."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dynbn_lightning
from dynbn_lightning import CorruptionDataModule, DetectorModule
from dynbn_lightning.errors import DataError, DetectorError, DynBNError, OutputError
from dynbn_lightning.figures import look_at_images, write_figures

RESULTS: dict[str, Any] = {
    "schema_version": 3,
    "protocol": {},
    "missing": [],
    "runs": [
        {
            "stream": "mixed",
            "batch_size": 4,
            "methods": {
                "source": {
                    "clean": {"accuracy": 0.9},
                    "cells": {"fog/1": {"accuracy": 0.8}, "fog/5": {"accuracy": 0.5}},
                    "mean": {"accuracy": 0.65},
                }
            },
        }
    ],
}


def make_data(**options: Any) -> CorruptionDataModule:
    def images(count: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
        return TensorDataset(pixels, torch.arange(count) % 4)

    options = {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 5), "batch_size": 4, **options}
    return CorruptionDataModule(images(20, 0), test=images(12, 1), preset="cifar", **options)


class Darkness(nn.Module):
    """Tells rows by the mean level alone; in training mode it sees nothing."""

    def __init__(self, rows: tuple[str, ...], logits: int | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.linspace(-9, 9, logits or len(rows)))

    def forward(self, pixels: Tensor) -> Tensor:
        return (not self.training) * self.weight * (pixels[:, :, :4, :4].mean((1, 2, 3)) - 0.5)[:, None] * 4


class Watcher(L.LightningModule):
    """Is shown what a detector is tested on."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        super().__init__()
        self.rows = rows
        self.seen: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        info = self.trainer.datamodule.batch_info  # type: ignore[attr-defined]
        for pixels, row, name, index in zip(*batch, info.names, info.indices, strict=True):
            self.seen[name, index] = pixels.clone(), int(row)


def shown_by_trainer(data: CorruptionDataModule) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """(cell, image number) -> the pixels and the row number that Trainer.test shows to a detector."""
    watcher = Watcher(data.rows)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", enable_model_summary=False, **options).test(watcher, datamodule=data, verbose=False)
    return watcher.seen


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """File name -> figure, instead of the files."""
    figures: dict[str, Any] = {}

    def keep(figure: Any, path: Path) -> Path:
        figures[path.name] = figure
        return path

    monkeypatch.setattr("dynbn_lightning.figures._write", keep)
    return figures


def test_spectra_are_those_of_the_tested_pixels() -> None:
    data = make_data()
    seen = look_at_images(data, images=5, progress=False)
    shown = shown_by_trainer(make_data())
    chosen = (0, 2, 4, 7, 9)  # of 12, evenly spread
    assert seen.images == 5
    assert list(seen.spectra) == ["clean", "gaussian_noise", "contrast"]
    for name, severities in (("clean", [""]), ("gaussian_noise", ["/1", "/5"]), ("contrast", ["/1", "/5"])):
        spectra = []
        for severity in severities:
            for index in chosen:
                brightness = shown[name + severity, index][0].double().numpy().mean(0)
                amplitude = np.abs(np.fft.fft2(brightness, norm="ortho"))[:, :9]
                spectra.append(np.log(np.fft.fftshift(amplitude, axes=0) + 1 / 255 / 12**0.5))
        np.testing.assert_allclose(seen.spectra[name].numpy(), np.mean(spectra, 0), atol=2e-4)


@pytest.mark.parametrize("row_per", ["corruption", "cell"])
def test_the_detector_is_shown_the_tested_pixels(row_per: str, tmp_path: Path, drawn: dict[str, Any]) -> None:
    data = make_data(row_per=row_per)
    detector = Darkness(data.rows).train()
    written = write_figures(tmp_path, detector=detector, data=data, images=100, progress=False)
    assert [path.name for path in written] == list(drawn) == ["spectra.png", "confusion.png", "reliability.png"]
    assert detector.training, "the user's detector is left as it was"
    expected = np.zeros((len(data.rows), len(data.rows)))
    sure = 0
    frozen = Darkness(data.rows).eval()
    for pixels, row in shown_by_trainer(make_data(row_per=row_per)).values():
        probabilities = frozen(pixels[None])[0].softmax(0)
        expected[row, int(probabilities.argmax())] += 1
        sure += int(probabilities.max() >= 14 / 15)
    assert expected.sum() == 60, "12 images in 5 cells"
    shares = np.asarray(drawn["confusion.png"].axes[0].images[0].get_array())
    np.testing.assert_allclose(shares, expected / expected.sum(1, keepdims=True))
    assert tuple(tick.get_text() for tick in drawn["confusion.png"].axes[0].get_yticklabels()) == data.rows
    bars = [bar.get_height() for bar in drawn["reliability.png"].axes[1].patches]
    assert (sum(bars), bars[-1]) == (60, sure)
    for figure in drawn.values():
        assert "12 test images" in figure.get_suptitle()
        assert "severities 1, 5, seed 0" in figure.get_suptitle()


def test_files_are_made_for_what_is_given(tmp_path: Path) -> None:
    data = make_data(severities=(5,))
    detector = DetectorModule(rows=data.rows, image_size=16, hidden=8)
    output = tmp_path / "new" / "folder"
    assert write_figures(output, results=RESULTS, progress=False) == [output / "severity.png"]
    names = ["severity.png", "spectra.png", "confusion.png", "reliability.png"]
    written = write_figures(output, results=RESULTS, detector=detector, data=data, images=3, progress=False)
    assert written == [output / name for name in names]
    assert sorted(output.iterdir()) == sorted(written), "nothing else stays"
    for path in written:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20, "something is drawn"


def test_grey_images_have_a_brightness_too() -> None:
    grey = TensorDataset(torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8), torch.zeros(9).long())
    data = CorruptionDataModule(None, test=grey, corruptions=("contrast",), severities=(5,), preset="cifar")
    seen = look_at_images(data, progress=False)
    assert (seen.spectra["contrast"] < seen.spectra["clean"]).double().mean() > 0.9


def test_bad_input_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynbn_lightning.figures.look_at_images", lambda *args, **options: pytest.fail("work was done"))
    data = make_data()
    detector = Darkness(data.rows)
    (tmp_path / "file").touch()
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, DataError, "nothing to draw"),
        ({"detector": detector}, DataError, "nothing to draw"),
        ({"detector": detector, "results": RESULTS}, DataError, "pass data="),
        ({"data": data, "images": 0}, DataError, "images=0"),
        ({"data": data, "detector": Darkness(("clean", "fog"))}, DetectorError, "clean, fog; expected clean, gauss"),
        ({"data": data, "detector": nn.Flatten()}, DetectorError, "rows"),
        ({"data": data, "results": RESULTS, "stream": "sequential"}, DataError, "stream 'sequential'"),
        ({"data": data, "output": tmp_path / "file"}, OutputError, "is a file"),
    ]
    for options, error, message in refused:
        with pytest.raises(error, match=message):
            write_figures(**{"output": tmp_path / "figures", "progress": False, **options})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DynBNError, match=r"dynbn-lightning\[report\]"):
        write_figures(tmp_path / "figures", data=data, progress=False)
    assert not (tmp_path / "figures").exists()


def test_logits_of_another_number_are_refused(tmp_path: Path) -> None:
    data = make_data()
    with pytest.raises(DetectorError, match=r"knows 3 rows but gave logits of shape \(4, 5\)"):
        write_figures(tmp_path, detector=Darkness(data.rows, logits=5), data=data, progress=False)


def test_matplotlib_is_imported_only_to_draw() -> None:
    """In functions and for type checkers, that is, so that who has not got it can import the package."""
    package = Path(dynbn_lightning.__file__).parent
    files = [package / "figures.py", *(package / "reporting").rglob("*.py")]
    assert len(files) > 6
    for path in files:
        for node in ast.parse(path.read_text()).body:
            assert not ast.unparse(node).startswith(("import matplotlib", "from matplotlib")), path
