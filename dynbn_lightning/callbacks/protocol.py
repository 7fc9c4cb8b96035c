"""What must be said beside any number: the model and its weights, the data, seeds, versions, hardware."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from .. import __version__
from ..batchnorm import BNStatsBank, QuantileBank, fingerprint_of, fingerprints
from ..datamodules import CorruptionDataModule
from ..models.normalization import Normalization
from .base import BatchNormCallback
from .frozen_detector import FrozenDetector

_LEFT_OUT = object()


def described_data(data: CorruptionDataModule, split: str = "test") -> dict[str, Any]:
    """Source, preset, cells, number of test images, a fingerprint of some of them, and seed of a datamodule."""
    images = data.test_images if split == "test" else data.train_images
    return {
        **data.provenance(tested=split == "test"),
        "corruptions": list(data.corruptions),
        "test_images": len(data.test_images) if split == "test" else None,
        "images_fingerprint": images.fingerprint,
        "concentration": data.concentration,
        **({"on_error": data.on_error} if data.on_error == "skip" else {}),
    }


def common_settings(
    model: nn.Module, data: CorruptionDataModule, trainer: Trainer, split: str, device: torch.device
) -> dict[str, Any]:
    """What decides the numbers whatever the method: results that differ in it don't stand in one folder."""
    limit = trainer.limit_test_batches if split == "test" else trainer.limit_val_batches
    return {
        "model": fingerprints(model)["float32"],
        "data": described_data(data, split),
        "split": split,
        "precision": str(trainer.precision),
        # All is 1.0, and one batch is 1, which would count as the same.
        "limit_batches": "all" if isinstance(limit, float) and limit == 1 else limit,
        "processes": trainer.world_size,
        "device": device.type,
        "versions": {name: versions()[name] for name in ("dynbn_lightning", "torch")},
    }


def described_model(model: nn.Module) -> dict[str, Any]:
    """The model's name, and a fingerprint of its weights as they are."""
    name = getattr(model, "name", None)
    return {
        "model": name if isinstance(name, str) else type(model).__name__,
        "fingerprint": fingerprints(model)["float32"],
    }


def versions() -> dict[str, str]:
    """Of this package and those that decide numbers."""
    others = {name: version(name) for name in ("torch", "torchvision", "lightning", "numpy")}
    return {"dynbn_lightning": __version__, "python": platform.python_version(), **others}


def hardware(device: torch.device) -> str:
    """The device's name, and on a CPU how many threads torch uses of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return device.type


def settings_of(callback: Callback) -> dict[str, Any]:
    """Whatever decides what a callback does: plain settings, layers left out, fingerprints of what it was given."""
    found = {name: _described(name, value) for name, value in vars(callback).items() if name[0] != "_"}
    return {name: described for name, described in found.items() if described is not _LEFT_OUT}


def _described(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if name == "skip":
        return [str(layer) for layer in value]
    if isinstance(value, BNStatsBank):
        return described_bank(value)
    if isinstance(value, QuantileBank):
        return {"fingerprint": fingerprint_of([value.rows, list(value.layers.items()), value.skip], value.quantiles)}
    if isinstance(value, FrozenDetector):
        return {"fingerprint": value.fingerprint()}
    if isinstance(value, Normalization):
        return value.to_dict()
    if isinstance(value, BatchNormCallback):
        return {type(value).__name__: settings_of(value)}
    return _LEFT_OUT


def described_bank(bank: BNStatsBank) -> dict[str, Any]:
    """A fingerprint of all that a bank holds, and what was done to it."""
    tables = [bank.mean, bank.var, bank.weight, bank.bias]
    described: list[Any] = [bank.rows, list(bank.layers.items()), bank.skip]
    if bank.calibration is not None:
        described += [bank.calibration.temperature, bank.calibration.novelty_limit]
        tables += [bank.calibration.source_share, bank.calibration.image_share]
    fingerprint = fingerprint_of([*described, [table is None for table in tables]], *tables)
    return {"fingerprint": fingerprint, "calibrated": bank.calibration is not None, "refined": bank.refined}


def said_of_bank(bank: BNStatsBank | None) -> dict[str, Any]:
    """What a protocol says of the bank that was used: how it was made, and that this is not source-free."""
    if bank is None:
        return {"bank": None, "calibration": None, "uses": None}
    return {
        "bank": {"rows": len(bank), **bank.provenance},
        "calibration": None if bank.calibration is None else dict(bank.calibration.provenance),
        "uses": "detector, bank and calibration are made from corrupted training images: not source-free",
    }


def network_of(module: nn.Module) -> nn.Module:
    """The one child of a LightningModule that has parameters; the module itself where there are none or several."""
    with_parameters = [child for child in module.children() if next(child.parameters(), None) is not None]
    return with_parameters[0] if len(with_parameters) == 1 and not list(module.parameters(recurse=False)) else module
