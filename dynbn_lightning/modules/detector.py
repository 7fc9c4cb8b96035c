"""A LightningModule that fits the corruption detector: image in, probability over rows out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from dynbn_lightning.corruptions.cells import CLEAN, Cell, check_corruption_name
from dynbn_lightning.detection import NearestPrototype, SpectrumPerceptron
from dynbn_lightning.errors import CorruptionError, DetectorError, did_you_mean
from dynbn_lightning.modules.logged_values import SAME_ON_ALL
from dynbn_lightning.modules.schedule import decay_groups, with_warmup_cosine

Network = Literal["perceptron", "prototype"]
"""What can stand in a `DetectorModule`: a trained `SpectrumPerceptron` or a gathered `NearestPrototype`."""


def check_rows(rows: Sequence[str]) -> tuple[str, ...]:
    """Return `rows` if a detector can tell them apart, else raise `DetectorError`.

    Args:
        rows: At least two different names, each "clean", a corruption ("fog") or a cell ("fog/3").
    """
    if isinstance(rows, str):
        raise DetectorError(f"rows must be a sequence of names, got the one name {rows!r}")
    rows = tuple(rows)
    if len(rows) < 2:
        raise DetectorError(f"a detector needs at least two rows to choose from, got {list(rows)}")
    for row in rows:
        try:
            if "/" in str(row):
                Cell.parse(row)
            elif row != CLEAN:
                check_corruption_name(row)
        except CorruptionError as error:
            raise DetectorError(f"{row!r} is not a row: {error}") from error
    repeated = sorted({row for row in rows if rows.count(row) > 1})
    if repeated:
        raise DetectorError(f"rows must differ from each other, these come more than once: {', '.join(repeated)}")
    return rows


class DetectorModule(LightningModule):
    """Fits and tests a detector network on batches `(images, rows)`.

    Images are float in [0, 1], (N, channels, image_size, image_size), corrupted and rounded to 8 bits but *not*
    normalised for a model; rows are int64 indices (N,) into `self.rows`. Logged, over all processes together:
    `train/loss` (of the perceptron), `val/loss`, `val/acc`, `test/loss`, `test/acc` (accuracies over images, 0 to 1).

    A `"prototype"` is not trained but gathered: `Trainer.fit` for one epoch, on one device, shows it the images and
    optimises nothing; more epochs, or another fit, add to what it has.

    Attributes:
        rows: The names of the rows, in the order of the logits.
        network: The `SpectrumPerceptron` or `NearestPrototype`.
        confusion: After a validation or test epoch, how many images of each true row (first index) were taken for
            each row (second index), int64; None before.

    Args:
        rows: Names of the rows; see `check_rows`.
        image_size: Height and width of the images.
        channels: Channels of the images.
        hidden: Width of the network's hidden layers.
        dropout: Dropout of the network.
        learning_rate: The peak learning rate of AdamW.
        weight_decay: Decay of AdamW on weight matrices.
        label_smoothing: Smoothing of the training labels, from 0 to 1. More than 0 makes the probabilities, which
            soft routing mixes rows by, less sure than they should be.
        warmup: The part of the training, from 0 to 1, in which the learning rate rises.
        network: `"perceptron"`, which all of the arguments from `hidden` on are for, or `"prototype"`.

    Raises:
        DetectorError: If `rows`, `network` or the network's arguments are wrong; in use, if no image was gathered for
            one of a prototype's rows.
    """

    def __init__(
        self,
        rows: Sequence[str],
        image_size: int = 32,
        channels: int = 3,
        hidden: int = 256,
        dropout: float = 0.1,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.5,
        label_smoothing: float = 0.0,
        warmup: float = 0.15,
        network: Network = "perceptron",
    ) -> None:
        super().__init__()
        if network not in get_args(Network):
            raise DetectorError(f"network={network!r}: {did_you_mean(str(network), get_args(Network))}")
        rows = list(check_rows(rows))  # a list and plain numbers: checkpoints load with weights_only
        self.save_hyperparameters()
        self.rows = tuple(rows)
        self.network: SpectrumPerceptron | NearestPrototype
        if network == "prototype":
            self.network = NearestPrototype(len(rows), image_size, channels)
            self.network.row_names = self.rows
            self.automatic_optimization = False
        else:
            self.network = SpectrumPerceptron(len(rows), image_size, channels, hidden=hidden, dropout=dropout)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.warmup = warmup
        self.confusion: Tensor | None = None
        self.loss = MeanMetric(nan_strategy="disable")
        self.accuracy = MulticlassAccuracy(len(rows), average="micro", validate_args=False)
        self.confusion_counts = MulticlassConfusionMatrix(len(rows), validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, rows), of images in [0, 1]; errors are those of the network."""
        logits: Tensor = self.network(images)
        return logits

    def with_novelty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and how unlike anything seen each image is, (N,); see the network's own."""
        return self.network.with_novelty(images)

    def setup(self, stage: str) -> None:
        """Refuse a datamodule that numbers other rows than this detector's, and gathering on several devices."""
        rows = getattr(getattr(self.trainer, "datamodule", None), "rows", None)
        if stage != "predict" and rows is not None and tuple(rows) != self.rows:
            raise DetectorError(
                f"the datamodule has the rows {', '.join(rows)}; this detector was made for {', '.join(self.rows)}"
            )
        if stage == "fit" and isinstance(self.network, NearestPrototype) and self.trainer.world_size > 1:
            raise DetectorError(
                f"a prototype is gathered on one device, this Trainer has {self.trainer.world_size}: fit it with "
                "Trainer(devices=1), which is one pass over the images, and use it on as many as you like"
            )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        """The cross-entropy of a batch, or None where it was gathered."""
        images, rows = batch
        if isinstance(self.network, NearestPrototype):
            self.network.gather(images, rows)
            # Lightning counts what an optimiser does; its ModelCheckpoint saves nothing while that is nothing.
            steps = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            steps.increment_ready()
            steps.increment_completed()
            return None
        loss = F.cross_entropy(self(images), rows, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(rows))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch."""
        self._count(batch)

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self._reset()

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy and keep the confusion matrix."""
        self._conclude("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch."""
        self._count(batch)

    def on_test_epoch_start(self) -> None:
        """Begin to count anew."""
        self._reset()

    def on_test_epoch_end(self) -> None:
        """Log the accuracy and keep the confusion matrix."""
        self._conclude("test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Probabilities, float32, shape (N, rows), of a batch of images, with or without rows."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        return F.softmax(self(images).float(), dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW under a warm-up and a cosine over the whole training; None where there is nothing to train."""
        if isinstance(self.network, NearestPrototype):
            return None
        optimizer = AdamW(decay_groups(self.network, self.weight_decay), lr=self.learning_rate)
        return with_warmup_cosine(self, optimizer, self.warmup)

    def _count(self, batch: tuple[Tensor, Tensor]) -> None:
        if self._not_yet_gathered:
            return
        images, rows = batch
        logits = self(images).float()
        self.accuracy.update(logits, rows)
        self.confusion_counts.update(logits, rows)
        self.loss.update(F.cross_entropy(logits, rows, reduction="none"))

    def _reset(self) -> None:
        self.loss.reset()
        self.accuracy.reset()
        self.confusion_counts.reset()

    @property
    def _not_yet_gathered(self) -> bool:
        """Whether this is Lightning's trial of validation before a fit, when a prototype knows nothing."""
        return self.trainer.sanity_checking and isinstance(self.network, NearestPrototype)

    def _conclude(self, stage: str) -> None:
        if self._not_yet_gathered:
            return
        self.confusion = self.confusion_counts.compute()
        # At the end and not in the steps: one value over all dataloaders.
        self.log(f"{stage}/loss", self.loss.compute(), **SAME_ON_ALL)
        self.log(f"{stage}/acc", self.accuracy.compute(), prog_bar=True, **SAME_ON_ALL)
