"""A LightningModule around any classifier: trains it, and tests it cell by cell when the cells are known."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torchmetrics import MeanMetric

from dynbn_lightning.datamodules.batches import batch_info_of, knows_cells
from dynbn_lightning.datamodules.classes import check_classes
from dynbn_lightning.metrics import CellMetrics, Top1Accuracy, mean_over_corruptions
from dynbn_lightning.modules.logged_values import SAME_ON_ALL
from dynbn_lightning.modules.schedule import decay_groups, with_warmup_cosine


class ClassifierModule(LightningModule):
    """Trains and tests a classifier on batches `(images, labels)`.

    Images are what the model takes (already normalised, (N, C, H, W)), labels int64 (N,), and the model returns
    logits (N, K). Logged, over all dataloaders and processes together:

    - `train/loss`, `val/loss`, `val/acc`, `test/acc`: means over images, accuracies top-1 from 0 to 1;
    - while testing with a datamodule that knows the cell of each image (its `batch_info.cells`, int64 (N,) of
      `Cell.code`): `clean/acc`, `fog/3/acc` and so on for each cell seen, and `mean/acc`, the mean of the
      accuracies of the cells other than clean. `cell_metrics` keeps the counts until the next test, and its `compute`
      gives also each cell's top-5 accuracy, negative log likelihood and calibration error.

    The recipe (SGD with Nesterov momentum, linear warm-up and cosine, decay of weights only) is one for small ResNets
    trained from nothing on batches of about 128; override `configure_optimizers` for another.

    Args:
        model: The classifier. Kept as `model` and not among the hyperparameters: reload a checkpoint with
            `ClassifierModule.load_from_checkpoint(path, model=model)`.
        learning_rate: The peak learning rate.
        momentum: Nesterov momentum; 0 is plain SGD.
        weight_decay: Decay of weight matrices and kernels.
        label_smoothing: Smoothing of the training labels, from 0 to 1; `val/loss` is without.
        warmup: The part of the training, from 0 to 1, in which the learning rate rises.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        warmup: float = 0.2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["model"])
        self.model = model
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.warmup = warmup
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = Top1Accuracy()
        self.test_accuracy = Top1Accuracy()
        self.cell_metrics = CellMetrics()

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, K), of images as the model takes them, shape (N, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count a batch for `val/acc` and `val/loss`."""
        images, labels = batch
        logits = self(images)
        self.val_accuracy.update(logits, labels)
        self.val_loss.update(F.cross_entropy(logits.float(), labels, reduction="none"))

    def on_validation_epoch_start(self) -> None:
        """Begin to count anew."""
        self.val_loss.reset()
        self.val_accuracy.reset()

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over all validation batches."""
        self.log("val/loss", self.val_loss.compute(), **SAME_ON_ALL)
        self.log("val/acc", self.val_accuracy.compute(), prog_bar=True, **SAME_ON_ALL)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Count a batch for `test/acc` and, when its cells are known, for the scores of each cell.

        Returns:
            `{"logits": logits}`, shape (N, K), detached, for callbacks.
        """
        images, labels = batch
        logits = self(images)
        info = batch_info_of(self.trainer)
        check_classes(info, labels, logits.shape[1], first=batch_idx == dataloader_idx == 0)
        self.test_accuracy.update(logits, labels)
        if info is not None:
            self.cell_metrics.update(logits, labels, info.cells)
        return {"logits": logits.detach()}

    def on_test_epoch_start(self) -> None:
        """Begin to count anew."""
        self.test_accuracy.reset()
        self.cell_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log the accuracy over all test batches, of each cell and over the cells."""
        # Here and not in the step: one value over all dataloaders, and what is logged stays readable afterwards.
        self.log("test/acc", self.test_accuracy.compute(), prog_bar=True, **SAME_ON_ALL)
        # Among several processes, what this one has counted cannot decide: all take part when counts are summed.
        if not (knows_cells(self.trainer) and (self.cell_metrics.update_called or self.trainer.world_size > 1)):
            return
        scores = self.cell_metrics.compute()
        logged = {f"{name}/acc": its.accuracy for name, its in scores.items()}
        mean = mean_over_corruptions(scores)
        if mean is not None:
            logged["mean/acc"] = mean.accuracy
        # Lightning would store plain floats in the default dtype, which the true half precisions set to 16 bits.
        as_tensors = {
            name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in logged.items()
        }
        self.log_dict(as_tensors, **SAME_ON_ALL)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The logits, shape (N, K), of a batch of images, with or without labels."""
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        logits: Tensor = self(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD under a warm-up and a cosine over the whole training."""
        optimizer = SGD(
            decay_groups(self.model, self.weight_decay),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
        )
        return with_warmup_cosine(self, optimizer, self.warmup)
