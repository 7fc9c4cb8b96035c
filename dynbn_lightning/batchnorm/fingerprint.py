"""A fingerprint of a model's weights: a bank belongs to one set of weights, whatever precision they are cast to."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm.layers import canonical_name

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Fingerprints of the weights as they are in float32 and as they become when cast to each half precision.

    Lightning's true-half precisions cast a model before a test begins; the half fingerprints recognise it then.
    """
    return {name: _digest(model, dtype) for name, dtype in _DTYPES.items()}


def matches_fingerprints(model: nn.Module, known: dict[str, str]) -> bool:
    """Whether the model's weights are those that `known` was taken from, as is or cast."""
    lowest = "float32"
    for name, dtype in list(_DTYPES.items())[1:]:
        if any(tensor.dtype == dtype for _, tensor in _tensors(model)):
            lowest = name
    return known.get(lowest) == _digest(model, _DTYPES[lowest])


@torch.no_grad()
def _digest(model: nn.Module, dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(model), key=lambda item: item[0]):
        # A copy: NumPy's hold on the model's own storage would keep it from ever being resized.
        value = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    # Without the counts of training steps, which change no output, and without modules' extra state of other types.
    return [
        (canonical_name(name), value)
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and not name.endswith("num_batches_tracked")
    ]


def fingerprint_of(values: Any, *tables: Tensor | None) -> str:
    """A fingerprint of values that JSON has, and of tables."""
    digest = hashlib.sha256(json.dumps(values).encode())
    for table in tables:
        if table is not None:
            digest.update(str((tuple(table.shape), table.dtype)).encode())
            digest.update(table.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
