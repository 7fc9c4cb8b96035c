"""Policies that find statistics in the activations, against plain float64 loops over images, channels and positions."""

import math

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, float64, normalize_image_by_image, snapshot
from test_layer_types import ALWAYS_AFFINE, CASES, EPS, FROZEN_TOLERANCE, LAYERS, TOLERANCE, C, in_format, make_layer

from dynbn_lightning.batchnorm import (
    BatchStatisticsPolicy,
    FirstImagesPolicy,
    Patch,
    RunningAveragePolicy,
    UnMixPolicy,
)
from dynbn_lightning.errors import MethodError, RoutingError

SIZES = (4, 1, 3, 1)
FORMATS = [
    (torch.float32, "contiguous"),
    (torch.float32, "channels_last"),
    (torch.float32, "strided"),
    (torch.bfloat16, "contiguous"),
    (torch.float64, "contiguous"),
]
STREAMS = [(name, "both", *form) for name in LAYERS for form in FORMATS] + [
    (name, affine, torch.float32, "contiguous") for name, affine in CASES if affine == "neither"
]
POLICIES = {
    "batch": BatchStatisticsPolicy,
    "prior": lambda: BatchStatisticsPolicy(prior=3),
    "share": lambda: BatchStatisticsPolicy(source_weight=0.7),
    "running": lambda: RunningAveragePolicy(0.2),
    "first": lambda: FirstImagesPolicy(6),
    "first_of_one_batch": lambda: FirstImagesPolicy(3),
    "unmix": lambda: UnMixPolicy(components=3, temperature=0.5),
    "unmix_momentum": lambda: UnMixPolicy(components=3, temperature=0.5, momentum=0.9),
}


def every_layer(policy):
    """A patch of a model with one and the same policy in its only layer."""
    return lambda name, layer: policy


def moments_of(images, correction=1):
    """Mean and variance of each channel of some images' values, (C,) each."""
    means, variances = [], []
    for channel in range(images.shape[1]):
        values = [float(value) for image in images for value in np.ravel(image[channel])]
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - correction))
    return np.array(means), np.array(variances)


class Batch:
    def __init__(self, share):
        self.share = share

    def __call__(self, x, mean, var):
        share = self.share(len(x))
        batch_mean, batch_var = moments_of(x, correction=0 if share == 0 else 1)
        return [share * mean + (1 - share) * batch_mean] * len(x), [share * var + (1 - share) * batch_var] * len(x)


class Running:
    def __init__(self, momentum):
        self.momentum, self.state = momentum, None

    def __call__(self, x, mean, var):
        mean, var = self.state or (mean, var)
        batch_mean, batch_var = moments_of(x)
        mean = (1 - self.momentum) * mean + self.momentum * batch_mean
        if x[:, 0].size > 1:
            var = (1 - self.momentum) * var + self.momentum * batch_var
        self.state = mean, var
        return [mean] * len(x), [var] * len(x)


class First:
    def __init__(self, images):
        self.images, self.seen = images, []

    def __call__(self, x, mean, var):
        self.seen += list(x[: self.images - len(self.seen)])
        if np.stack(self.seen)[:, 0].size > 1:
            mean, var = moments_of(np.stack(self.seen))
        return [mean] * len(x), [var] * len(x)


class UnMix:
    """Begins with the components that it is given."""

    def __init__(self, momentum, means, variances):
        self.momentum, self.means, self.variances = momentum, list(means), list(variances)

    def __call__(self, x, mean, var):
        if x.ndim == 2:
            return [mean] * len(x), [var] * len(x)
        out_means, out_variances, weights, own = [], [], [], []
        for image in x:
            own_mean, own_var = moments_of(image[None], correction=0)
            alike = [own_mean @ m / (np.linalg.norm(own_mean) * np.linalg.norm(m)) for m in self.means]
            odds = [math.exp(a / 0.5) for a in alike]
            p = [o / sum(odds) for o in odds]
            moved = [(1 - pk) * m + pk * own_mean for pk, m in zip(p, self.means, strict=True)]
            within = [(1 - pk) * v + pk * own_var for pk, v in zip(p, self.variances, strict=True)]
            center = sum(moved) / len(moved)
            out_means.append(center)
            out_variances.append(sum(within) / len(p) + sum((m - center) ** 2 for m in moved) / len(p))
            weights.append(p)
            own.append((own_mean, own_var))
        step = 1 - (1 - self.momentum) ** (len(x) / 64)
        for parts, which in ((self.means, 0), (self.variances, 1)):
            parts[:] = [
                part + step * sum(p[k] * (o[which] - part) for p, o in zip(weights, own, strict=True)) / len(x)
                for k, part in enumerate(parts)
            ]
        return out_means, out_variances


DRAWS = torch.randn(2, 3, C, generator=torch.Generator().manual_seed(5))
COMPONENTS = (DRAWS[0] + 0.5, DRAWS[1].exp())
REFERENCES = {
    "batch": lambda: Batch(lambda images: 0),
    "prior": lambda: Batch(lambda images: 3 / (3 + images)),
    "share": lambda: Batch(lambda images: 0.7),
    "running": lambda: Running(0.2),
    "first": lambda: First(6),
    "first_of_one_batch": lambda: First(3),
    "unmix": lambda: UnMix(0.1, *map(float64, COMPONENTS)),
    "unmix_momentum": lambda: UnMix(0.9, *map(float64, COMPONENTS)),
}


@pytest.mark.parametrize("method", POLICIES)
@pytest.mark.parametrize(("name", "affine", "dtype", "memory"), STREAMS, ids=str)
def test_every_batch_of_a_stream_is_normalised_as_the_formula_says(name, affine, dtype, memory, method):
    model, _, _, activation = make_layer(name, affine, dtype)
    layer, spatial = model[0], LAYERS[name][1]
    policy, reference = POLICIES[method](), REFERENCES[method]()
    if method.startswith("unmix") and spatial:
        policy.remember(dict(zip(("mean", "var"), (part.to(dtype) for part in COMPONENTS), strict=True)))
        reference.means, reference.variances = (list(float64(part.to(dtype))) for part in COMPONENTS)
    tolerance = 2 * (FROZEN_TOLERANCE if name in ALWAYS_AFFINE else TOLERANCE)[dtype]
    before, own = snapshot(model), model(torch.ones(1, C, *spatial, dtype=dtype))
    generator = torch.Generator().manual_seed(11)
    source = float64(layer.running_mean), float64(layer.running_var)
    weight, bias = (None if value is None else float64(value) for value in (layer.weight, layer.bias))
    with torch.no_grad(), Patch(model, every_layer(policy)):
        for step, size in enumerate(SIZES):
            if method == "batch" and not spatial and size == 1:
                continue  # refused, see below
            # Activations whose distribution moves, so that a state that is kept or lost shows.
            x = torch.randn(size, C, *spatial, generator=generator) * (1 + step / 3) + torch.linspace(-1, 2, C).view(
                -1, *[1] * len(spatial)
            )
            x = in_format(x.to(dtype), memory)
            untouched = x.clone()
            out = model(x)
            means, variances = reference(float64(x), *source)
            expected = normalize_image_by_image(float64(x), means, variances, weight, bias, EPS, activation)
            assert out.dtype == own.dtype
            assert out.shape == x.shape
            np.testing.assert_allclose(float64(out), expected, tolerance, tolerance, err_msg=f"batch {step}")
            assert torch.equal(x, untouched)
    assert_same(before, model)


def test_a_whole_source_share_is_the_layer_itself_and_none_is_the_batch_alone():
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    with torch.no_grad():
        own = model(x)
        for policy, same in ((BatchStatisticsPolicy(source_weight=1), True), (BatchStatisticsPolicy(prior=1), False)):
            with Patch(model, every_layer(policy)):
                assert torch.allclose(model(x), own, rtol=1e-12, atol=1e-12) is same
        outs = []
        for policy in (BatchStatisticsPolicy(), BatchStatisticsPolicy(0), BatchStatisticsPolicy(source_weight=0)):
            with Patch(model, every_layer(policy)):
                outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_without_a_source_share_the_batch_alone_is_what_training_mode_gives():
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float32)
    with torch.no_grad(), Patch(model, every_layer(BatchStatisticsPolicy())):
        out = model(x)
    torch.testing.assert_close(out, model.train()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", [BatchStatisticsPolicy(), BatchStatisticsPolicy(source_weight=0)])
def test_a_single_value_per_channel_without_a_source_share_is_refused(policy):
    model, _, x, _ = make_layer("BatchNorm1d", "both", torch.float32)
    with Patch(model, every_layer(policy)), pytest.raises(RoutingError, match="one value per channel"):
        model(x[:1])
    with pytest.raises(RoutingError, match="one value per channel"):
        policy.statistics(model[0], x[:1])


@pytest.mark.parametrize("method", POLICIES)
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm3d", "FrozenBatchNorm2d", "BatchNormAct2d"])
def test_training_mode_is_refused_and_leaves_no_trace(name, method):
    model, _, x, _ = make_layer(name, "both", torch.float32)
    policy = POLICIES[method]()
    model.train()
    with Patch(model, every_layer(policy)), pytest.raises(RoutingError, match="training mode"):
        model(x)
    assert policy.state == {}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: BatchStatisticsPolicy(-1), "prior=-1"),
        (lambda: BatchStatisticsPolicy(float("inf")), "prior=inf"),
        (lambda: BatchStatisticsPolicy(float("nan")), "prior=nan"),
        (lambda: BatchStatisticsPolicy(source_weight=1.5), r"source_weight=1\.5"),
        (lambda: BatchStatisticsPolicy(source_weight=-0.5), r"source_weight=-0\.5"),
        (lambda: BatchStatisticsPolicy(prior=16, source_weight=0.5), r"prior=16.*source_weight=0\.5"),
        (lambda: RunningAveragePolicy(-0.1), r"momentum=-0\.1"),
        (lambda: RunningAveragePolicy(1.1), r"momentum=1\.1"),
        (lambda: RunningAveragePolicy(float("nan")), "momentum=nan"),
        (lambda: FirstImagesPolicy(0), "images=0"),
        (lambda: FirstImagesPolicy(-4), "images=-4"),
        (lambda: UnMixPolicy(components=0), "components=0"),
        (lambda: UnMixPolicy(temperature=0), "temperature=0"),
        (lambda: UnMixPolicy(temperature=float("nan")), "temperature=nan"),
        (lambda: UnMixPolicy(spread=1.5), r"spread=1\.5"),
        (lambda: UnMixPolicy(momentum=-0.5), r"momentum=-0\.5"),
    ],
)
def test_bad_settings_are_named(make, named):
    with pytest.raises(MethodError, match=named):
        make()
