"""Prediction-time batch normalisation: the statistics of the test batch itself, alone or beside the source's."""

from __future__ import annotations

from torch import Tensor

from dynbn_lightning.batchnorm.normalization import batch_moments, several_batch_moments
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.statistics_policy import StatisticsPolicy, check_share
from dynbn_lightning.errors import MethodError


class BatchStatisticsPolicy(StatisticsPolicy):
    """Normalise every batch by its own moments ("BN-1"), or by their blend with the source statistics.

    Nado et al. 2020, "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift"; Schneider
    et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation", section 3, for a batch
    of n images: mean = N / (N + n) * source mean + n / (N + n) * batch mean, and the same for the variances.

    Args:
        prior: N, how many images the source statistics count as; 0 for the batch alone.
        source_weight: the source's share itself, in [0, 1], whatever the batch size; in place of `prior`.

    Raises:
        MethodError: for a negative prior, a share outside [0, 1], or both.
    """

    def __init__(self, prior: float = 0, source_weight: float | None = None) -> None:
        super().__init__()
        if source_weight is not None and prior:
            raise MethodError(f"prior={prior!r} and source_weight={source_weight!r}: give one of the two")
        if not 0 <= prior < float("inf"):
            raise MethodError(f"prior={prior!r}: expected how many images the source counts as, 0 or more")
        if source_weight is not None:
            check_share("source_weight", source_weight)
        self.prior, self.source_weight = prior, source_weight

    def source_share(self, images: int) -> float:
        """The share of the source statistics in a batch of so many images."""
        return self.prior / (self.prior + images) if self.source_weight is None else self.source_weight

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial).

        Raises:
            RoutingError: in training mode, or, without any source share, for a single value per channel, which has no
                variance.
        """
        if self.source_share(len(x)):
            return super().__call__(layer, x)
        layer.refuse_training()
        out, _, _ = layer.normalize_with_batch_moments(x)  # one fused pass, and torch's biased variance
        return out

    def statistics(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """The blend's mean and variance, (C,) each; the batch's own variance is unbiased in it, as running ones are."""
        share = self.source_share(len(x))
        _, mean, var = batch_moments(x) if share else several_batch_moments(x)
        if not share:
            return mean, var
        source_mean, source_var = source_statistics(layer)
        return share * source_mean + (1 - share) * mean, share * source_var + (1 - share) * var
