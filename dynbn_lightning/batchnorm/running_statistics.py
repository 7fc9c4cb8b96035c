"""Statistics gathered over a stream: a running average, and a few images' statistics that are then kept."""

from __future__ import annotations

import torch
from torch import Tensor

from dynbn_lightning.batchnorm.moments import MomentAccumulator
from dynbn_lightning.batchnorm.normalization import batch_moments
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.statistics_policy import StatisticsPolicy, check_count, check_share


class RunningAveragePolicy(StatisticsPolicy):
    """Normalise by an exponential average over the stream's batches, begun at the source statistics.

    Before a batch is normalised, mean <- (1 - momentum) * mean + momentum * batch mean, and the same for the (unbiased)
    variance, as torch's running statistics move in training.

    Args:
        momentum: what each batch weighs, in [0, 1].

    Raises:
        MethodError: for another momentum.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        check_share("momentum", momentum)
        self.momentum = momentum

    def statistics(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """The average with this batch in it, (C,) each."""
        mean, var = source_statistics(layer)
        if self.state:
            mean, var = self.state["mean"].to(mean), self.state["var"].to(var)
        count, batch_mean, batch_var = batch_moments(x)
        mean = torch.lerp(mean, batch_mean.to(mean), self.momentum)
        if count > 1:  # a single value says nothing of the variance
            var = torch.lerp(var, batch_var.to(var), self.momentum)
        self.state = {"mean": mean, "var": var}
        return mean, var


class FirstImagesPolicy(StatisticsPolicy):
    """Normalise by the moments of the first images alone, pooled over batches until there are enough, then kept.

    Benz et al. 2021, "Revisiting Batch Normalization for Improving Corruption Robustness", section 4: the forward of
    one batch in training mode replaces the source statistics, which are then frozen. A layer's statistics are those of
    the first images as the layers before it normalise them, so a larger batch needs no forward of its own for them. In
    batches that are smaller than `images`, each is normalised by what was seen so far.

    Args:
        images: how many.

    Raises:
        MethodError: if that is not positive.
    """

    def __init__(self, images: int = 32) -> None:
        super().__init__()
        check_count("images", images)
        self.images = images

    @property
    def missing(self) -> int:
        """How many images are still to be seen."""
        return max(0, self.images - int(self.state.get("images", 0)))

    def statistics(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of the first images, (C,) each; the source statistics while these have no variance."""
        if self.missing:
            first = x[: self.missing]
            moments = MomentAccumulator()
            if self.state:
                moments.add(int(self.state["values"]), self.state["mean"].to(x.device), self.state["var"].to(x.device))
            moments.add(*batch_moments(first))
            mean, var = moments.moments()
            self.state = {
                "images": self.state.get("images", torch.tensor(0)) + len(first),
                "values": torch.tensor(moments.count),
                "mean": mean,
                "var": var,
            }
        if int(self.state["values"]) < 2:
            return source_statistics(layer)
        return self.state["mean"].to(x.device), self.state["var"].to(x.device)
