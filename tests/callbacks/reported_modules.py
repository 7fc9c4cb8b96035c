"""What the tests of reports share: a user's modules, small data, and every number once more by plain loops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from callback_models import bare_trainer
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import corrupt_pixels
from dynbn_lightning.models.normalization import Normalization
from dynbn_lightning.reporting import ImageRecords

CLASSES, SIZE, TEST_IMAGES = 8, 16, 7
LABELS = (4, 1, 2, 6, 6, 3, 0)
"""Of the test images: `make_network()` is right about some of them in each cell, and not about the same ones."""
CELLS = ("clean", "fog/1", "fog/5", "contrast/1", "contrast/5")
IMAGENET = Normalization.of("imagenet")

Place = tuple[str, int]
"""A cell's name and an image's number."""


def stored_images(count: int, seed: int, labels: Sequence[int] | None = None) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    pixels = F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear").byte()
    return TensorDataset(pixels, torch.arange(count) % CLASSES if labels is None else torch.tensor(labels))


def make_data(**options: Any) -> CorruptionDataModule:
    settings: dict[str, Any] = {
        "source": stored_images(20, 0),
        "test": stored_images(TEST_IMAGES, 1, LABELS),
        "batch_size": 4,
        "normalization": "imagenet",
        "corruptions": ("fog", "contrast"),
        "severities": (1, 5),
        "validation_fraction": 0.25,
    }
    return CorruptionDataModule(**(settings | options))


def make_network(seed: int = 1) -> nn.Sequential:
    """Two layers of BatchNorm, and logits that differ from image to image and from cell to cell."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 25, CLASSES),
    )
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(16, 3, SIZE, SIZE))
        network[-1].weight *= 4
    return network.eval()


class Silent(LightningModule):
    """Logs nothing and returns nothing; remembers what it saw, for the tests."""

    def __init__(self, network: nn.Module | None = None, fail_at: int | None = None, error: Any = ValueError) -> None:
        super().__init__()
        self.net = make_network() if network is None else network
        self.fail_at, self.error, self.steps = fail_at, error, 0
        self.seen: dict[Place, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def step(self, batch: Any) -> Any:
        x, _ = batch
        self.remember(self(x))

    def remember(self, logits: Tensor) -> Tensor:
        info = self.trainer.datamodule.batch_info
        for name, index, its in zip(info.names, info.indices, logits.detach().double().cpu(), strict=True):
            self.seen[name, index] = its.clone()
        return logits

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.steps += 1
        if self.fail_at == self.steps - 1:
            raise self.error("stopped here")
        return self.step(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.step(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(module: LightningModule, data: Any, *callbacks: Any, entry: str = "test", **options: Any) -> Any:
    trainer = bare_trainer(*callbacks, **options)
    getattr(trainer, entry)(module, datamodule=data, verbose=False)
    return trainer


def recorded(module: LightningModule, data: Any, *others: Any, **options: Any) -> ImageRecords:
    callback = RecordingCallback()
    run(module, data, *others, callback, **options)
    assert not module._forward_hooks
    return callback.records().unique()


def pixels_by_hand(data: CorruptionDataModule, cell: str, index: int, split: str = "test") -> Tensor:
    images = data.test_images if split == "test" else data.train_images
    code, pixels = Cell.parse(cell).code, images[index][0].unsqueeze(0)
    preset = data.provenance()["preset"]
    return corrupt_pixels(pixels, [code], [index], seed=data.seed, split=split, preset=preset)[0]


def logits_by_hand(data: CorruptionDataModule, network: nn.Module) -> dict[Place, Tensor]:
    """Image by image, without Lightning and loaders."""
    logits = {}
    with torch.no_grad():
        for cell in data.cells:
            for index in range(len(data.test_images)):
                pixels = pixels_by_hand(data, cell.name, index).unsqueeze(0).float() / 255
                logits[cell.name, index] = network(IMAGENET.apply(pixels))[0].double()
    return logits


def labels_by_hand(data: CorruptionDataModule, places: Any, split: str = "test") -> dict[Place, int]:
    images = data.test_images if split == "test" else data.train_images
    return {(cell, index): int(images[index][1]) for cell, index in places}


def outcome_by_hand(logits: Tensor, label: int) -> dict[str, Any]:
    values = logits.tolist()
    largest = max(values)
    exponentials = [math.exp(value - largest) for value in values]
    prediction = values.index(largest)
    return {
        "prediction": prediction,
        "correct": prediction == label,
        "top5": sum(value > values[label] for value in values) < 5,
        "confidence": exponentials[prediction] / sum(exponentials),
        "nll": -math.log(exponentials[label] / sum(exponentials)),
    }


def assert_records(
    records: ImageRecords, logits: Mapping[Place, Tensor], labels: Mapping[Place, int], tolerance: float = 1e-4
) -> None:
    """One record for each image and cell, with what the logits say."""
    columns = (records.cells, records.indices, records.labels, records.predictions, records.correct, records.top5)
    found = {}
    for row, (code, index, label, prediction, correct, top5) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        place = (Cell.from_code(code).name, index)
        assert place not in found, f"{place} is there twice"
        found[place] = label
        its = outcome_by_hand(logits[place], labels[place])
        assert (prediction, correct, top5) == (its["prediction"], its["correct"], its["top5"]), place
        assert math.isclose(float(records.nll[row]), its["nll"], rel_tol=tolerance, abs_tol=tolerance), place
        assert math.isclose(float(records.confidences[row]), its["confidence"], rel_tol=tolerance), place
    assert found == dict(labels)


def numbers_by_hand(logits: Sequence[Tensor], labels: Sequence[int]) -> dict[str, Any]:
    outcomes = [outcome_by_hand(its, label) for its, label in zip(logits, labels, strict=True)]
    count = len(outcomes)
    bins: dict[int, list[float]] = {}
    for its in outcomes:
        bins.setdefault(int(its["confidence"] * 15), []).append(its["correct"] - its["confidence"])
    accuracy = sum(its["correct"] for its in outcomes) / count
    return {
        "images": count,
        "accuracy": accuracy,
        "error": 1 - accuracy,
        "top5_accuracy": sum(its["top5"] for its in outcomes) / count,
        "nll": sum(its["nll"] for its in outcomes) / count,
        "calibration_error": sum(abs(sum(gaps)) for gaps in bins.values()) / count,
    }


def block_by_hand(logits: Mapping[Place, Tensor], labels: Mapping[Place, int]) -> dict[str, dict[str, Any]]:
    """The numbers of each cell by its name, and `mean`, in which the corrupted cells count alike."""
    cells = {}
    for name in dict.fromkeys(cell for cell, _ in labels):
        places = [place for place in labels if place[0] == name]
        cells[name] = numbers_by_hand([logits[place] for place in places], [labels[place] for place in places])
    corrupted = [its for name, its in cells.items() if name != "clean"]
    if corrupted:
        cells["mean"] = {key: sum(its[key] for its in corrupted) / len(corrupted) for key in corrupted[0]}
        cells["mean"]["images"] = sum(its["images"] for its in corrupted)
    return cells


def cells_of_block(block: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A block of `results.json` in the form of `block_by_hand`."""
    named = {"clean": block["clean"], **block["cells"], "mean": block["mean"]}
    return {name: its for name, its in named.items() if its is not None}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
