"""Measuring BatchNorm statistics: moments of batches, merged exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.layers import find_batchnorm_layers
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.errors import DataError


class MomentAccumulator:
    """Mean and unbiased variance per channel over many batches, merged without losing the between-batch variance.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances": counts,
    means and sums of squared deviations of two sets give those of their union. Kept in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Merge `count` values per channel with this mean and unbiased variance, both (C,)."""
        if mean.device.type == "mps":  # has no float64
            mean, var = mean.cpu(), var.cpu()
        mean, squares = mean.double(), var.double() * (count - 1)
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._squares = self._squares + squares + delta.square() * (self.count * count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, both (C,) in float32."""
        if self._mean is None or self._squares is None:
            raise DataError("no activations were seen, so there are no statistics")
        return self._mean.float(), (self._squares / (self.count - 1)).float()


class CollectingPolicy:
    """Normalise every batch by its own moments, as in training, and merge these."""

    def __init__(self) -> None:
        self.moments = MomentAccumulator()

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` normalised by its own moments."""
        out, mean, var = layer.normalize_with_batch_moments(x)
        self.moments.add(x.numel() // x.shape[1], mean, var)
        return out


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back in its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def collect_statistics(model: nn.Module, batches: Iterable[Any]) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
    """Statistics that each BatchNorm layer sees when the layers before it normalise with the batch's own.

    One forward pass per batch, all other modules in evaluation mode; the model is as it was afterwards, also when a
    batch raises.

    Args:
        model: any model with BatchNorm layers.
        batches: images (N, C, H, W) as the model takes them, or tuples that begin with them. Large batches are
            better: each is normalised by its own moments, noisy for small ones.

    Returns:
        Layer name -> (mean, unbiased variance), each (C,) float32 on the CPU, and the number of images seen.

    Raises:
        DataError: if there are no batches, one holds no image tensor, or images hold NaN.
        RoutingError: if a batch gives a layer a single value per channel, which has no variance.
        UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones.
    """
    like = next((value for value in model.parameters() if value.is_floating_point()), None)
    policies: dict[str, CollectingPolicy] = {}

    def make_policy(name: str, layer: nn.Module) -> CollectingPolicy:
        policies[name] = CollectingPolicy()
        return policies[name]

    count = 0
    with evaluation_mode(model), Patch(model, make_policy):
        for batch in batches:
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(images, Tensor) or not images.is_floating_point() or images.numel() == 0:
                raise DataError(
                    "expected batches of floating image tensors, normalised as the model takes them, or tuples that "
                    f"begin with one; got {type(images).__name__}"
                    + (f" of shape {tuple(images.shape)} and {images.dtype}" if isinstance(images, Tensor) else "")
                )
            model(images if like is None else images.to(like.device, like.dtype))
            count += len(images)
    if count == 0:
        raise DataError("no image batches to measure statistics on")
    layers = find_batchnorm_layers(model)
    statistics = {}
    for name, policy in policies.items():
        # A layer outside the forward of evaluation (an auxiliary head) keeps what it came with.
        seen = policy.moments.count > 0
        mean, var = policy.moments.result() if seen else source_statistics(layers[name])
        if not (mean.isfinite().all() and var.isfinite().all()):
            raise DataError(f"the statistics of layer {name!r} are not finite: the images hold NaN or infinite values")
        statistics[name] = (mean.float().cpu(), var.float().cpu())
    return statistics, count
