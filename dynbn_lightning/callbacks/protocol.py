"""What must be said beside any number: the model and its weights, the data, seeds, versions, hardware."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from .. import __version__
from ..batchnorm import fingerprints
from ..datamodules import CorruptionDataModule


def described_data(data: CorruptionDataModule) -> dict[str, Any]:
    """Source, preset, cells, number of test images and seed of a datamodule."""
    return {
        **data.provenance(),
        "corruptions": list(data.corruptions),
        "test_images": len(data.test_images),
        "concentration": data.concentration,
    }


def described_model(model: nn.Module) -> dict[str, Any]:
    """The model's name, and a fingerprint of its weights, the same in every precision."""
    name = getattr(model, "name", None)
    return {
        "model": name if isinstance(name, str) else type(model).__name__,
        "fingerprint": fingerprints(model)["float32"],
    }


def versions() -> dict[str, str]:
    """Of this package and those that decide numbers."""
    others = {name: version(name) for name in ("torch", "torchvision", "lightning", "numpy")}
    return {"dynbn_lightning": __version__, "python": platform.python_version(), **others}


def described_limit(limit: float | int | None) -> int | float | str:
    """How many batches were tested: `"all"`, or a Trainer's limit."""
    # All is 1.0, and one batch is 1, which would count as the same.
    return "all" if limit is None or (isinstance(limit, float) and limit == 1) else limit


def hardware(device: torch.device) -> str:
    """The device's name, and on a CPU how many threads torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return device.type


def settings_of(callback: Callback) -> dict[str, Any]:
    """A callback's settings that are plain values."""
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(callback).items() if name[0] != "_" and isinstance(value, plain)}


def network_of(module: nn.Module) -> nn.Module:
    """The one child of a LightningModule that has parameters; the module itself where there are none or several."""
    with_parameters = [child for child in module.children() if next(child.parameters(), None) is not None]
    return with_parameters[0] if len(with_parameters) == 1 and not list(module.parameters(recurse=False)) else module
