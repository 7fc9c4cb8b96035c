"""Prediction-time batch normalisation: the statistics of the test batch itself."""

from __future__ import annotations

from torch import Tensor

from dynbn_lightning.batchnorm.patched_layers import PatchedLayer
from dynbn_lightning.errors import RoutingError


class BatchStatisticsPolicy:
    """Normalise every batch by its own moments ("BN-1").

    Nado et al. 2020, "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift".
    """

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial) normalised by its own moments.

        Raises:
            RoutingError: in training mode, or for a single value per channel, which has no variance.
        """
        if layer.training:
            raise RoutingError(
                "a layer is in training mode while it is patched to use batch statistics, so its running ones would "
                "not move: call model.eval(), or undo the patch before training"
            )
        out, _, _ = layer.normalize_with_batch_moments(x)
        return out
