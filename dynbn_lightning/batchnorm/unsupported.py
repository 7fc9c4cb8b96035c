"""Why a layer that normalises with running statistics, or a whole model, cannot be routed: the words of the errors."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn


def why_unsupported(module: nn.Module) -> str | None:
    """Why a module of no registered class cannot be routed; None if it keeps no running statistics at all."""
    if isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in str(getattr(module, "original_name", "")):
        return "a scripted layer cannot be patched; patch the model before torch.jit.script"
    if isinstance(module, (nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d)):
        return "not materialised yet; run one batch through the model first"
    if _is_fused(module):
        return "fused with its convolution for quantisation; use the model as it was before"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "a subclass of BatchNorm whose arithmetic is not known"
    buffers = dict(module.named_buffers(recurse=False))
    if "running_mean" in buffers or "running_var" in buffers:
        return "keeps running statistics"
    return None


def why_none(model: nn.Module, skip: Collection[str] = ()) -> str:
    """What to say after "... has no BatchNorm layers"."""
    if skip:
        return f" besides those of skip={list(skip)}"
    if isinstance(model, torch.jit.ScriptModule):
        return " that can be patched: scripted and frozen models have none; use the model it was made from"
    normalises = any("Norm" in type(module).__name__ for module in model.modules())
    emptied = [name for name, module in model.named_modules() if isinstance(module, nn.Identity)]
    if emptied and not normalises:
        return (
            f"; {emptied[0]!r} is an Identity, as fusing BatchNorm into the convolutions leaves it: if these were "
            "fused, use the model as it was before"
        )
    if isinstance(model, torch.fx.GraphModule):
        return ": traced or exported models have theirs written out; use the model that it was made from"
    return (
        ", so there are no statistics to look up; models with LayerNorm or GroupNorm (ConvNeXt, vision transformers) "
        "cannot be adapted this way"
    )


def _is_fused(module: nn.Module) -> bool:
    # Quantisation-aware training: the layer `bn` inside scales the convolution's weights by its statistics as well.
    return isinstance(getattr(module, "bn", None), nn.modules.batchnorm._BatchNorm) and ".intrinsic.qat" in (
        type(module).__module__
    )
