"""What the tests of the compared methods share: plain float64 references of each, and a model watched for changes."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from callback_models import IMAGENET, SIZE, make_pixels
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dynbn_lightning import QuantileBank

Batch = tuple[Tensor, Tensor]
Normalize = Callable[[str, nn.BatchNorm2d, Tensor], Tensor]


def make_batches(*sizes: int, seed: int = 2) -> list[Batch]:
    """Normalised images and labels in batches of these sizes; images are dark, middling or bright."""
    images = IMAGENET.apply(make_pixels(sum(sizes), seed).float() / 255)
    return list(zip(images.split(sizes), (torch.arange(sum(sizes)) % 5).split(sizes), strict=True))


def loader_of(*batches: Batch) -> DataLoader:
    return DataLoader(list(batches), batch_size=None)


def make_quantiles(model: nn.Module, count: int = 16) -> QuantileBank:
    pixels = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    loaders = {
        "clean": [IMAGENET.apply(pixels)],
        "brightness": [IMAGENET.apply((pixels + 0.4).clamp(0, 1))],
        "contrast": [IMAGENET.apply(pixels * 0.2 + 0.4)],
    }
    return QuantileBank.collect(model, loaders, count=count, progress=False)


class Watched:
    """A module's state before, to be compared with what it is after."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state = {name: value.clone() for name, value in module.state_dict().items()}
        self.layers = [(type(layer), layer.training, sorted(vars(layer))) for layer in module.modules()]
        self.parameters = list(module.parameters())
        self.wanted = [parameter.requires_grad for parameter in self.parameters]

    def check(self, gradients: list[Tensor] | None = None) -> None:
        assert [(type(layer), layer.training, sorted(vars(layer))) for layer in self.module.modules()] == self.layers
        state = self.module.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[name], value) for name, value in self.state.items())
        now = list(self.module.parameters())
        assert all(one is other for one, other in zip(now, self.parameters, strict=True))
        assert [parameter.requires_grad for parameter in now] == self.wanted
        if gradients is None:
            assert all(parameter.grad is None for parameter in now)
        else:
            assert all(torch.equal(p.grad, before) for p, before in zip(now, gradients, strict=True))


class Gradients(Callback):
    """Gives the parameters gradients, since Lightning takes those before a run away, and watches them."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.checked = 0

    def on_test_batch_start(self, trainer, pl_module, *args) -> None:
        if not self.before:
            for number, parameter in enumerate(pl_module.parameters()):
                parameter.grad = torch.full_like(parameter, number + 1.0)
            self.before = [parameter.grad.clone() for parameter in pl_module.parameters()]

    def on_test_batch_end(self, trainer, pl_module, *args) -> None:
        now = [parameter.grad for parameter in pl_module.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(now, self.before, strict=True))
        self.checked += 1

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


# References: each gives the float64 logits of batches in turn, from a model that is left alone.


def forward(model: nn.Sequential, x: Tensor, normalize: Normalize) -> Tensor:
    """The float64 forward of a Sequential whose BatchNorm layers do `normalize(name, layer, x)`."""
    x = x.double()
    for name, layer in copy.deepcopy(model).double().named_children():
        x = normalize(name, layer, x) if isinstance(layer, nn.BatchNorm2d) else layer(x)
    return x


def by(layer: nn.BatchNorm2d, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Batch normalisation by statistics (C,) or (N, C), written out."""
    mean, var = (value.reshape(-1, x.shape[1], 1, 1) for value in (mean, var))
    scale, shift = (value.view(1, -1, 1, 1) for value in (layer.weight, layer.bias))
    return (x - mean) / (var + layer.eps).sqrt() * scale + shift


def values_of(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1)


def channel_moments(x: Tensor, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    values = values_of(x)
    mean = values.sum(1) / values.shape[1]
    return mean, (values - mean.unsqueeze(1)).square().sum(1) / (values.shape[1] - unbiased)


@torch.no_grad()
def source_blend(model, batches, prior=None, source_weight=None):
    outputs = []
    for x, _ in batches:
        share = prior / (prior + len(x)) if source_weight is None else source_weight

        def normalize(name, layer, x, share=share):
            mean, var = channel_moments(x)
            return by(
                layer, x, share * layer.running_mean + (1 - share) * mean, share * layer.running_var + (1 - share) * var
            )

        outputs.append(forward(model, x, normalize))
    return outputs


@torch.no_grad()
def few_shot(model, batches, images):
    seen: dict[str, Tensor] = {}

    def normalize(name, layer, x):
        before = seen.get(name, x[:0])
        seen[name] = torch.cat([before, x[: images - len(before)]])
        return by(layer, x, *channel_moments(seen[name]))

    return [forward(model, x, normalize) for x, _ in batches]


@torch.no_grad()
def running_average(model, batches, momentum=0.1):
    state: dict[str, tuple[Tensor, Tensor]] = {}

    def normalize(name, layer, x):
        old = state.get(name, (layer.running_mean, layer.running_var))
        state[name] = tuple((1 - momentum) * o + momentum * n for o, n in zip(old, channel_moments(x), strict=True))
        return by(layer, x, *state[name])

    return [forward(model, x, normalize) for x, _ in batches]


@torch.no_grad()
def unmix(model, batches, components=16, temperature=0.07, spread=0.5, momentum=0.1, prefix="network."):
    """Tomar et al. 2024, image by image and component by component."""
    state: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def normalize(name, layer, x):
        if name not in state:
            seed = zlib.crc32(f"0 {prefix}{name}".encode())
            draws = torch.randn(components, x.shape[1], generator=torch.Generator().manual_seed(seed)).double()
            factor = math.sqrt(spread * components / (components - 1))
            state[name] = (
                [layer.running_mean + factor * layer.running_var.sqrt() * draw for draw in draws],
                [(1 - spread) * layer.running_var] * components,
            )
        means, variances = state[name]
        step = 1 - (1 - momentum) ** (len(x) / 64)
        pulls = [[0, 0] for _ in means]
        outputs = []
        for image in x:
            own_mean, own_var = channel_moments(image.unsqueeze(0), unbiased=False)
            alike = [math.exp((own_mean @ m / own_mean.norm() / m.norm()).item() / temperature) for m in means]
            weights = [value / sum(alike) for value in alike]
            moved_means = [(1 - w) * m + w * own_mean for w, m in zip(weights, means, strict=True)]
            moved_vars = [(1 - w) * v + w * own_var for w, v in zip(weights, variances, strict=True)]
            mean = sum(moved_means) / components
            var = sum(v + (m - mean) ** 2 for m, v in zip(moved_means, moved_vars, strict=True)) / components
            outputs.append(by(layer, image.unsqueeze(0), mean, var))
            for pull, weight, m, v in zip(pulls, weights, means, variances, strict=True):
                pull[0] = pull[0] + weight * (own_mean - m)
                pull[1] = pull[1] + weight * (own_var - v)
        state[name] = tuple(
            [old + step / len(x) * pull[which] for old, pull in zip(parts, pulls, strict=True)]
            for which, parts in enumerate((means, variances))
        )
        return torch.cat(outputs)

    return [forward(model, x, normalize) for x, _ in batches]


def matched(values, wanted):
    """One channel's activations moved by the map between two quantile functions, in numpy."""
    probabilities = (np.arange(len(wanted)) + 0.5) / len(wanted)
    knots = np.quantile(values, probabilities)
    slope = (wanted[-1] - wanted[0]) / (knots[-1] - knots[0])
    moved = np.interp(values, knots, wanted)
    moved = np.where(values < knots[0], wanted[0] + slope * (values - knots[0]), moved)
    return np.where(values > knots[-1], wanted[-1] + slope * (values - knots[-1]), moved)


@torch.no_grad()
def distribution_matching(model, batches, quantiles, per):
    def normalize(name, layer, x):
        wanted = quantiles.of_layer(name)[0].double().numpy()
        x = x.clone()
        for part in [x] if per == "batch" else x.split(1):
            for channel, goal in enumerate(wanted):
                part[:, channel] = torch.from_numpy(matched(part[:, channel].numpy(), goal))
        return by(layer, x, layer.running_mean, layer.running_var)

    return [forward(model, x, normalize) for x, _ in batches]


def tent(model, batches, lr, steps=1, optimizer=torch.optim.Adam, at_a_time=1):
    """Wang et al. 2021: the predictions of a batch are those before its last step; a step for so many batches."""
    affine = {
        name: [value.detach().double().clone().requires_grad_() for value in (layer.weight, layer.bias)]
        for name, layer in model.named_children()
        if isinstance(layer, nn.BatchNorm2d)
    }
    adam = optimizer([value for pair in affine.values() for value in pair], lr=lr)

    def normalize(name, layer, x):
        mean, var = (value.view(1, -1, 1, 1) for value in channel_moments(x, unbiased=False))
        scale, shift = (value.view(1, -1, 1, 1) for value in affine[name])
        return (x - mean) / (var + layer.eps).sqrt() * scale + shift

    outputs = []
    for first in range(0, len(batches), at_a_time):
        for _ in range(steps):
            all_logits = [forward(model, x, normalize) for x, _ in batches[first : first + at_a_time]]
            logits = torch.cat(all_logits)
            probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
            adam.zero_grad()
            (-(probabilities * probabilities.log()).sum(1).mean()).backward()
            adam.step()
        outputs += [its.detach() for its in all_logits]
    return outputs
