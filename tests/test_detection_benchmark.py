"""The benchmark of detectors: its parts on little data, and a short run on the real images where these are."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from dynbn_lightning.corruptions import Cell, cells_of, corrupt

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def detection(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("detection")


def write_images(folder: Path, count: int, size: int = 32) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        (folder / f"n{number:08d}").mkdir(parents=True)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"n{number:08d}" / "image.png")


def test_split_is_by_name_and_has_no_image_twice(detection: ModuleType, tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    fit, test = detection.split(tmp_path, short=False)
    assert [file.parent.name[-2:] for file in test] == ["03", "06", "09", "13", "16", "19"]
    assert len(fit) == 14
    assert not set(fit) & set(test)
    with pytest.raises(detection.DataError, match="holds 0 images"):
        detection.split(tmp_path / "n00000000" / "none", short=False)


def test_corrupted_images_are_those_of_their_cells(detection: ModuleType) -> None:
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    cells = [Cell.clean(), Cell("gaussian_noise", 3), Cell("contrast", 5)]
    made = detection.corrupted(pixels, cells, draws=2, seed=0)
    assert torch.equal(made[:, 0], pixels.expand(2, -1, -1, -1, -1))
    assert torch.equal(made[0, 2], corrupt(pixels, "contrast", 5, "imagenet"))
    assert torch.equal(made[1, 2], made[0, 2])
    assert not torch.equal(made[1, 1], made[0, 1])
    assert not torch.equal(detection.corrupted(pixels, cells, draws=1, seed=1)[0, 1], made[0, 1])


def test_an_epoch_has_every_image_once_and_clean_ones_more_often(detection: ModuleType) -> None:
    made = torch.arange(12, dtype=torch.uint8).view(2, 3, 2, 1, 1, 1)
    data = detection.Drawn(made, [0, 1, 1], clean_repeats=3)
    batches = list(data.loader(batch_size=5))
    assert [len(rows) for _, rows in batches] == [5, 5, 5, 5]
    images = torch.cat([images for images, _ in batches]).mul(255).round().long().flatten()
    rows = torch.cat([rows for _, rows in batches])
    assert torch.bincount(images).tolist() == [3, 3, 1, 1, 1, 1] * 2
    assert torch.equal(rows, (images % 6 > 1).long())


class Told(torch.nn.Module):
    """Reads its logits off the images' first pixels."""

    rows = ("clean", "fog/1", "fog/3", "snow/3")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, 0, 0, :4] * 255 + 1e-6).log()


def test_recognition_adds_up_severities_and_abstains(detection: ModuleType) -> None:
    cells = [Cell.clean(), *cells_of(("fog", "snow"), (1, 3))]
    said = {  # the weight of each row by cell, two images each
        "clean": [[5, 1, 1, 4], [1, 3, 3, 5]],
        "fog/1": [[0, 3, 3, 4], [2, 3, 3, 4]],
        "fog/3": [[0, 9, 0, 1], [0, 1, 1, 3]],
        "snow/1": [[0, 1, 1, 3], [9, 1, 1, 2]],
        "snow/3": [[0, 1, 1, 3], [0, 0, 0, 3]],
    }
    made = torch.zeros(1, len(cells), 2, 3, 8, 8, dtype=torch.uint8)
    for number, cell in enumerate(cells):
        made[0, number, :, 0, 0, :4] = torch.tensor(said[cell.name])
    found = detection.recognition(Told(), made, cells, abstain=0.1)
    assert found["clean"] == {"recognised": 0.5, "recognised or abstained": 0.5}
    assert found["severity 1"] == {"recognised": 0.5, "without abstaining": 0.75}
    assert found["severities 3-5"] == {"recognised": 0.75, "without abstaining": 0.75}
    assert found["worst corruption at 3-5"] == (0.5, "fog")
    bold = detection.recognition(Told(), made, cells, abstain=0.05)
    assert bold["clean"]["recognised or abstained"] == 1.0


def test_cost_names_every_contestant(detection: ModuleType) -> None:
    options = detection.parsed(["--short", "--data", "."])
    found = detection.cost(32, 4, torch.nn.Conv2d(3, 64, 7), options)
    assert set(found["seconds"]) == {"model", "perceptron", "prototype"}
    assert found["model"]["ratio"] == 1
    for network in detection.NETWORKS:
        assert 1 < found[network]["mb"] < 5
        assert found[network]["ms"] > 0
        own, model = (np.array(found["seconds"][name]) for name in (network, "model"))
        assert found[network]["ratio"] == pytest.approx(np.median(own / model))


@pytest.mark.slow
@pytest.mark.skipif("DYNBN_DATA" not in os.environ, reason="DYNBN_DATA is not set")
def test_short_run(detection: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detection.main(["--short", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert detection.markdown(results) in capsys.readouterr().out
    assert len(results["recognition"]["fitted_on"]) == 7
    assert len(results["recognition"]["tested_on"]) == 3
    assert results["recognition"]["prototype"]["rows"] == 76
    assert results["recognition"]["perceptron"]["rows"] == 16
