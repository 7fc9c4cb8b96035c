"""Policies that find the statistics to normalise with in the activations, and what they remember of earlier ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from dynbn_lightning.batchnorm.exchange import Exchange
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.errors import MethodError


class StatisticsPolicy(ABC):
    """Normalise a layer's input with statistics that are found from it, and from what was seen before.

    Attributes:
        state: what is remembered from batch to batch, by name; empty at the beginning and for methods without memory.
        exchange: with the processes whose batches belong to the same stream.
    """

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.exchange = Exchange()

    @abstractmethod
    def statistics(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and variance for `x` (N, C, *spatial): (C,) for all images or (N, C); moves the state on."""

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x`.

        Raises:
            RoutingError: in training mode.
        """
        layer.refuse_training()
        return layer.normalize(x, *self.found(layer, x))

    def found(self, layer: PatchedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `statistics`, in full precision under autocast; the source statistics for an empty batch."""
        if not x.numel():
            return source_statistics(layer)
        with torch.autocast(x.device.type, enabled=False):
            statistics = self.statistics(layer, x)
        # Or else the graphs of all batches so far would be kept.
        self.state = {name: value.detach() for name, value in self.state.items()}
        return statistics

    def remember(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; from an empty one, anew."""
        self.state = dict(state)


def check_share(name: str, value: float) -> None:
    """Raise `MethodError` unless a setting is a share, in [0, 1]."""
    if not 0 <= value <= 1:
        raise MethodError(f"{name}={value!r}: expected a share in [0, 1]")


def check_count(name: str, value: int) -> None:
    """Raise `MethodError` unless a setting is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise MethodError(f"{name}={value!r}: expected a whole number of at least 1")
