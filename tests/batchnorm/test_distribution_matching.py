"""Distribution matching without a bank, against NumPy and optimal transport by sorting, in float64."""

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, float64, normalize_image_by_image, snapshot
from test_layer_types import ALWAYS_AFFINE, EPS, FROZEN_TOLERANCE, LAYERS, TOLERANCE, C, in_format, make_layer

from dynbn_lightning.batchnorm import (
    DistributionMatchingPolicy,
    Patch,
)
from dynbn_lightning.errors import MethodError, RoutingError

PER = pytest.mark.parametrize("per", ["batch", "image"])
BY_LAYER = pytest.mark.parametrize("name", LAYERS)


def patched(model, policy):
    return Patch(model, lambda name, layer: policy)


def layer_of_float64(name="BatchNorm2d", affine="both"):
    model, _, x, _ = make_layer(name, affine, torch.float64)
    return model, x


def middles(values, count):
    """Quantiles of the last dimension at (i + 1/2) / count, by NumPy."""
    return np.moveaxis(np.quantile(values, (np.arange(count) + 0.5) / count, axis=-1), 0, -1)


def train_quantiles(count, seed=0):
    """Of skewed activations, so that matching is no shift and scaling."""
    values = np.random.default_rng(seed).gamma(1.5, 1.0, (C, 5000)) + np.arange(C)[:, None] / 3
    return torch.from_numpy(middles(values, count))


def matched_by_numpy(values, wanted):
    """One channel's values, moved from their own quantiles to the wanted ones, with one slope beyond these."""
    start = np.quantile(values, (np.arange(len(wanted)) + 0.5) / len(wanted))
    slope = (wanted[-1] - wanted[0]) / (start[-1] - start[0])
    out = np.interp(values, start, wanted)
    out = np.where(values < start[0], wanted[0] + slope * (values - start[0]), out)
    return np.where(values > start[-1], wanted[-1] + slope * (values - start[-1]), out)


def channels_of(x):
    return np.moveaxis(float64(x), 1, 0).reshape(x.shape[1], -1)


@PER
@pytest.mark.parametrize(
    ("dtype", "memory"),
    [
        (torch.float64, "contiguous"),
        (torch.float32, "channels_last"),
        (torch.float32, "strided"),
        (torch.bfloat16, "contiguous"),
    ],
    ids=str,
)
@BY_LAYER
def test_a_layer_sees_its_input_moved_by_quantiles(name, dtype, memory, per):
    model, _, x, activation = make_layer(name, "both", dtype)
    layer, before = model[0], snapshot(model)
    if per == "image" and x.dim() == 2:
        pytest.skip("an image has one value per channel")
    wanted, values = train_quantiles(5 if x.dim() == 2 else 8), float64(x)
    moved = np.empty_like(values)
    for channel in range(C):
        for some in [slice(None)] if per == "batch" else [slice(n, n + 1) for n in range(len(x))]:
            moved[some, channel] = matched_by_numpy(values[some, channel], wanted[channel].numpy())
    x = in_format(x, memory)
    untouched, policy = x.clone(), DistributionMatchingPolicy(wanted, per, samples=None)
    with torch.no_grad(), patched(model, policy):
        out = model(x)
    source = [float64(getattr(layer, buffer))[None].repeat(len(x), 0) for buffer in ("running_mean", "running_var")]
    expected = normalize_image_by_image(moved, *source, float64(layer.weight), float64(layer.bias), EPS, activation)
    tolerance = 4 * (FROZEN_TOLERANCE if name in ALWAYS_AFFINE else TOLERANCE)[dtype]
    assert out.dtype == model(x).dtype
    np.testing.assert_allclose(float64(out), expected, tolerance, tolerance)
    assert np.abs(moved - values).max() > 1
    assert torch.equal(x, untouched)
    assert_same(before, model)


@PER
@pytest.mark.parametrize("samples", [None, "auto"])
def test_many_activations_go_where_their_rank_goes_which_is_the_optimal_transport(per, samples):
    model, _ = layer_of_float64()
    generator = np.random.default_rng(0)
    values, train = generator.normal(2, 3, (4, C, 40, 50)), generator.gamma(1.5, 1.0, (4, C, 40, 50))
    stored = torch.from_numpy(middles(channels_of(torch.from_numpy(train)), 64))
    with torch.no_grad(), patched(model, None):
        policy = DistributionMatchingPolicy(stored, per, samples=samples)
        moved = float64(policy.matched(model[0], torch.from_numpy(values)))
    flat = (1, 2000 * 4) if per == "batch" else (4, 2000)
    for channel in range(C):
        some, out = (part[:, channel].reshape(flat) for part in (values, moved))
        ordered = np.sort(train[:, channel].ravel())
        for image, its in zip(some, out, strict=True):
            ranks = np.argsort(np.argsort(image))
            transported = ordered[((ranks + 0.5) / len(image) * len(ordered)).astype(int)]
            error = np.abs(its - transported)
            assert np.median(error) < (0.02 if samples is None else 0.4 if per == "image" else 0.06)
            assert error.mean() < (0.04 if samples is None else 0.5 if per == "image" else 0.1)


@BY_LAYER
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
def test_the_fast_map_is_that_of_all_activations_within_a_bin(name, memory):
    model, _, x, _ = make_layer(name, "both", torch.float64)
    wanted, x = train_quantiles(8), in_format(x, memory)
    for per in ("batch", "image") if x.dim() > 2 else ("batch",):
        with torch.no_grad(), patched(model, None):
            exact = DistributionMatchingPolicy(wanted, per, samples=None).matched(model[0], x)
            fast = DistributionMatchingPolicy(wanted, per).matched(model[0], x)
        assert fast.shape == x.shape
        # No sampling here, so only bins: of an eighth's rise at most, and mostly far less.
        assert (fast - exact).abs().mean() < 0.05
        assert not torch.equal(fast, x)


@PER
@pytest.mark.parametrize("samples", [None, "auto", 500])
def test_matched_activations_have_the_stored_quantiles(per, samples):
    model, _ = layer_of_float64()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, C, 32, 32, generator=generator, dtype=torch.float64) * 2 + torch.arange(6.0).view(-1, 1, 1, 1)
    wanted = train_quantiles(16)
    with torch.no_grad(), patched(model, None):
        moved = float64(DistributionMatchingPolicy(wanted, per, samples=samples).matched(model[0], x))
    found = (
        middles(moved.transpose(1, 0, 2, 3).reshape(1, C, -1), 16)
        if per == "batch"
        else middles(moved.reshape(6, C, -1), 16)
    )
    off = np.abs(found - wanted.numpy()[None]) / wanted.numpy().std(-1)[None, :, None]
    # Sampling errors of the p-quantile: sqrt(p (1 - p) / samples) of probability over the density.
    assert off.max() < (0.02 if samples is None else 1.0)
    assert off.mean() < (0.005 if samples is None else 0.12 if per == "image" else 0.06)


@PER
@pytest.mark.parametrize("samples", [None, "auto"])
def test_strength_0_is_the_layer_itself_and_a_half_is_half_way(per, samples):
    model, x = layer_of_float64()
    wanted, moved = train_quantiles(16), {}
    with torch.no_grad():
        own = model(x)
        for strength in (0.0, 0.5, 1.0):
            policy = DistributionMatchingPolicy(wanted, per, strength, samples)
            with patched(model, policy):
                moved[strength] = policy.matched(model[0], x)
                if strength == 0:
                    torch.testing.assert_close(model(x), own, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[0.0], x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved[0.5], (x + moved[1.0]) / 2, rtol=1e-9, atol=1e-9)
    assert (moved[1.0] - x).abs().max() > 0.5


@pytest.mark.parametrize("samples", [None, "auto"])
@pytest.mark.parametrize("size", [2, 40])
def test_per_image_no_image_depends_on_the_others_and_per_batch_all_do(size, samples):
    model, _ = layer_of_float64()
    x = torch.randn(7, C, size, size, generator=torch.Generator().manual_seed(0))
    model, wanted = model.float(), train_quantiles(16)
    others = torch.cat([x[:1], x[1:] * 9 - 3])
    with torch.no_grad():
        for per, alike in (("image", True), ("batch", False)):
            with patched(model, DistributionMatchingPolicy(wanted, per, samples=samples)):
                whole = model(x)
                for batch in (x[:1], x[:3], others):
                    assert torch.equal(model(batch)[0], whole[0]) is alike


def test_one_value_per_channel_has_no_distribution_and_an_empty_batch_needs_none():
    model, _, x, _ = make_layer("BatchNorm1d", "both", torch.float32)
    wanted = train_quantiles(8).float()
    with torch.no_grad():
        with (
            patched(model, DistributionMatchingPolicy(wanted, "image")),
            pytest.raises(RoutingError, match="per='batch"),
        ):
            model(x)
        with patched(model, DistributionMatchingPolicy(wanted)):
            assert model(x).shape == x.shape
            assert model(x[:0]).shape == x[:0].shape
            with pytest.raises(RoutingError, match="one value per channel"):
                model(x[:1])
            model.train()
            with pytest.raises(RoutingError, match="training mode"):
                model(x)


@PER
@pytest.mark.parametrize("samples", [None, "auto"])
@pytest.mark.parametrize("name", ["BatchNorm2d", "FrozenBatchNorm2d", "BatchNormAct2d"])
def test_autocast_leaves_quantiles_in_their_precision(name, samples, per):
    model, _, x, _ = make_layer(name, "both", torch.float32)
    wanted, x = train_quantiles(8), x.bfloat16()  # what a convolution hands over
    with torch.no_grad(), patched(model, DistributionMatchingPolicy(wanted, per, samples=samples)) as patch:
        policy = model[0].dynbn_policy
        expected = policy.matched(model[0], x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(policy.matched(model[0], x), expected)
            out = model(x)
            patch.undo()
            assert out.dtype == model(x).dtype


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"per": "channel"}, "per='channel'"),
        ({"strength": -0.1}, r"strength=-0\.1"),
        ({"strength": 1.1}, r"strength=1\.1"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"samples": 1}, "samples=1"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 12.5}, r"samples=12\.5"),
        ({"samples": "all"}, "samples='all'"),
    ],
    ids=str,
)
def test_bad_settings_are_named(options, named):
    with pytest.raises(MethodError, match=named):
        DistributionMatchingPolicy(train_quantiles(8), **options)
