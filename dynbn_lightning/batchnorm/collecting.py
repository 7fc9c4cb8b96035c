"""Measuring BatchNorm statistics: the moments that each layer sees, given what the layers before it do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.layers import find_batchnorm_layers
from dynbn_lightning.batchnorm.moments import MomentAccumulator, merged_over_ranks
from dynbn_lightning.batchnorm.normalization import batch_moments
from dynbn_lightning.batchnorm.patched_layers import PatchedLayer, source_statistics
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.ranks import gather_from_ranks
from dynbn_lightning.batchnorm.sequential_collecting import Sequence
from dynbn_lightning.errors import DataError, did_you_mean

Propagation = Literal["batch", "source", "sequential"]
PROPAGATIONS: tuple[str, ...] = get_args(Propagation)


class BatchPropagation:
    """Normalise every batch by its own moments, as in training, and merge these."""

    def __init__(self, moments: MomentAccumulator) -> None:
        self._moments = moments

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's output for `x` normalised by its own moments."""
        out, mean, var = layer.normalize_with_batch_moments(x)
        self._moments.add(x.numel() // x.shape[1], mean, var)
        return out


class SourcePropagation:
    """Normalise by the source statistics, as the unpatched model does, and merge the moments of the inputs."""

    def __init__(self, moments: MomentAccumulator) -> None:
        self._moments = moments

    def __call__(self, layer: PatchedLayer, x: Tensor) -> Tensor:
        """Return the layer's own output for `x`."""
        self._moments.add(*batch_moments(x))
        return layer.own_forward(x)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and run compiled ones uncompiled; all as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    stance: Any = None

    def give_back() -> None:
        for module, training in modes.items():
            module.training = training
        if stance is not None:
            stance.__exit__(None, None, None)

    try:
        try:
            stance = torch.compiler.set_stance("force_eager")
            model.eval()
            yield
        finally:
            give_back()
    except BaseException:  # an interrupt while giving back: finish first
        give_back()
        raise


@torch.no_grad()
def collect_statistics(
    model: nn.Module, batches: Iterable[Any], propagate: Propagation = "batch", skip: Collection[str] = ()
) -> tuple[dict[str, tuple[Tensor, Tensor]], int]:
    """The statistics of the activations that reach each BatchNorm layer.

    Over all batches and, where `torch.distributed` runs, over the batches of all ranks. Other modules are in evaluation
    mode, compiled ones run uncompiled; the model is as it was afterwards, also when a batch raises.

    Args:
        model: any model with BatchNorm layers.
        batches: images (N, C, H, W) as the model takes them, or tuples that begin with them.
        propagate: what the layers before a layer do, see `BNStatsBank.collect`.
        skip: names of layers, or of modules that hold some, which are left as they are.

    Returns:
        Layer name -> (mean, unbiased variance), each (C,) float32 on the CPU, and the number of images seen.

    Raises:
        DataError: if there are no batches, one holds no image tensor, or images hold NaN, or `propagate` is unknown.
        RoutingError: if `"batch"` gives a layer a single value per channel, which has no variance, or the model calls
            its layers in another order from batch to batch, which `"sequential"` cannot follow.
        UnsupportedModelError: if the model has no BatchNorm layers or unsupported ones that are not skipped.
    """
    check_propagation(propagate)
    layers = find_batchnorm_layers(model, skip)
    images = Images(batches, next((value for value in model.parameters() if value.is_floating_point()), None))
    with evaluation_mode(model):
        if propagate == "sequential":
            moments = Sequence(model, images, skip).measure()
        else:
            policy = BatchPropagation if propagate == "batch" else SourcePropagation
            moments = merged_over_ranks(lambda: _in_one_pass(model, images, policy, skip))
    count = sum(gather_from_ranks(images.count))
    if count == 0:
        raise DataError("no image batches to measure statistics on")
    statistics = {}
    for name, layer in layers.items():
        # A layer outside the forward of evaluation (an auxiliary head) keeps what it came with.
        seen = name in moments and moments[name].count > 0
        mean, var = moments[name].result() if seen else source_statistics(layer)
        if not (mean.isfinite().all() and var.isfinite().all()):
            raise DataError(f"the statistics of layer {name!r} are not finite: the images hold NaN or infinite values")
        statistics[name] = (mean.float().cpu(), var.float().cpu())
    return statistics, count


def check_propagation(propagate: str) -> None:
    """Raise `DataError` unless `propagate` is one of `PROPAGATIONS`."""
    if propagate not in PROPAGATIONS:
        raise DataError(f"propagate={propagate!r}: {did_you_mean(str(propagate), PROPAGATIONS)}")


def _in_one_pass(
    model: nn.Module, images: Iterable[Tensor], policy: Callable[[MomentAccumulator], Any], skip: Collection[str]
) -> dict[str, MomentAccumulator]:
    moments: dict[str, MomentAccumulator] = {}

    def make_policy(name: str, layer: nn.Module) -> Any:
        return policy(moments.setdefault(name, MomentAccumulator()))

    with Patch(model, make_policy, skip):
        for batch in images:
            model(batch)
    return moments


class Images:
    """The image tensors of batches, where and in the dtype that the model has its own; counts them."""

    def __init__(self, batches: Iterable[Any], like: Tensor | None) -> None:
        self._batches, self._like = batches, like
        self.count = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.count = 0
        for batch in self._batches:
            images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(images, Tensor) or not images.is_floating_point() or images.numel() == 0:
                raise DataError(
                    "expected batches of floating image tensors, normalised as the model takes them, or tuples that "
                    f"begin with one; got {type(images).__name__}"
                    + (f" of shape {tuple(images.shape)} and {images.dtype}" if isinstance(images, Tensor) else "")
                )
            self.count += len(images)
            yield images if self._like is None else images.to(self._like.device, self._like.dtype)
