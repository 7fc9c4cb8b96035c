"""What the batch norm tests compare with: plain float64 loops that share no code with the package."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BNStatsBank

STATISTICS_BUFFERS = ("running_mean", "running_var")


def float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).cpu().numpy()


def normalize_image_by_image(
    x: np.ndarray,
    means: Sequence[np.ndarray],
    variances: Sequence[np.ndarray],
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    activation: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> np.ndarray:
    """Batch norm of x (N, C, ...) where image n has its own means[n] and variances[n], each (C,)."""
    out = np.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = (x[n, c] - means[n][c]) / math.sqrt(variances[n][c] + eps)
            if weight is not None:
                values = values * weight[c]
            if bias is not None:
                values = values + bias[c]
            out[n, c] = activation(values)
    return out


def mix_by_total_variance(
    weights: Sequence[float], means: np.ndarray, variances: np.ndarray, average: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (C,) of one image's mixture, channel by channel in Python floats."""
    mean, var = np.zeros(means.shape[1]), np.zeros(means.shape[1])
    for c in range(means.shape[1]):
        mean[c] = math.fsum(w * m for w, m in zip(weights, means[:, c], strict=True))
        within = math.fsum(w * v for w, v in zip(weights, variances[:, c], strict=True))
        between = math.fsum(w * (m - mean[c]) ** 2 for w, m in zip(weights, means[:, c], strict=True))
        var[c] = within if average else within + between
    return mean, var


def batchnorm_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, buffer, None), Tensor) for buffer in STATISTICS_BUFFERS)
    }


def give_nontrivial_statistics(model: nn.Module, generator: torch.Generator) -> None:
    """Draw running statistics, weights and biases that are far from 0 and 1, but keep activations in range."""
    with torch.no_grad():
        for layer in batchnorm_modules(model).values():
            channels = layer.running_mean.shape
            layer.running_mean.copy_(torch.randn(channels, generator=generator) * 0.3)
            layer.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
            if layer.weight is not None:
                layer.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
            if layer.bias is not None:
                layer.bias.copy_(torch.randn(channels, generator=generator) * 0.3)


def make_bank(model: nn.Module, rows: Sequence[str], generator: torch.Generator, spread: float = 0.5) -> BNStatsBank:
    """A bank whose row 0 is the model's own and whose other rows are drawn, far from each other."""
    layers = {name: layer.running_mean.numel() for name, layer in batchnorm_modules(model).items()}
    total = sum(layers.values())
    mean = torch.randn(len(rows), total, generator=generator) * spread
    var = (torch.rand(len(rows), total, generator=generator) * 4 - 2).mul(spread).exp()
    mean[0] = torch.cat([layer.running_mean.float() for layer in batchnorm_modules(model).values()])
    var[0] = torch.cat([layer.running_var.float() for layer in batchnorm_modules(model).values()])
    return BNStatsBank(rows=tuple(rows), layers=layers, mean=mean, var=var)


def with_row_loaded(model: nn.Module, bank: BNStatsBank, row: str) -> nn.Module:
    """A copy of the model whose running statistics are those of a row."""
    copied = copy.deepcopy(model)
    for name, layer in batchnorm_modules(copied).items():
        mean, var = bank[row][name]
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(var)
    return copied


def snapshot(model: nn.Module) -> dict[str, object]:
    """All that must be the same after patching: classes, flags, attributes' names and every bit of the state."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "classes": [type(module) for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def assert_same(before: dict[str, object], model: nn.Module) -> None:
    after = snapshot(model)
    for part in ("classes", "training", "attributes", "hooks"):
        assert before[part] == after[part], part
    assert list(before["state"]) == list(after["state"])
    for name, value in before["state"].items():
        assert torch.equal(value, after["state"][name]), name
