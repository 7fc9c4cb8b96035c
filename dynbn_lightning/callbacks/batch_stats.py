"""Prediction-time batch normalisation ("BN-1") as a callback."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ..batchnorm import BatchStatisticsPolicy, Patch
from ..errors import ImageError
from .base import BatchNormCallback, images_of


class BatchStatsCallback(BatchNormCallback):
    """Every batch is normalised with its own statistics, which need no detector, bank or training image.

    Nado et al. 2020, "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift". Good on
    large batches of one corruption; on mixed streams all images share statistics that are right for none.

    Args:
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics;
            for layers that are not supported.
    """

    def __init__(self, skip: Sequence[str] = ()) -> None:
        super().__init__()
        self.skip = tuple(skip)
        self._warned = False

    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """A patch of every BatchNorm layer of the module that is not skipped."""
        return Patch(pl_module, lambda name, layer: BatchStatisticsPolicy(), self.skip)

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: object) -> None:
        """Warn once about batches of one image."""
        if self._warned:
            return
        try:
            single = len(images_of(batch)) == 1
        except ImageError:
            return  # batches of another form are no less normalised
        if single:
            rank_zero_warn("BatchStatsCallback on a batch of one image: its statistics are those of that image alone")
            self._warned = True
