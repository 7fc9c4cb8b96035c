"""Which layers of a model are BatchNorm layers, and which class stands in for each while it is patched."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection

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
from dynbn_lightning.batchnorm.unsupported import why_none, why_unsupported
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
    return _patched_classes().get(type(layer))


def _patched_classes() -> dict[type[nn.Module], type[PatchedLayer]]:
    if "timm.layers.norm_act" in sys.modules:
        from dynbn_lightning.batchnorm.patched_timm import TIMM_CLASSES

        for layer_class, patched_class in TIMM_CLASSES.items():
            _PATCHED_CLASSES.setdefault(layer_class, patched_class)
    return _PATCHED_CLASSES


def canonical_name(name: str) -> str:
    """A layer's or parameter's name without what `torch.compile` puts in front of it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def find_batchnorm_layers(model: nn.Module, skip: Collection[str] = ()) -> dict[str, nn.Module]:
    """The BatchNorm layers of a model by name, in the order of `named_modules`; each layer object once.

    Args:
        model: any module.
        skip: names of layers, or of modules that hold some, which are left as they are.

    Raises:
        UnsupportedModelError: if there is none, or a layer that normalises with running statistics in another way
            than the registered classes do, a scripted one, or one without statistics; each is named with its path.
            Also if `skip` names no module.
        RoutingError: if the model is already patched.
    """
    layers: dict[str, nn.Module] = {}
    unsupported: dict[str, str] = {}
    skipped = _skipped_modules(model, skip)
    for name, module in model.named_modules():
        name = canonical_name(name)
        if module in skipped:
            continue
        if isinstance(module, PatchedLayer):
            raise RoutingError(
                f"layer {name!r} is patched already: leave the other `routed` context, or call the other "
                "callback's undo(), before patching this model again; batchnorm.unpatch(model) gives a copy of a "
                "patched model its own layers back"
            )
        if any(not outer or name.startswith(f"{outer}.") for outer in unsupported):
            continue
        if patched_class_of(module) is not None:
            reason = _missing_statistics(module)
            if reason is None:
                layers[name] = module
                continue
        else:
            reason = why_unsupported(module)
        if reason is not None:
            unsupported[name] = f"{name or '(the model itself)'} ({type(module).__name__}: {reason})"
    written_out = isinstance(model, torch.fx.GraphModule) and not layers
    if unsupported and not written_out:
        raise UnsupportedModelError(
            "these layers normalise with running statistics in a way that cannot be routed: "
            + first_few(list(unsupported.values()))
            + ". Replace them with torch.nn.BatchNorm2d, register a class of your own with batchnorm.register"
            + (f", or leave them as they are with skip={list(unsupported)}." if layers else ".")
        )
    if not layers:
        raise UnsupportedModelError(f"{type(model).__name__} has no BatchNorm layers{why_none(model, skip)}")
    return layers


def _skipped_modules(model: nn.Module, skip: Collection[str]) -> set[nn.Module]:
    if isinstance(skip, str):
        raise UnsupportedModelError(f"skip={skip!r} is a string: expected a list of names, skip=[{skip!r}]")
    modules = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False) if name}
    for name in skip:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.5)
            raise UnsupportedModelError(
                f"skip={list(skip)}: {type(model).__name__} has no module {name!r}, "
                + (f"did you mean {near[0]!r}?" if near else f"among them are {first_few(list(modules))}")
            )
    return {inner for name in skip for inner in modules[name].modules()}


def unpatch(model: nn.Module) -> None:
    """Give every patched layer of a model its own class back, whoever patched it; does nothing if there is none.

    For a copy or an unpickled twin of a patched model, which is routed as the original was then and which no `Patch`
    undoes.
    """
    for module in model.modules():
        if isinstance(module, PatchedLayer):
            own_class = next(ancestor for ancestor in type(module).__mro__ if ancestor in _patched_classes())
            module.__class__ = own_class  # type: ignore[assignment]
            module.__dict__.pop("dynbn_policy", None)


def _missing_statistics(layer: nn.Module) -> str | None:
    if isinstance(getattr(layer, "running_mean", None), Tensor) and isinstance(layer.running_var, Tensor):
        return None
    return "track_running_stats=False, it has no running statistics"
