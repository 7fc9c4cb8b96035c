"""What the callback tests share: tiny models, banks and detectors with known answers, and bare Trainers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dynbn_lightning.batchnorm import BNStatsBank, routed
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.models.normalization import Normalization

ROWS = ("clean", "brightness", "contrast")
IMAGENET = Normalization.of("imagenet")
SIZE = 16


def bare_trainer(*callbacks, **options) -> Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **(settings | options))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    model.train()
    for _ in range(20):
        model(IMAGENET.apply(torch.rand(16, 3, SIZE, SIZE)))
    return model.eval()


def make_bank(model: nn.Module, **provenance) -> BNStatsBank:
    pixels = torch.rand(32, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    bank = BNStatsBank.collect(
        model,
        {
            "brightness": [IMAGENET.apply((pixels + 0.4).clamp(0, 1))],
            "contrast": [IMAGENET.apply(pixels * 0.2 + 0.4)],
        },
        progress=False,
    )
    return BNStatsBank(
        rows=bank.rows,
        layers=bank.layers,
        mean=bank.mean,
        var=bank.var,
        fingerprints=bank.fingerprints,
        provenance=provenance,
    )


def make_pixels(count: int = 13, seed: int = 2) -> Tensor:
    """8-bit images (N, 3, 16, 16) whose mean tells `FakeDetector` their row: dark, middling or bright."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([20, 90, 160])[torch.randint(0, 3, (count,), generator=generator)]
    noise = torch.randint(0, 60, (count, 3, SIZE, SIZE), generator=generator)
    return (noise + levels.view(-1, 1, 1, 1)).to(torch.uint8)


class PixelImages(Dataset):
    """uint8 images as a user's data set holds them."""

    def __init__(self, count: int = 13, seed: int = 2) -> None:
        self.pixels = make_pixels(count, seed)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index], index % 5


class FakeDetector(nn.Module):
    """Logits that a test can write down: three humps over the mean of the pixels, in an order unlike the bank's."""

    rows = ("contrast", "clean", "brightness")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.tensor([0.2, 0.47, 0.75]))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert not torch.is_grad_enabled()
        return -30 * (images.mean((1, 2, 3)).unsqueeze(1) - self.centers).abs()


def weights_by_hand(pixels: Tensor) -> Tensor:
    """The bank's rows' weights for 8-bit pixels, image by image in Python."""
    weights = torch.zeros(len(pixels), len(ROWS))
    for image, values in enumerate(pixels):
        mean = values.double().mean().item() / 255
        logits = torch.tensor([-30 * abs(mean - center) for center in (0.2, 0.47, 0.75)], dtype=torch.float64)
        for row, probability in zip(FakeDetector.rows, logits.softmax(0).tolist(), strict=True):
            weights[image, ROWS.index(row)] = probability
    return weights


class UsersModule(LightningModule):
    """What a user has: `x, y = batch`, a network under its own name, and no knowledge of this package."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.logits: list[Tensor] = []
        self.classes: list[type] = []
        self.fail_at: int | None = None
        self.error: type[BaseException] = ValueError

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def remember(self, logits: Tensor) -> None:
        self.logits.append(logits.detach().clone())
        self.classes.append(type(self.network[1]))

    def step(self, batch: object, batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise self.error("stopped here")
        x, y = batch
        logits = self(x)
        self.remember(logits)
        return F.cross_entropy(logits.float(), y)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", self.step(batch, batch_idx))

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("test/loss", self.step(batch, batch_idx))

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.fail_at:
            raise self.error("stopped here")
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        logits = self(x)
        self.remember(logits)
        return logits

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def normalized_loader(batch_size: int = 4, count: int = 13) -> DataLoader:
    images = IMAGENET.apply(make_pixels(count).float() / 255)
    return DataLoader(TensorDataset(images, torch.arange(count) % 5), batch_size=batch_size)


def make_data(**options) -> CorruptionDataModule:
    settings = {
        "source": PixelImages(20, seed=5),
        "test": PixelImages(5, seed=6),
        "batch_size": 4,
        "normalization": "imagenet",
        "corruptions": ("brightness", "contrast"),
        "severities": (1, 5),
        "validation_fraction": 0.25,
    }
    return CorruptionDataModule(**(settings | options))


@torch.no_grad()
def logits_without_lightning(model: nn.Module, bank: BNStatsBank, images: Tensor, assignment: Tensor) -> Tensor:
    with routed(model, bank) as routing:
        routing.set(assignment)
        return model(images)


def expected_logits(model, bank, routing, pixels=None):
    pixels = make_pixels() if pixels is None else pixels
    weights = weights_by_hand(pixels)
    assignment = weights if routing == "soft" else weights.argmax(1)
    return logits_without_lightning(model, bank, IMAGENET.apply(pixels.float() / 255), assignment)
