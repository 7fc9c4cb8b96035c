"""Batch statistics with a scale and shift of one's own: outputs and gradients against autograd by hand in float64."""

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, float64, snapshot
from test_layer_types import ALWAYS_AFFINE, CASES, EPS, LAYERS, TOLERANCE, C, in_format, make_layer
from torch import nn

from dynbn_lightning.batchnorm import Patch, TrainableAffinePolicy
from dynbn_lightning.batchnorm.normalization import batch_moments, several_batch_moments
from dynbn_lightning.errors import RoutingError

ACTIVATIONS = {
    "BatchNormAct2d": lambda values: values * torch.sigmoid(values),
    "SyncBatchNormAct": lambda values: values * torch.sigmoid(values),
    "FrozenBatchNormAct2d": lambda values: (values / 6 + 0.5).clamp(0, 1),
}
FORMATS = ["contiguous", "channels_last", "strided"]


def by_hand(name, x, weight, bias):
    """The layer's output for float64 leaves, from explicit moments with the biased variance."""
    per_channel = (1, C) + (1,) * (x.dim() - 2)
    values = x.transpose(0, 1).reshape(C, -1)
    count = values.shape[1]
    mean = values.sum(1) / count
    var = (values - mean[:, None]).pow(2).sum(1) / count
    out = (x - mean.view(per_channel)) / (var.view(per_channel) + EPS).sqrt()
    out = out if weight is None else out * weight.view(per_channel)
    out = out if bias is None else out + bias.view(per_channel)
    return ACTIVATIONS.get(name, lambda values: values)(out)


def loss_of(out):
    """Uneven, so that the gradients of a normalised sum aren't 0."""
    steps = torch.arange(out.numel(), dtype=out.dtype).view(out.shape)
    return (out * torch.cos(steps)).sum() + out.pow(2).mul(torch.sin(steps)).sum()


def leaf(value):
    return None if value is None else value.detach().double().clone().requires_grad_()


def patched_with(policy):
    return lambda name, layer: policy


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "affine"), CASES, ids=str)
def test_output_and_gradients_are_those_of_autograd_by_hand(name, affine, dtype, memory):
    model, _, x, _ = make_layer(name, affine, dtype)
    layer, before = model[0], snapshot(model)
    policy = TrainableAffinePolicy(layer)
    with torch.no_grad():
        for value in list(policy.state.values()):  # a step that the layer's own haven't made
            value.add_(torch.linspace(-0.3, 0.6, C))
    x = in_format(x, memory).requires_grad_()
    hand_x, weight, bias = leaf(x), leaf(policy.weight), leaf(policy.bias)
    with Patch(model, patched_with(policy)):
        out = model(x)
        loss_of(out).backward()
        with torch.no_grad():
            without_gradients = model(x)
    expected = by_hand(name, hand_x, weight, bias)
    loss_of(expected).backward()
    tolerance = TOLERANCE[dtype]
    assert out.dtype == dtype
    assert out.shape == x.shape
    if memory != "strided":  # which torch's own batch norm makes contiguous
        assert out.stride() == x.stride()
    np.testing.assert_allclose(float64(out), float64(expected), tolerance, tolerance)
    np.testing.assert_allclose(float64(without_gradients), float64(expected), tolerance, tolerance)
    np.testing.assert_allclose(float64(x.grad), float64(hand_x.grad), 20 * tolerance, 20 * tolerance)
    assert [value is None for value in (policy.weight, policy.bias)] == [value is None for value in (weight, bias)]
    for own, hand in ((policy.weight, weight), (policy.bias, bias)):
        if own is not None:
            np.testing.assert_allclose(float64(own.grad), float64(hand.grad), 1e-4, 1e-4)
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert_same(before, model)


@pytest.mark.parametrize("name", LAYERS)
def test_scale_and_shift_are_float32_leaves_of_their_own_and_reset_to_the_layers(name):
    model, _, x, _ = make_layer(name, "both", torch.bfloat16)
    policy, layer = TrainableAffinePolicy(model[0]), model[0]
    weight, bias = list(policy.state.values())
    assert weight is policy.weight
    assert bias is policy.bias
    for value, own in ((weight, layer.weight), (bias, layer.bias)):
        assert value.dtype == torch.float32
        assert value.is_leaf
        assert value.requires_grad
        assert torch.equal(value, own.float())
        assert value.data_ptr() != own.data_ptr()
    optimizer, before = torch.optim.SGD(list(policy.state.values()), lr=0.1), snapshot(model)
    with Patch(model, patched_with(policy)):
        first = model(x)
        first.float().pow(2).sum().backward()
        optimizer.step()
        moved = model(x)
        policy.remember({})
        again = model(x)
    assert not torch.equal(moved, first)
    assert torch.equal(again, first)
    assert policy.weight is weight  # which an optimizer holds
    assert torch.equal(weight, layer.weight.float())
    assert_same(before, model)


def test_a_layer_without_scale_and_shift_has_nothing_to_optimise():
    model, _, x, _ = make_layer("BatchNorm2d", "neither", torch.float64)
    policy = TrainableAffinePolicy(model[0])
    policy.remember({})
    assert list(policy.state.values()) == []
    with Patch(model, patched_with(policy)):
        out = model(x)
    np.testing.assert_allclose(float64(out), float64(by_hand("BatchNorm2d", x, None, None)), 1e-9, 1e-9)


@pytest.mark.parametrize("name", sorted(ALWAYS_AFFINE))
def test_frozen_layers_send_gradients_through_the_batch_statistics_too(name):
    model, _, x, _ = make_layer(name, "both", torch.float64)
    policy, x = TrainableAffinePolicy(model[0]), x.requires_grad_()
    with Patch(model, patched_with(policy)):
        loss_of(model(x)).backward()
    # A shift of a whole channel changes nothing in a batch's own normalisation, so the gradients add up to 0.
    sums = float64(x.grad).sum((0, 2, 3))
    np.testing.assert_allclose(sums, np.zeros(C), atol=1e-10)
    assert x.grad.abs().max() > 1e-2


def test_a_single_value_per_channel_and_training_mode_are_refused():
    model, _, x, _ = make_layer("BatchNorm1d", "both", torch.float32)
    with Patch(model, patched_with(TrainableAffinePolicy(model[0]))):
        with pytest.raises(RoutingError, match="one value per channel"):
            model(x[:1])
        model.train()
        with pytest.raises(RoutingError, match="training mode"):
            model(x)


def test_layers_of_one_model_have_scales_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    policies = []

    def make_policy(name, layer):
        policies.append(TrainableAffinePolicy(layer))
        return policies[-1]

    with Patch(model, make_policy):
        loss_of(model(torch.randn(4, 3, 5, 5))).backward()
    assert len(policies) == 2
    assert all(value.grad.abs().sum() > 0 for policy in policies for value in list(policy.state.values()))
    assert policies[0].weight.data_ptr() != policies[1].weight.data_ptr()


@pytest.mark.parametrize("moments", [batch_moments, several_batch_moments])
@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ALWAYS_AFFINE])
def test_moments_have_values_and_gradients_of_their_formula(name, memory, moments):
    _, _, x, _ = make_layer(name, "both", torch.float64)
    x = in_format(x, memory)
    hand, x = leaf(x), x.requires_grad_()
    with torch.no_grad():
        plain = moments(x)
    count, mean, var = moments(x)
    (mean.cos() * 3 + var.pow(2)).sum().backward()
    values = hand.transpose(0, 1).reshape(C, -1)
    hand_mean = values.sum(1) / values.shape[1]
    hand_var = (values - hand_mean[:, None]).pow(2).sum(1) / (values.shape[1] - 1)
    (hand_mean.cos() * 3 + hand_var.pow(2)).sum().backward()
    assert count == plain[0] == values.shape[1]
    for found, without_gradients, wanted in zip((mean, var), plain[1:], (hand_mean, hand_var), strict=True):
        np.testing.assert_allclose(float64(found), float64(wanted), 1e-10)
        np.testing.assert_allclose(float64(without_gradients), float64(wanted), 1e-10)
    np.testing.assert_allclose(float64(x.grad), float64(hand.grad), 1e-9, 1e-12)


def test_a_single_value_has_no_variance_and_sends_gradients_through_its_mean_alone():
    x = torch.tensor([[1.0, -2.0, 3.0]], requires_grad=True)
    count, mean, var = batch_moments(x)
    assert count == 1
    assert torch.equal(mean, x[0])
    assert torch.equal(var, torch.zeros(3))
    (2 * mean + var).sum().backward()
    assert torch.equal(x.grad, torch.full((1, 3), 2.0))
    for shape in ((1, 3), (1, 3, 1, 1)):
        with pytest.raises(RoutingError, match="one value per channel"):
            several_batch_moments(x.detach().view(shape))
