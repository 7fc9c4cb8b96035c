"""Bring features to mean 0 and variance 1, with statistics gathered while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Standardises features by the mean and variance of all that it saw in training mode.

    Not a BatchNorm layer, on purpose: it standardises alike in training and evaluation (by what is gathered so far,
    never by the batch), weighs all examples equally, and is not found by what looks for BatchNorm layers to adapt.

    Args:
        num_features: The size of the last dimension of what it standardises.
        floor: The least standard deviation that is divided by; a feature that never varied stays near 0.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_features: int, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.ones(num_features))

    def gather(self, features: Tensor) -> None:
        """Merge the statistics of features, shape (N, F) with N at least 1, into those gathered so far."""
        total = self.count + len(features)
        share = len(features) / total
        variance, mean = torch.var_mean(features.detach().to(self.mean.dtype), dim=0, correction=0)
        step = mean - self.mean
        # The variance before the first batch is a placeholder: with nothing counted its part is 0.
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * step.square())
        self.mean.add_(share * step)
        self.count.copy_(total)

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features, shape (N, F), after gathering their statistics when in training mode."""
        if self.training:
            self.gather(features)
        return (features - self.mean) / self.variance.sqrt().clamp_min(self.floor)
