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
        own = mean, var
        for rank, (count, batch_mean, batch_var) in enumerate(self.exchange.moments(*batch_moments(x))):
            mean = torch.lerp(mean, batch_mean.to(mean), self.momentum)
            if count > 1:  # a single value says nothing of the variance
                var = torch.lerp(var, batch_var.to(var), self.momentum)
            if rank == self.exchange.rank:
                own = mean, var
        self.state = {"mean": mean, "var": var}
        return own


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
        self.state = {name: value.to(x.device) if value.dim() else value for name, value in self.state.items()}
        own = self.state
        if self.missing:
            taken = self._images_of_round(len(x), x.device)
            first = x[: taken[self.exchange.rank]]
            nothing = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            found = batch_moments(first) if len(first) else (0, nothing, nothing)
            for rank, (images, moments) in enumerate(zip(taken, self.exchange.moments(*found), strict=True)):
                if images:
                    self._add(images, *moments)
                if rank == self.exchange.rank:
                    own = self.state
        if int(own["values"]) < 2:
            return source_statistics(layer)
        return own["mean"], own["var"]

    def _images_of_round(self, images: int, device: torch.device) -> list[int]:
        """How many of the images that are missing each batch of the round has; they are the first ones of all."""
        taken, missing = [], self.missing
        for its_images in self.exchange.counts(images, device):
            taken.append(min(its_images, missing))
            missing -= taken[-1]
        return taken

    def _add(self, images: int, values: int, mean: Tensor, var: Tensor) -> None:
        moments = MomentAccumulator()
        if self.state:
            moments.add(int(self.state["values"]), self.state["mean"], self.state["var"])
        moments.add(values, mean, var)
        mean, var = moments.moments()
        images += int(self.state.get("images", 0))
        self.state = {"images": torch.tensor(images), "values": torch.tensor(moments.count), "mean": mean, "var": var}
