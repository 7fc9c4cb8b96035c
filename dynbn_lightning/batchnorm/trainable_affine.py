"""Batch statistics with a scale and shift of one's own, for methods that optimise these."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.patched_layers import PatchedLayer


class TrainableAffinePolicy:
    """Normalise every batch by its own moments, with a copy of the layer's scale and shift that can be optimised.

    The layer's own are left alone. A layer without scale and shift has nothing to optimise.

    Attributes:
        weight: scale, (C,) in at least float32, a leaf that requires gradients; None for a layer without.
        bias: shift, likewise.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._own = [_float_copy(getattr(layer, name, None)) for name in ("weight", "bias")]
        self.weight, self.bias = (None if own is None else own.clone().requires_grad_() for own in self._own)

    @property
    def state(self) -> dict[str, Tensor]:
        """The scale and the shift, by name; those that there are."""
        return {name: value for name, value in (("weight", self.weight), ("bias", self.bias)) if value is not None}

    def remember(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a state; with an empty one the layer's own again."""
        for (name, value), own in zip(self.state.items(), (own for own in self._own if own is not None), strict=True):
            value.data.copy_(state.get(name, own))

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (N, C, *spatial).

        Raises:
            RoutingError: in training mode, or for a single value per channel, which has no variance.
        """
        layer.refuse_training()
        out, _, _ = layer.normalize_with_batch_moments(x, (self.weight, self.bias))
        return out


def _float_copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
