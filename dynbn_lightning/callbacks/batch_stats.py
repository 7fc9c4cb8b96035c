"""Prediction-time batch normalisation ("BN-1") as a callback, alone or with a source prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from ..batchnorm import BatchStatisticsPolicy
from ..errors import ImageError
from .layerwise import LayerwiseCallback


class BatchStatsCallback(LayerwiseCallback[BatchStatisticsPolicy]):
    """Every batch is normalised with its own statistics, which need no detector, bank or training image.

    Nado et al. 2020, "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift" ("BN-1", the
    default). Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation",
    section 3, blend with the source statistics, which count as N images beside the batch's n:
    mean = N / (N + n) * source mean + n / (N + n) * batch mean, and the same for the variances. With the share itself
    given, whatever n, it is alpha-BN, whose alpha some count as the batch's share, 1 - `source_weight`. Good on large
    batches of one corruption; on mixed streams all images share statistics that are right for none.

    Args:
        prior: N, how many images the source statistics count as; 0 for the batch alone.
        source_weight: the source's share itself, in [0, 1]; in place of `prior`.
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics;
            for layers that are not supported.

    Raises:
        MethodError: for a negative prior, a share outside [0, 1], or both.
    """

    def __init__(self, prior: float = 0, source_weight: float | None = None, skip: Sequence[str] = ()) -> None:
        super().__init__(skip)
        self.prior, self.source_weight = prior, source_weight
        BatchStatisticsPolicy(prior, source_weight)  # refuses here what it would refuse when evaluation starts
        self._warned = False

    @property
    def method(self) -> str:
        """The method's name in reports."""
        if self.source_weight is not None:
            return "batch_stats/source_weight"
        return "batch_stats/prior" if self.prior else "batch_stats"

    def make_policy(self, name: str, layer: nn.Module) -> BatchStatisticsPolicy:
        """The batch's statistics, blended as asked for."""
        return BatchStatisticsPolicy(self.prior, self.source_weight)

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Warn once about batches of one image."""
        if self._warned or BatchStatisticsPolicy(self.prior, self.source_weight).source_share(1):
            return
        try:
            single = len(self.images_of(batch)) == 1
        except ImageError:
            return  # batches of another form are no less normalised
        if single:
            rank_zero_warn(
                "BatchStatsCallback on a batch of one image: its statistics are those of that image alone; "
                "BatchStatsCallback(prior=16) blends them with the source statistics"
            )
            self._warned = True
