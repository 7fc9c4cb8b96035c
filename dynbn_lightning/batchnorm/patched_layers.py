"""The subclass that stands in for each BatchNorm class while it is patched.

A patched layer is the user's own layer object with its `__class__` swapped: parameters, buffers, hooks and names stay
as they are. What it does is decided by its policy, a callable kept as a plain attribute; the subclass knows only what
is particular to its class: its arithmetic, and what follows the normalisation (timm's dropout and activation).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm.normalization import (
    image_moments,
    normalize_batch,
    normalize_with_batch_moments,
    several_batch_moments,
)
from dynbn_lightning.batchnorm.statistics import Statistics, affine_of, blend_moments
from dynbn_lightning.errors import RoutingError

Affine = tuple[Tensor | None, Tensor | None]


class LayerPolicy(Protocol):
    """What a patched layer does with its input: `policy(layer, x)` returns the layer's output."""

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the output of `layer` for activations `x` of shape (N, C, *spatial)."""
        ...


class PatchedLayer:
    """Mixin of every patched class; comes before the class it stands in for."""

    dynbn_policy: LayerPolicy
    eps: float
    training: bool

    def forward(self, x: Tensor) -> Tensor:
        """Do what the policy says."""
        return self.dynbn_policy(self, x)

    def own_forward(self, x: Tensor) -> Tensor:
        """The forward of the class that this layer had before it was patched, with its own statistics."""
        out: Tensor = super().forward(x)  # type: ignore[misc]
        return out

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor, affine: Affine | None = None) -> Tensor:
        """The layer's output with statistics of shape (C,), shared, or (N, C), one row per image.

        `affine` is a scale and a shift of the shape of the statistics to take instead of the layer's own.
        """
        self._check(x)
        return self.finish(normalize_batch(x, mean, var, *(affine or self._affine()), self.eps))

    def normalize_with(self, x: Tensor, statistics: Statistics) -> Tensor:
        """The layer's output with this layer's statistics of each image, or of all; see `Statistics`."""
        mean, var = self.moments_for(x, statistics)
        return self.normalize(x, mean, var, affine_of(statistics))

    def moments_for(self, x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensor]:
        """The mean and variance that these statistics give for `x`, its images' own moments blended in."""
        mean, var, _, _, image_share = statistics
        if image_share is None or not x.numel():  # an empty batch has no moments
            return mean, var
        self._check(x)
        return blend_moments(mean, var, *image_moments(x), image_share)

    def normalize_with_batch_moments(self, x: Tensor, affine: Affine | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output with the moments of `x` itself, their mean (C,) and unbiased variance (C,).

        `affine` is a scale and a shift, (C,) each, to take instead of the layer's own.
        """
        self._check(x)
        out, mean, var = normalize_with_batch_moments(x, *(affine or self._affine()), self.eps)
        return self.finish(out), mean, var

    def finish(self, x: Tensor) -> Tensor:
        """What the class does after normalising; nothing, for most."""
        return x

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        return getattr(self, "weight", None), getattr(self, "bias", None)

    def refuse_training(self) -> None:
        """Raise `RoutingError` in training mode: running statistics would not move while the layer is patched."""
        if self.training:
            raise RoutingError(
                "a layer is in training mode while it is patched with other statistics, so its running ones would "
                "not move: call model.eval(), or undo the patch before training"
            )

    def _check(self, x: Tensor) -> None:
        check = getattr(self, "_check_input_dim", None)
        if check is not None:
            check(x)


class PatchedBatchNorm1d(PatchedLayer, nn.BatchNorm1d):
    """Stands in for `torch.nn.BatchNorm1d`."""


class PatchedBatchNorm2d(PatchedLayer, nn.BatchNorm2d):
    """Stands in for `torch.nn.BatchNorm2d`."""


class PatchedBatchNorm3d(PatchedLayer, nn.BatchNorm3d):
    """Stands in for `torch.nn.BatchNorm3d`."""


class PatchedSyncBatchNorm(PatchedLayer, nn.SyncBatchNorm):
    """Stands in for `torch.nn.SyncBatchNorm`."""


class FrozenArithmetic(PatchedLayer):
    """Layers that multiply by a precomputed scale instead of calling batch norm.

    Another rounding and another result dtype, both kept here: the scale is computed in the dtype of the layer's
    buffers, and activations of a lower one are promoted to it.
    """

    def normalize(self, x: Tensor, mean: Tensor, var: Tensor, affine: Affine | None = None) -> Tensor:
        """The layer's output with statistics of shape (C,) or (N, C), in the frozen layers' own arithmetic."""
        own = self._affine()
        weight, bias = affine or own
        assert own[0] is not None
        assert weight is not None
        assert bias is not None
        weight, bias, mean, var = (t.to(own[0].dtype).reshape(-1, x.shape[1]) for t in (weight, bias, mean, var))
        per_channel = (-1, x.shape[1]) + (1,) * (x.dim() - 2)
        scale = weight * _inverse_root(var + self.eps)
        shift = bias - mean * scale
        return self.finish(x * scale.view(per_channel) + shift.view(per_channel))

    def normalize_with_batch_moments(self, x: Tensor, affine: Affine | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As the base class; the moments come first, then the frozen arithmetic with the biased variance."""
        self._check(x)
        values, mean, var = several_batch_moments(x)
        return self.normalize(x, mean, var * ((values - 1) / values), affine), mean, var


def _inverse_root(var: Tensor) -> Tensor:
    # A half-precision rsqrt on the CPU rounds the elements that fill no vector differently, so that a row's bits
    # would depend on the rows before it: one row at a time there, as the layer itself does.
    if var.device.type == "cpu" and var.dtype in (torch.bfloat16, torch.float16):
        return torch.stack([row.rsqrt() for row in var])
    return var.rsqrt()


class PatchedFrozenBatchNorm2d(FrozenArithmetic, FrozenBatchNorm2d):  # type: ignore[misc]
    """Stands in for `torchvision.ops.FrozenBatchNorm2d`."""


class DropAndActivate(PatchedLayer):
    """timm's layers that apply dropout and an activation after normalising."""

    def finish(self, x: Tensor) -> Tensor:
        """The layer's own dropout, then its own activation, where it has them."""
        for name in ("drop", "act"):
            step = getattr(self, name, None)
            if step is not None:
                x = step(x)
        return x


def source_statistics(layer: nn.Module | PatchedLayer) -> tuple[Tensor, Tensor]:
    """The running mean and variance that a layer came with, each (C,), detached and in at least float32."""
    mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    dtype = torch.promote_types(mean.dtype, torch.float32)
    return mean.detach().to(dtype), var.detach().to(dtype)


def own_statistics(layers: Iterable[nn.Module]) -> Statistics:
    """What layers came with, side by side, as one row; the scale and shift of a layer without are 1 and 0."""
    tables: list[tuple[Tensor, ...]] = []
    for layer in layers:
        mean, var = source_statistics(layer)
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        weight = torch.ones_like(mean) if weight is None else weight.detach().to(mean.dtype)
        bias = torch.zeros_like(mean) if bias is None else bias.detach().to(mean.dtype)
        tables.append((mean, var, weight, bias))
    return Statistics(*(torch.cat(parts) for parts in zip(*tables, strict=True)))
