"""Measuring layer after layer, each on what the finished statistics of those before it make of the images."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from dynbn_lightning.batchnorm.moments import MomentAccumulator, merged_over_ranks
from dynbn_lightning.batchnorm.normalization import batch_moments
from dynbn_lightning.batchnorm.patched_layers import LayerPolicy, PatchedLayer
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.ranks import gather_from_ranks
from dynbn_lightning.errors import RoutingError


class _Reached(BaseException):
    """Ends a forward at the layer that is being measured; no `except Exception` in a model holds it up."""


class Sequence:
    """One pass over the images for every call of a BatchNorm layer in a forward, each as far as that call.

    Half a forward per call and image on average. The images are kept, so `images` need not be the same at every
    iteration. A layer that is called several times has the merged statistics of its calls so far.
    """

    def __init__(self, model: nn.Module, images: Iterable[Tensor], skip: Collection[str]) -> None:
        self._model, self._images, self._skip = model, images, skip
        self._order: list[str] = []  # the names of the layers as a forward calls them
        self._position = 0  # how many of these calls the present forward has made
        self._measured = 0  # how many have their statistics
        self._moments: dict[str, MomentAccumulator] = {}
        self._statistics: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(self) -> dict[str, MomentAccumulator]:
        """Layer name -> the moments that it sees, merged over all ranks."""
        kept: list[Tensor] = []

        def keep_images() -> dict[str, MomentAccumulator]:
            kept.extend(self._images)
            if kept:
                with Patch(self._model, lambda name, layer: _Listing(self._order, name), self._skip):
                    self._model(kept[0])
            return {}

        merged_over_ranks(keep_images)
        self._order = next((order for order in gather_from_ranks(self._order) if order), [])
        for name in self._order:
            found = merged_over_ranks(lambda: self._measure_call(kept))
            self._moments.setdefault(name, MomentAccumulator()).merge(found[name])
            mean, var = self._moments[name].result()
            device = kept[0].device if kept else mean.device
            self._statistics[name] = mean.to(device), var.to(device)
            self._measured += 1
        return self._moments

    def _measure_call(self, images: list[Tensor]) -> dict[str, MomentAccumulator]:
        moments = MomentAccumulator()

        def make_policy(name: str, layer: nn.Module) -> LayerPolicy:
            return _UpTo(self, name, moments)

        with Patch(self._model, make_policy, self._skip):
            for batch in images:
                self._position = 0
                try:
                    self._model(batch)
                except _Reached:
                    continue
                if self._position <= self._measured:
                    raise _another_order(self._order[self._position])
        return {self._order[self._measured]: moments}

    def call(self, name: str, layer: PatchedLayer, x: Tensor, moments: MomentAccumulator) -> Tensor:
        """What the layer called `name` does in the pass that measures into `moments`."""
        position = self._position
        self._position += 1
        if position == len(self._order) or self._order[position] != name:
            raise _another_order(name)
        if position < self._measured:
            return layer.normalize(x, *self._statistics[name])
        moments.add(*batch_moments(x))
        if self._position < len(self._order):
            raise _Reached
        return layer.own_forward(x)  # and on to the end, to see that no other call follows


class _Listing:
    """Takes a layer's name down and does what the layer does."""

    def __init__(self, order: list[str], name: str) -> None:
        self._order, self._name = order, name

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        self._order.append(self._name)
        return layer.own_forward(x)


class _UpTo:
    """Lets a layer do its part in a pass of a `Sequence`."""

    def __init__(self, sequence: Sequence, name: str, moments: MomentAccumulator) -> None:
        self._sequence, self._name, self._moments = sequence, name, moments

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        return self._sequence.call(self._name, layer, x, self._moments)


def _another_order(name: str) -> RoutingError:
    return RoutingError(
        f"the model calls its BatchNorm layers in another order from batch to batch (seen at layer {name!r}), which "
        'propagate="sequential" cannot follow: use propagate="batch"'
    )
