"""One learning-rate schedule for whatever is trained here: a linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, total_steps: int, warmup: float) -> float:
    """The factor of the peak learning rate at a step: from near 0 up to 1, then down to 0 at `total_steps`.

    Args:
        step: The step, from 0.
        total_steps: How many steps there are in all, at least 1. Steps beyond them get 0.
        warmup: The part of all steps, from 0 to 1, in which the rate rises.
    """
    rising = round(warmup * total_steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(1, total_steps - rising)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser in which only weight matrices and kernels decay.

    Biases and the scales of normalisation layers (all parameters with fewer than two dimensions) do not: decay
    would not regularise what they compute.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def with_warmup_cosine(module: LightningModule, optimizer: Optimizer, warmup: float) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns for `optimizer` under `warmup_cosine`, stepped at every optimiser step.

    A trainer that has no end (`max_epochs=-1`) keeps the peak learning rate: there is nothing to go down towards.
    """
    steps = module.trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        return optimizer
    schedule = LambdaLR(optimizer, partial(warmup_cosine, total_steps=max(1, int(steps)), warmup=warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
