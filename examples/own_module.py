"""A LightningModule of one's own, which knows nothing of corruptions: `own_checkpoint.yaml` tests it."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU, at half the size."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class OwnClassifier(LightningModule):
    """A small network, fitted and tested on (images, labels)."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            block(3, width),
            block(width, 2 * width),
            block(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.network(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The accuracy."""
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)
