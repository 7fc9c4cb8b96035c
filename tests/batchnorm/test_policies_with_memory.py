"""Policies with a memory: first images, components, states that are given on, and what must not be remembered."""

import numpy as np
import pytest
import torch
from batchnorm_reference import float64, give_nontrivial_statistics, normalize_image_by_image
from test_layer_types import EPS, make_layer
from test_statistics_policies import POLICIES, every_layer, moments_of
from torch import nn

from dynbn_lightning.batchnorm import FirstImagesPolicy, Patch, UnMixPolicy
from dynbn_lightning.batchnorm.unmix import initial_components


def two_layers():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    model = nn.Sequential(*layers).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model


def test_first_images_of_a_larger_batch_give_what_their_own_forward_gives_and_stay():
    model, x = two_layers(), torch.randn(9, 3, 10, 9, generator=torch.Generator().manual_seed(1))
    policies = []

    def make_policy(name, layer):
        policies.append(FirstImagesPolicy(4))
        return policies[-1]

    with torch.no_grad():
        with Patch(model, make_policy):
            whole, later = model(x), model(x[6:] * 2)
        in_one_batch = [policy.state for policy in policies]
        with Patch(model, make_policy):
            model(x[:4])  # these alone
            torch.testing.assert_close(model(x), whole, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(model(x[6:] * 2), later, rtol=1e-5, atol=1e-5)
        for policy, state in zip(policies[2:], in_one_batch, strict=True):
            assert policy.missing == 0
            torch.testing.assert_close(policy.state, state, rtol=1e-5, atol=1e-5)
        # torch's training mode normalises these first images by their biased variance, but keeps the unbiased one.
        for layer in (model[1], model[4]):
            layer.momentum = 1.0
        model.train()(x[:4])
        model.eval()
        torch.testing.assert_close(in_one_batch[0]["mean"], model[1].running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(in_one_batch[0]["var"], model[1].running_var, rtol=1e-5, atol=1e-5)
        values = 4 * 8 * 7
        torch.testing.assert_close(whole, model(x), rtol=2 / values, atol=2 / values)


def test_first_images_of_smaller_batches_are_pooled_and_then_frozen():
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    policy = FirstImagesPolicy(4)
    with torch.no_grad(), Patch(model, every_layer(policy)):
        for part, missing in ((x[:1], 3), (x[1:3], 1), (x[3:], 0), (x * 9, 0)):
            model(part)
            assert policy.missing == missing
    mean, var = moments_of(float64(x[:4]))
    np.testing.assert_allclose(float64(policy.state["mean"]), mean, 1e-6, 1e-6)
    np.testing.assert_allclose(float64(policy.state["var"]), var, 1e-6, 1e-6)
    policy.remember({})
    assert policy.missing == 4


@pytest.mark.parametrize("method", ["running", "first", "unmix"])
def test_a_remembered_state_goes_on_where_it_was_taken(method):
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float32)
    policy, other = POLICIES[method](), POLICIES[method]()
    with torch.no_grad():
        with Patch(model, every_layer(policy)):
            first = model(x[:2])
            state, kept = policy.state, {key: value.clone() for key, value in policy.state.items()}
            expected = model(x[2:] * 3)
        other.remember(state)
        with Patch(model, every_layer(other)):
            assert torch.equal(model(x[2:] * 3), expected)
            other.remember({})
            assert torch.equal(model(x[:2]), first)
    assert list(state) == list(kept)
    for key, value in state.items():
        assert torch.equal(value, kept[key])  # who keeps a state need not copy it


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_the_first_components_mixture_has_the_source_moments_in_expectation(spread):
    channels, components = 40_000, 4
    mean, var = torch.full((channels,), 2.0), torch.full((channels,), 9.0)
    means, variances = initial_components(mean, var, components, spread, torch.Generator().manual_seed(0))
    assert means.shape == variances.shape == (components, channels)
    means, variances = means.double(), variances.double()
    mixture_mean = means.mean(0)
    mixture_var = variances.mean(0) + (means - mixture_mean).square().mean(0)
    # Standard errors: of the mean sqrt(9 s / 3 / 40,000) < 0.01, of the variance 9 s sqrt(2 / 3 / 40,000) < 0.04.
    assert mixture_mean.mean().item() == pytest.approx(2, abs=0.04)
    assert mixture_var.mean().item() == pytest.approx(9, abs=0.15)
    assert variances.mean().item() == pytest.approx(9 * (1 - spread), abs=1e-4)


def test_one_component_begins_at_the_source_statistics_and_averages_with_each_image():
    model, _, x, _ = make_layer("BatchNorm2d", "neither", torch.float64)
    layer, policy = model[0], UnMixPolicy(components=1)
    with torch.no_grad(), Patch(model, every_layer(policy)):
        out = float64(model(x))
    # Its weight is 1 for every image, so each is normalised by its own moments alone.
    expected = [moments_of(float64(image)[None], correction=0) for image in x]
    means, variances = zip(*expected, strict=True)
    np.testing.assert_allclose(out, normalize_image_by_image(float64(x), means, variances, None, None, EPS), 1e-9, 1e-9)
    step = 1 - 0.9 ** (5 / 64)
    average = sum(means) / len(means)
    wanted = float64(layer.running_mean) * (1 - step) + step * average
    np.testing.assert_allclose(float64(policy.state["mean"])[0], wanted, 1e-9)


def test_activations_without_spatial_extent_keep_the_source_statistics_when_unmixed():
    model, _, x, _ = make_layer("BatchNorm1d", "both", torch.float32)
    own, policy = model(x), UnMixPolicy()
    with torch.no_grad(), Patch(model, every_layer(policy)):
        assert torch.equal(model(x), own)
    assert policy.state == {}


def test_components_begin_as_their_seed_says():
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float32)
    outs = []
    for seed in (0, 0, 1):
        with torch.no_grad(), Patch(model, every_layer(UnMixPolicy(seed=seed))):
            outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


@pytest.mark.parametrize("method", POLICIES)
def test_statistics_keep_their_precision_under_autocast(method):
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float32)
    outs, states = [], []
    for enabled in (False, True):
        policy = POLICIES[method]()
        with torch.no_grad(), Patch(model, every_layer(policy)), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outs.append([model(part) for part in (x, x[:2] * 2)])
        states.append(policy.state)
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", POLICIES)
def test_gradients_flow_to_the_input_and_no_graph_is_remembered(method):
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    policy = POLICIES[method]()
    with Patch(model, every_layer(policy)):
        for step in range(2):  # the second one fails where the state holds the graph of the first
            batch = (x + step).requires_grad_()
            model(batch).square().sum().backward()
            assert batch.grad.abs().sum() > 0
            batch.grad = None
    assert not any(value.requires_grad for value in policy.state.values())


@pytest.mark.parametrize("method", [method for method in POLICIES if method != "batch"])
def test_an_empty_batch_gives_an_empty_output_and_moves_nothing(method):
    model, _, x, _ = make_layer("BatchNorm2d", "both", torch.float32)
    policy, other = POLICIES[method](), POLICIES[method]()
    with torch.no_grad():
        with Patch(model, every_layer(other)):
            expected = model(x)
        with Patch(model, every_layer(policy)):
            assert model(x[:0]).shape == x[:0].shape
            assert torch.equal(model(x), expected)
