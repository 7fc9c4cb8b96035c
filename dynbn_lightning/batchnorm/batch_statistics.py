"""Prediction-time batch normalisation: the statistics of the test batch itself."""

from __future__ import annotations

from torch import Tensor

from dynbn_lightning.batchnorm.patched_layers import PatchedLayer


class BatchStatisticsPolicy:
    """Normalise every batch by its own moments ("BN-1").

    Nado et al. 2020, "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift".
    """

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial) normalised by its own moments."""
        out, _, _ = layer.normalize_with_batch_moments(x)
        return out
