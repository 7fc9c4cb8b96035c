"""Which layers of a model are BatchNorm layers, and which class stands in for each while it is patched."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from dynbn_lightning.batchnorm.patched_layers import (
    PatchedBatchNorm1d,
    PatchedBatchNorm2d,
    PatchedBatchNorm3d,
    PatchedFrozenBatchNorm2d,
    PatchedLayer,
    PatchedSyncBatchNorm,
)
from dynbn_lightning.errors import RoutingError, UnsupportedModelError, first_few

_PATCHED_CLASSES: dict[type[nn.Module], type[PatchedLayer]] = {
    nn.BatchNorm1d: PatchedBatchNorm1d,
    nn.BatchNorm2d: PatchedBatchNorm2d,
    nn.BatchNorm3d: PatchedBatchNorm3d,
    nn.SyncBatchNorm: PatchedSyncBatchNorm,
    FrozenBatchNorm2d: PatchedFrozenBatchNorm2d,
}


def register(layer_class: type[nn.Module], patched_class: type[PatchedLayer]) -> None:
    """Say which class stands in for a BatchNorm class of your own while a model is patched.

    Args:
        layer_class: the exact class of the layers; its subclasses are not meant.
        patched_class: `class Patched(PatchedLayer, layer_class)`, defined at module level so that it can be pickled;
            overrides `finish` or `normalize` where the class does more than normalise.

    Raises:
        UnsupportedModelError: if `patched_class` does not derive from `PatchedLayer` first and `layer_class` second.
    """
    order = patched_class.__mro__
    if PatchedLayer not in order or layer_class not in order or order.index(layer_class) < order.index(PatchedLayer):
        raise UnsupportedModelError(
            f"{patched_class.__name__} cannot stand in for {layer_class.__name__}: "
            f"declare it as `class {patched_class.__name__}(PatchedLayer, {layer_class.__name__})`"
        )
    _PATCHED_CLASSES[layer_class] = patched_class


def patched_class_of(layer: nn.Module) -> type[PatchedLayer] | None:
    """The class that stands in for a layer's exact class, or None if that class is not registered."""
    if "timm.layers.norm_act" in sys.modules and type(layer) not in _PATCHED_CLASSES:
        from dynbn_lightning.batchnorm.patched_timm import TIMM_CLASSES

        for layer_class, patched_class in TIMM_CLASSES.items():
            _PATCHED_CLASSES.setdefault(layer_class, patched_class)
    return _PATCHED_CLASSES.get(type(layer))


def canonical_name(name: str) -> str:
    """A layer's or parameter's name without what `torch.compile` puts in front of it."""
    return name.replace("_orig_mod.", "")


def find_batchnorm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers of a model by name, in the order of `named_modules`; each layer object once.

    Raises:
        UnsupportedModelError: if there is none, or a layer that normalises with running statistics in another way
            than the registered classes do, a scripted one, or one without statistics; each is named with its path.
        RoutingError: if the model is already patched.
    """
    layers: dict[str, nn.Module] = {}
    unsupported: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, PatchedLayer):
            raise RoutingError(
                f"layer {name!r} is patched already: leave the other `routed` context, or call the other "
                "callback's undo(), before patching this model again"
            )
        if patched_class_of(module) is not None:
            reason = _missing_statistics(module)
            if reason is None:
                layers[canonical_name(name)] = module
                continue
        else:
            reason = _why_unsupported(module)
        if reason is not None:
            unsupported.append(f"{name or '(the model itself)'} ({type(module).__name__}: {reason})")
    if unsupported:
        raise UnsupportedModelError(
            "these layers normalise with running statistics in a way that cannot be routed: "
            + first_few(unsupported)
            + ". Replace them with torch.nn.BatchNorm2d, or register a class of your own with batchnorm.register."
        )
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no BatchNorm layers, so there are no statistics to look up; "
            "models with LayerNorm or GroupNorm (ConvNeXt, vision transformers) cannot be adapted this way"
        )
    return layers


def _missing_statistics(layer: nn.Module) -> str | None:
    if isinstance(getattr(layer, "running_mean", None), Tensor) and isinstance(layer.running_var, Tensor):
        return None
    return "track_running_stats=False, it has no running statistics"


def _why_unsupported(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in str(getattr(module, "original_name", "")):
        return "a scripted layer cannot be patched; patch the model before torch.jit.script"
    if isinstance(module, (nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d)):
        return "not materialised yet; run one batch through the model first"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "a subclass of BatchNorm whose arithmetic is not known"
    buffers = dict(module.named_buffers(recurse=False))
    if "running_mean" in buffers or "running_var" in buffers:
        return "keeps running statistics"
    return None
