"""Mixtures of rows against samples, exact fractions and a float64 loop."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from batchnorm_reference import float64, mix_by_total_variance

from dynbn_lightning.batchnorm import MIXINGS, mix_rows
from dynbn_lightning.errors import RoutingError

K, C = 5, 7


@pytest.fixture
def tables():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(K, C, generator=generator) * 3, torch.rand(K, C, generator=generator) * 4 + 0.1


@pytest.fixture
def weights():
    return torch.rand(9, K, generator=torch.Generator().manual_seed(1)).pow(3).softmax(1)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_law_of_total_variance(tables, weights, mixing, dtype):
    means, variances = (table.to(dtype) for table in tables)
    mean, var = mix_rows(weights, means, variances, mixing)
    assert mean.dtype == var.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for image, image_weights in enumerate(float64(weights)):
        expected_mean, expected_var = mix_by_total_variance(
            image_weights, float64(means), float64(variances), average=mixing == "average"
        )
        np.testing.assert_allclose(float64(mean[image]), expected_mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(float64(var[image]), expected_var, rtol=tolerance)


def test_moments_are_those_of_pooled_samples():
    rng = np.random.default_rng(0)
    samples = [rng.normal(center, scale, 1000) for center, scale in ((-2, 0.5), (0, 1), (3, 2))]
    shares = (1, 2, 5)  # how many copies of each sample the pool holds
    pooled = np.concatenate([np.tile(sample, share) for sample, share in zip(samples, shares, strict=True)])
    mean, var = mix_rows(
        torch.tensor([[share / 8 for share in shares]], dtype=torch.float64),
        torch.tensor([[sample.mean()] for sample in samples]),
        torch.tensor([[sample.var()] for sample in samples]),
    )
    assert mean.item() == pytest.approx(pooled.mean(), rel=1e-12)
    assert var.item() == pytest.approx(pooled.var(), rel=1e-12)


def test_variance_does_not_cancel_in_float32():
    # Spreads of 0.1 around 10,000: squares differ in the ninth digit, which float32 doesn't have.
    means = torch.tensor([[10_000.0], [10_000.125], [9_999.875]])
    variances = torch.tensor([[0.01], [0.02], [0.005]])
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    exact = [[Fraction(value) for value in table.flatten().tolist()] for table in (weights, means, variances)]
    mean = sum(w * m for w, m, _ in zip(*exact, strict=True))
    var = sum(w * (v + (m - mean) ** 2) for w, m, v in zip(*exact, strict=True))
    mixed_mean, mixed_var = mix_rows(weights, means, variances)
    assert mixed_mean.item() == pytest.approx(float(mean), rel=1e-7)
    assert mixed_var.item() == pytest.approx(float(var), rel=1e-3)
    assert (mixed_var > variances.min()).all()


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_one_hot_weights_copy_rows_exactly(tables, mixing, precision):
    means, variances = tables
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # Lightning recommends "medium" and "high" to its users
    try:
        mean, var = mix_rows(torch.eye(K).repeat(20, 1), means * 1.2345678, variances, mixing)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(mean, (means * 1.2345678).repeat(20, 1))
    assert torch.equal(var, variances.repeat(20, 1))


def test_an_image_keeps_its_bits_whatever_the_batch(tables):
    generator = torch.Generator().manual_seed(2)
    means, variances = torch.randn(16, 300, generator=generator), torch.rand(16, 300, generator=generator)
    weights = torch.rand(64, 16, generator=generator).softmax(1)
    mean, var = mix_rows(weights, means, variances)
    for image in (0, 1, 17, 63):
        alone = mix_rows(weights[image : image + 1], means, variances)
        assert torch.equal(alone[0][0], mean[image])
        assert torch.equal(alone[1][0], var[image])


def test_autocast_does_not_lower_the_precision(tables, weights):
    expected = mix_rows(weights, *tables)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mix_rows(weights, *tables)
    assert torch.equal(mixed[0], expected[0])
    assert torch.equal(mixed[1], expected[1])


def test_inputs_are_left_alone(tables, weights):
    copies = [value.clone() for value in (weights, *tables)]
    mix_rows(weights, *tables)
    for value, copied in zip((weights, *tables), copies, strict=True):
        assert torch.equal(value, copied)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(K) / K, rf"\(N, {K}\)"),
        (torch.ones(2, K + 1) / (K + 1), rf"\(2, {K + 1}\)"),
        (torch.ones(2, K, dtype=torch.int64), "torch.int64"),
    ],
)
def test_wrong_weights_are_refused(tables, weights, message):
    with pytest.raises(RoutingError, match=message):
        mix_rows(weights, *tables)


def test_unknown_mixing_and_unlike_tables_are_refused(tables, weights):
    with pytest.raises(RoutingError, match="'median' is not one of moments, average"):
        mix_rows(weights, *tables, mixing="median")
    with pytest.raises(RoutingError, match="variances of shape"):
        mix_rows(weights, tables[0], tables[1][:, 1:])
