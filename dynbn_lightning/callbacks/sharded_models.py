"""Refusing to patch a model that no process has whole."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from ..errors import MethodError


def refuse_sharded_models(trainer: Trainer, callback: str) -> None:
    """Raise `MethodError` for a strategy that spreads one model over several processes."""
    if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise MethodError(
            f"{callback} patches the BatchNorm layers of a whole model, and {type(trainer.strategy).__name__} keeps a "
            "part of it in each process: test with strategy='ddp' or on one device"
        )
