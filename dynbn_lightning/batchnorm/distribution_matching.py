"""Distribution matching: activations moved onto the training distribution by quantiles, in mean, variance and shape."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.quantiles import map_values, quantiles_of, sampled, shapes_of
from dynbn_lightning.batchnorm.routing import Routing
from dynbn_lightning.batchnorm.statistics import Statistics, affine_of
from dynbn_lightning.batchnorm.statistics_policy import check_share
from dynbn_lightning.errors import MethodError, RoutingError

Per = Literal["batch", "image"]
Samples = int | Literal["auto"] | None
_SAMPLES = {"batch": 2048, "image": 128}
_BINS = {"batch": 256, "image": 64}


class DistributionMatchingPolicy:
    """Move a layer's input onto the training distribution, channel by channel, then normalise as the layer does.

    Fuchs, Knoll and Pernkopf 2021, "Distribution Mismatch Correction for Improved Robustness in Deep Neural Networks":
    x -> F_train^-1(F_test(x)), the 1-D Wasserstein-optimal map.

    Args:
        quantiles: of the training activations that reach the layer, (C, Q), at `quantiles.probabilities(Q)`.
        per: whose activations F_test is of: the `"batch"`'s, or each `"image"`'s own.
        strength: how much of the way each activation goes, in [0, 1].
        samples: how many activations of each channel F_test is estimated from; `"auto"` for 2,048 of a batch and 128 of
            an image, None for all of them, and for the map at the quantiles themselves in place of equal bins.

    Raises:
        MethodError: for settings out of range.
    """

    def __init__(self, quantiles: Tensor, per: Per = "batch", strength: float = 1.0, samples: Samples = "auto") -> None:
        check_matching(per, strength, samples)
        self.quantiles, self.per, self.strength = quantiles, per, strength
        self.samples = _SAMPLES[per] if samples == "auto" else samples

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial).

        Raises:
            RoutingError: in training mode, or for a single value per channel, which has no distribution.
        """
        return layer.own_forward(self.matched(layer, x))

    def matched(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """`x` (N, C, *spatial), moved."""
        layer.refuse_training()
        if not x.numel():
            return x
        activations = x.reshape(len(x), x.shape[1], -1)
        sample = sampled(activations, self.samples, per_image=self.per == "image")
        if sample.shape[-1] < 2:
            raise RoutingError(
                f"activations of shape {tuple(x.shape)} have one value per channel"
                + (" and image" if self.per == "image" else "")
                + ", so no distribution: use larger batches, per='batch', or skip= for layers without spatial extent"
            )
        found = quantiles_of(sample, self.quantiles.shape[1])
        wanted = torch.lerp(found, self.quantiles.to(found), self.strength)
        bins = None if self.samples is None else _BINS[self.per]
        return map_values(activations, found, wanted, bins).view(x.shape)


class RoutedMatchingPolicy:
    """Move each image's activations from its row's distribution onto the source's, then normalise as the layer does.

    Mean and variance are those that the routing gives to each image, as calibrated; the form of the distribution, which
    is what quantiles add, is the row's. Where the row's form is the source's, this is routing itself.

    Args:
        name: the layer's.
        routing: tells each image's statistics and weights over rows.
        quantiles: of each row, (K, C, Q).
        strength: how much of the form is corrected, in [0, 1]; 0 is routing alone.

    Raises:
        MethodError: for a strength out of range.
    """

    def __init__(self, name: str, routing: Routing, quantiles: Tensor, strength: float = 1.0) -> None:
        check_matching("image", strength, None)
        self.name, self.routing, self.strength = name, routing, strength
        self.shapes = shapes_of(quantiles)

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial) under the routing's present assignment."""
        statistics = self.routing.statistics(self.name, layer, x)
        if statistics is None:
            return layer.own_forward(x)
        weights = self.routing.weights_for(x)
        if weights is None or not x.numel():  # statistics of someone's own are of no row, so of no known form
            return layer.normalize_with(x, statistics)
        with torch.autocast(x.device.type, enabled=False):
            moved = self._moved(layer, x, statistics, weights)
        affine = affine_of(statistics)
        if affine is None:
            return layer.own_forward(moved)
        mean, var = (table.expand_as(statistics.mean) for table in source_statistics(layer))
        return layer.normalize(moved, mean, var, affine)

    def _moved(self, layer: PatchedLayer, x: Tensor, statistics: Statistics, weights: Tensor) -> Tensor:
        mean, var = (table.reshape(-1, x.shape[1], 1) for table in layer.moments_for(x, statistics))
        source_mean, source_var = (table.view(1, -1, 1) for table in source_statistics(layer))
        spread, source_spread = (var + layer.eps).sqrt(), (source_var + layer.eps).sqrt()
        shapes = self.shapes.to(mean)
        start = torch.einsum("nk,kcq->ncq", weights.to(mean), shapes)
        end = torch.lerp(start, shapes[:1].expand_as(start), self.strength)
        start, end = start * spread + mean, end * source_spread + source_mean
        # A channel that was constant in its row has no form: shifted and scaled.
        flat = (start[..., -1:] - start[..., :1]) <= 1e-6 * spread
        line = torch.linspace(-1, 1, start.shape[-1], device=x.device, dtype=mean.dtype)
        start = torch.where(flat, line * spread + mean, start)
        end = torch.where(flat, line * source_spread + source_mean, end)
        activations = x.reshape(len(x), x.shape[1], -1)
        return map_values(activations, start, end, _BINS["image"]).view(x.shape)


def check_matching(per: str, strength: float, samples: Samples) -> None:
    """Raise `MethodError` for settings of distribution matching that are out of range."""
    if per not in get_args(Per):
        raise MethodError(f"per={per!r}: expected 'batch' or 'image'")
    check_share("strength", strength)
    if samples not in ("auto", None) and not (isinstance(samples, int) and samples >= 2):
        raise MethodError(f"samples={samples!r}: expected at least 2, 'auto', or None for all activations")
