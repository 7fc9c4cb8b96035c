"""Every method on every kind of stream, and what a test of each has seen, for comparing several processes with one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from callback_models import FakeDetector, bare_trainer
from lightning.pytorch import Callback, LightningModule
from reported_modules import Silent, make_data, make_network
from torch import Tensor

from dynbn_lightning import (
    BatchStatsCallback,
    BNStatsBank,
    DistributionMatchingCallback,
    DynamicBNCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    QuantileBank,
    TentCallback,
    UnMixTNSCallback,
)

CORRUPTIONS = ("brightness", "contrast")


def small_data(**options: Any) -> Any:
    return make_data(**{"corruptions": CORRUPTIONS, "severities": (1, 5), **options})


def bank_of(module: LightningModule) -> BNStatsBank:
    return BNStatsBank.load(TOOLS / "bank.safetensors", module.net)


def quantiles() -> QuantileBank:
    return QuantileBank.load(TOOLS / "quantiles.safetensors")


TOOLS = Path()


def make_tools(folder: Path) -> None:
    """Measured once by the parent: what is tested is their use."""
    folder.mkdir(parents=True, exist_ok=True)
    loaders = small_data().row_loaders(images_per_row=12)
    network = make_network()
    BNStatsBank.collect(network, loaders, progress=False).save(folder / "bank.safetensors")
    QuantileBank.collect(network, loaders, count=8, progress=False).save(folder / "quantiles.safetensors")


def use_tools(folder: Path) -> None:
    global TOOLS
    TOOLS = folder


def dynamic(module: LightningModule, **options: Any) -> DynamicBNCallback:
    return DynamicBNCallback(bank_of(module), FakeDetector(), **options)


METHODS: dict[str, Callable[[LightningModule], list[Callback]]] = {
    "source": lambda module: [],
    "batch_stats": lambda module: [BatchStatsCallback()],
    "batch_stats/prior": lambda module: [BatchStatsCallback(prior=4)],
    "few_shot": lambda module: [FewShotBNCallback(images=5)],
    "few_shot/never": lambda module: [FewShotBNCallback(images=8, reset="never")],
    "ema": lambda module: [EMAStatsCallback()],
    "ema/never": lambda module: [EMAStatsCallback(0.3, reset="never")],
    "unmix_tns": lambda module: [UnMixTNSCallback(components=3)],
    "unmix_tns/never": lambda module: [UnMixTNSCallback(components=3, reset="never")],
    "distribution_matching": lambda module: [DistributionMatchingCallback(quantiles())],
    "distribution_matching/image": lambda module: [DistributionMatchingCallback(quantiles(), per="image")],
    "distribution_matching/dynamic_bn": lambda module: [
        DistributionMatchingCallback(quantiles(), base=dynamic(module, evidence="stream"))
    ],
    "dynamic_bn": lambda module: [dynamic(module)],
    "dynamic_bn/hard": lambda module: [dynamic(module, routing="hard")],
    "dynamic_bn/batch": lambda module: [dynamic(module, evidence="batch")],
    "dynamic_bn/stream": lambda module: [dynamic(module, evidence="stream")],
    "dynamic_bn+ema": lambda module: [dynamic(module, base=EMAStatsCallback(reset="never"))],
    "dynamic_bn+unmix": lambda module: [dynamic(module, evidence="stream", base=UnMixTNSCallback(components=3))],
    "oracle": lambda module: [DynamicBNCallback(bank_of(module), routing="oracle")],
    "tent/batch": lambda module: [TentCallback(steps=2, reset="batch")],
}
LEARNING_RATE = 0.05
TENT: dict[str, Callable[[LightningModule], list[Callback]]] = {
    "tent": lambda module: [TentCallback(lr=LEARNING_RATE)],
    "tent/never": lambda module: [TentCallback(lr=LEARNING_RATE, reset="never")],
}
STREAMS = {"mixed": 5, "sequential": 3, "continual": 4, "correlated": 2}
"""The streams, and batch sizes that deal unequal numbers of batches to 2 processes and to 3, or to one of both."""


@dataclass
class Seen:
    """What a process has seen in a test: the images in its order with their logits, what was logged, and what stays."""

    places: list[tuple[str, int]]
    batches: list[Tensor]
    logits: Tensor
    logged: dict[str, float]
    memory: Any
    weights: str


class Observed(Silent):
    """Remembers what it saw in its order, twice if twice."""

    def __init__(self) -> None:
        super().__init__(make_network())
        self.places: list[tuple[str, int]] = []
        self.logits: list[Tensor] = []
        self.batches: list[Tensor] = []

    def step(self, batch: Any) -> None:
        self.batches.append(batch[0])
        super().step(batch)

    def remember(self, logits: Tensor) -> Tensor:
        info = self.trainer.datamodule.batch_info
        self.places += zip(info.names, info.indices, strict=True)
        self.logits.append(logits.detach().clone())
        return logits


def fingerprint(module: LightningModule) -> str:
    state = module.state_dict().items()
    layers = [type(layer).__name__ for layer in module.modules()]
    return hashlib.sha256(repr([layers, [(k, v.tolist()) for k, v in state]]).encode()).hexdigest()


@cache
def see_alone(method: str, stream: str) -> Seen:
    return see(method, stream)


def see(method: str, stream: str, **options: Any) -> Seen:
    module = Observed()
    callbacks = {**METHODS, **TENT}[method](module)
    if method.startswith("tent"):
        options["inference_mode"] = False
    trainer = bare_trainer(*callbacks, **options)
    trainer.test(module, datamodule=small_data(stream=stream, batch_size=STREAMS[stream]), verbose=False)
    memory = [callback.state_dict() for callback in callbacks]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return Seen(module.places, module.batches, torch.cat(module.logits), logged, memory, fingerprint(module))
