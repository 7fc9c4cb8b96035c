"""What BatchNorm layers normalise with: the rows of a bank, and what images are assigned, in one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynbn_lightning.batchnorm.mixing import Mixing, check_mixing, mix_rows, mix_values


class Statistics(NamedTuple):
    """Statistics of all layers of a model, side by side: of K rows, of N images, or of one row that is shared.

    Attributes:
        mean: shape (..., channels of all layers), where `...` is K, N or nothing; so in all of them.
        var: unbiased variances, the same shape.
        weight: scales to take instead of the layers' own, the same shape; None for the layers' own.
        bias: shifts to take instead of the layers' own; given if `weight` is.
        image_share: how much of an image's own moments goes into what it is normalised with, layer by layer, in
            [0, 1], shape (..., layers); None for nothing at all.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    image_share: Tensor | None = None

    def of_layer(self, channels: slice, layer: int) -> Statistics:
        """The statistics of one layer, `image_share` with one column."""
        share = None if self.image_share is None else self.image_share[..., layer : layer + 1]
        weight, bias = (None if table is None else table[..., channels] for table in (self.weight, self.bias))
        return Statistics(self.mean[..., channels], self.var[..., channels], weight, bias, share)

    def map(self, function: Callable[[Tensor], Tensor]) -> Statistics:
        """The statistics with `function` applied to every table that is given."""
        # Field by field: torch.compile of torch 2.6 can't take a part of a named tuple.
        others = (None if table is None else function(table) for table in (self.weight, self.bias, self.image_share))
        return Statistics(function(self.mean), function(self.var), *others)

    def mixed(self, weights: Tensor, mixing: Mixing = "moments") -> Statistics:
        """The mixtures of these rows by weights (N, K): moments as in `mix_rows`, all else averaged.

        Where gradients are wanted, by matrix products in float64, which are as exact but copy no row to the last bit.
        """
        if torch.is_grad_enabled() and any(table is not None and table.requires_grad for table in (weights, *self)):
            return self._mixed_with_gradients(weights, mixing)
        mean, var = mix_rows(weights, self.mean, self.var, mixing)
        others = (None if table is None else mix_values(weights, table) for table in self[2:])
        return Statistics(mean, var, *others)

    def _mixed_with_gradients(self, weights: Tensor, mixing: Mixing) -> Statistics:
        check_mixing(mixing)
        # Row by row, autograd would keep an (N, channels) table for each row.
        weights, rows = weights.double(), self.map(Tensor.double)
        # What a softmax in float32 lacks to 1 would leave that share of the squared mean in the variance.
        weights = weights / weights.sum(1, keepdim=True)
        mixtures = rows.map(lambda table: weights @ table)
        if mixing == "moments":
            squares = weights @ rows.mean.square()
            mixtures = mixtures._replace(var=mixtures.var + squares - mixtures.mean.square())
        return mixtures.map(lambda table: table.to(self.mean.dtype))

    def blended_with_source(self, shares: Tensor, widths: Sequence[int]) -> Statistics:
        """These rows with a share of row 0 in their moments, layer by layer, as of the mixed distribution.

        Args:
            shares: share of row 0, shape (K, layers), in [0, 1].
            widths: channels of each layer.
        """
        share = shares.repeat_interleave(torch.tensor(widths, device=shares.device), dim=1)
        mean = self.mean.lerp(self.mean[:1], share)
        var = (1 - share) * (self.var + (self.mean - mean).square())
        var = var + share * (self.var[:1] + (self.mean[:1] - mean).square())
        return self._replace(mean=mean, var=var)


def affine_of(statistics: Statistics) -> tuple[Tensor, Tensor] | None:
    """Scale and shift to take instead of the layers' own; None for these."""
    # No property: torch.compile of torch 2.6 can't look at one of a named tuple.
    return None if statistics.weight is None or statistics.bias is None else (statistics.weight, statistics.bias)


def blend_moments(
    mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor, share: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The moments of a mixture of two distributions, of which the other one has a share.

    With an image's own moments as the other it is what calibrated rows do. Normalising with a mixture of an image's own
    moments and the source's is from Khurana et al. 2021, "SITA: Single Image Test-time Adaptation", section 3, which
    averages the variances; here the share is one of a row's.

    Args:
        mean: of each image's row, shape (N, C), or (C,) for all.
        var: of the shape of `mean`.
        other_mean: of each image, (N, C), or of all, (C,).
        other_var: of the shape of `other_mean`.
        share: of the other one, in [0, 1]: a number, or of shape (N, 1) or (1,).

    Returns:
        Means and variances, (N, C), or (C,) where all are.
    """
    step = other_mean - mean
    return mean + share * step, (1 - share) * var + share * other_var + share * (1 - share) * step.square()
