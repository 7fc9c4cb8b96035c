"""Un-mixed test-time statistics: several components per layer, of which each image takes those like itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dynbn_lightning.batchnorm.normalization import image_moments
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.statistics_policy import StatisticsPolicy, check_count, check_share
from dynbn_lightning.errors import MethodError

BATCH_OF_MOMENTUM = 64
"""The batch size that a layer's momentum is meant for; other ones move the components by as much per image."""


def initial_components(
    mean: Tensor, var: Tensor, components: int, spread: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Components around the source statistics, whose mixture has these as its moments, in expectation.

    Args:
        mean: source mean, shape (C,).
        var: source variance, shape (C,).
        components: K.
        spread: the share of the variance that goes into the spread of the means, in [0, 1]; one component has none.
        generator: of the normal draws, on the CPU.

    Returns:
        Means and variances, (K, C) each.
    """
    if components == 1:
        return mean.unsqueeze(0).clone(), var.unsqueeze(0).clone()
    draws = torch.randn(components, len(mean), generator=generator).to(mean)
    means = mean + math.sqrt(spread * components / (components - 1)) * var.sqrt() * draws
    return means, (1 - spread) * var.expand_as(means)


def likeness(image_mean: Tensor, means: Tensor, temperature: float) -> Tensor:
    """Softmax over K components of their means' cosine similarity to each image's, (N, K), divided by a temperature."""
    similarity = F.normalize(image_mean, dim=1) @ F.normalize(means, dim=1).T
    return (similarity / temperature).softmax(dim=1)


def unmixed_moments(
    image_mean: Tensor, image_var: Tensor, means: Tensor, variances: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """What each image is normalised by: the moments of K components that have each moved towards it by their weight.

    As in the code of Tomar et al. 2024: mean_k' = (1 - p_k) mean_k + p_k mean of the image, the same for the variance;
    their equal mixture has mean = avg_k mean_k' and var = avg_k var_k' + avg_k (mean_k' - mean)^2.

    Args:
        image_mean: each image's own mean, (N, C).
        image_var: its own biased variance, (N, C).
        means: of the components, (K, C).
        variances: of the components, (K, C).
        weights: p, (N, K).

    Returns:
        Means and variances, (N, C) each.
    """
    share = weights.unsqueeze(2)
    moved = torch.lerp(means.unsqueeze(0), image_mean.unsqueeze(1), share)
    mean = moved.mean(1)
    within = torch.lerp(variances.unsqueeze(0), image_var.unsqueeze(1), share).mean(1)
    return mean, within + (moved - mean.unsqueeze(1)).square().mean(1)


def moved_components(components: Tensor, of_images: Tensor, weights: Tensor, momentum: float) -> Tensor:
    """Components (K, C) moved towards the images' (N, C), by momentum and each image's weight (N, K), on average."""
    pull = weights.T @ of_images - weights.sum(0).unsqueeze(1) * components
    return components + momentum / len(weights) * pull


class UnMixPolicy(StatisticsPolicy):
    """Normalise each image by the moments of K components that the images like it have formed.

    Tomar et al. 2024, "Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation", section 3.
    Activations without spatial extent have no moments of an image's own: such layers keep the source statistics, as in
    the authors' code.

    Args:
        components: K.
        temperature: what cosine similarities are divided by.
        spread: see `initial_components`.
        momentum: how far a batch of 64 images moves the components; None for the layer's own, 0.1 where it has none.
        seed: of the components' beginnings.

    Raises:
        MethodError: for settings out of range.
    """

    def __init__(
        self,
        components: int = 16,
        temperature: float = 0.07,
        spread: float = 0.5,
        momentum: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count("components", components)
        if not temperature > 0:
            raise MethodError(f"temperature={temperature!r}: expected one above 0")
        for name, share in (("spread", spread), ("momentum", momentum)):
            if share is not None:
                check_share(name, share)
        self.components, self.temperature, self.spread = components, temperature, spread
        self.momentum, self.seed = momentum, seed

    def statistics(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each image's mean and variance, (N, C) each; then moves the components."""
        source_mean, source_var = source_statistics(layer)
        if x.dim() == 2:
            return source_mean, source_var
        if not self.state:
            generator = torch.Generator().manual_seed(self.seed)
            parts = initial_components(source_mean, source_var, self.components, self.spread, generator)
            self.state = dict(zip(("mean", "var"), parts, strict=True))
        means, variances = self.state["mean"].to(source_mean), self.state["var"].to(source_var)
        own = source_mean, source_var
        for rank, (image_mean, image_var) in enumerate(self.exchange.rows(*image_moments(x))):
            weights = likeness(image_mean, means, self.temperature)
            if rank == self.exchange.rank:
                own = unmixed_moments(image_mean, image_var, means, variances, weights)
            momentum = 1 - (1 - self._momentum(layer)) ** (len(image_mean) / BATCH_OF_MOMENTUM)
            means = moved_components(means, image_mean, weights, momentum)
            variances = moved_components(variances, image_var, weights, momentum)
        self.state = {"mean": means, "var": variances}
        return own

    def _momentum(self, layer: PatchedLayer) -> float:
        momentum = getattr(layer, "momentum", None) if self.momentum is None else self.momentum
        return 0.1 if momentum is None else float(momentum)
