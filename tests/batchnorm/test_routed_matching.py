"""Distribution matching on top of routing: the form of an image's row corrected, its mean and variance as routed."""

import numpy as np
import pytest
import torch
from batchnorm_reference import assert_same, float64, make_bank, snapshot
from test_distribution_matching import BY_LAYER, channels_of, layer_of_float64, middles, patched
from test_layer_types import ALWAYS_AFFINE, EPS, C, in_format
from torch import nn

from dynbn_lightning.batchnorm import (
    BNStatsBank,
    Calibration,
    Patch,
    RoutedMatchingPolicy,
    Routing,
    Statistics,
    routed,
)
from dynbn_lightning.errors import MethodError

# `fog` is of the source's form, with another mean and variance; `frost` is skewed.
ROWS, Q = ("clean", "fog", "frost"), 64
POINTS = (np.arange(Q) + 0.5) / Q
FORMS = {"clean": np.sin(POINTS * 3 - 1.5), "fog": np.sin(POINTS * 3 - 1.5) * 4 + 7, "frost": np.exp(POINTS * 4)}


class Bench:
    """A layer in float64 with a bank and quantiles of its rows."""

    def __init__(self, name="BatchNorm2d"):
        self.model, self.x = layer_of_float64(name)
        self.layer = self.model[0]
        self.bank = make_bank(self.model, ROWS, torch.Generator().manual_seed(1))
        # The source in float64 as the model has it, so that what is left to float32 is the bank's other rows.
        scales = np.arange(1, C + 1)[:, None]
        self.quantiles = torch.from_numpy(np.stack([FORMS[row] * scales + scales for row in ROWS])).float()

    def by_routing(self, x, assign, **options):
        with torch.no_grad(), routed(self.model, self.bank) as routing:
            assign(routing)
            return self.model(x)

    def matched(self, x, assign, strength=1.0, bank=None):
        routing = Routing(bank or self.bank, self.model)
        policy = RoutedMatchingPolicy("0", routing, self.quantiles, strength)
        with torch.no_grad(), patched(self.model, policy):
            assign(routing)
            return self.model(x)


ASSIGNMENTS = {
    "rows": lambda routing: routing.set(torch.tensor([1, 0, 2, 1, 2])),
    "mixtures": lambda routing: routing.set(torch.softmax(torch.arange(15.0).cos().view(5, 3) * 2, 1)),
    "name": lambda routing: routing.set("frost"),
    "shared": lambda routing: routing.set(torch.tensor([0.2, 0.5, 0.3])),
    "partly": lambda routing: routing.set(torch.tensor([1, 2, 2, 0, 1]), source_weight=0.25),
    "source": lambda routing: routing.set("clean"),
    "nothing": lambda routing: None,
}


@BY_LAYER
@pytest.mark.parametrize("assigned", ASSIGNMENTS)
def test_strength_0_is_routing_alone(name, assigned):
    bench = Bench(name)
    expected = bench.by_routing(bench.x, ASSIGNMENTS[assigned])
    out = bench.matched(bench.x, ASSIGNMENTS[assigned], strength=0)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@BY_LAYER
@pytest.mark.parametrize("memory", ["channels_last", "strided"])
def test_activations_may_lie_in_any_memory_format(name, memory):
    bench = Bench(name)
    expected = bench.matched(bench.x, ASSIGNMENTS["rows"])
    out = bench.matched(in_format(bench.x, memory), ASSIGNMENTS["rows"])
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@BY_LAYER
def test_rows_of_the_sources_form_are_routed_alone_and_images_on_row_0_are_the_layers(name):
    bench = Bench(name)
    assignment = torch.tensor([1, 0, 0, 1, 2])
    expected = bench.by_routing(bench.x, lambda routing: routing.set(assignment))
    out = bench.matched(bench.x, lambda routing: routing.set(assignment))
    torch.testing.assert_close(out[:4], expected[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[1:3], bench.model(bench.x)[1:3].detach(), rtol=1e-5, atol=1e-5)
    assert (out[4] - expected[4]).abs().max() > 0.02


@pytest.mark.parametrize(("strength", "share"), [(1.0, 0.05), (0.5, 0.6)])
def test_a_row_of_another_form_is_corrected_in_its_form(strength, share):
    bench = Bench()
    bench.layer.eps = 1e-5
    generator = np.random.default_rng(0)
    # Activations as the row's quantiles describe them, with its own mean and variance.
    places = generator.random((8, C, 400))
    form = (FORMS["frost"] - FORMS["frost"].mean()) / FORMS["frost"].std()
    row_mean, row_var = (float64(table[2])[None, :, None] for table in (bench.bank.mean, bench.bank.var))
    values = np.interp(places, POINTS, form) * np.sqrt(row_var) + row_mean
    x = torch.from_numpy(values).view(8, C, 20, 20)
    alone = bench.by_routing(x, lambda routing: routing.set("frost"))
    out = bench.matched(x, lambda routing: routing.set("frost"), strength)
    source_form = (FORMS["clean"] - FORMS["clean"].mean()) / FORMS["clean"].std()
    wanted = source_form[None] * float64(bench.layer.weight)[:, None] + float64(bench.layer.bias)[:, None]
    before, after = (np.abs(middles(channels_of(part), Q) - wanted).mean() for part in (alone, out))
    assert before > 0.1
    assert after < share * before + 0.02  # sampling error of 3,200 values


def test_mixtures_of_rows_have_the_mixture_of_their_quantile_functions():
    bench, weights = Bench(), [0.2, 0.3, 0.5]
    out = float64(bench.matched(bench.x, lambda routing: routing.set(torch.tensor([weights] * 5))))
    own_mean, own_var = float64(bench.layer.running_mean), float64(bench.layer.running_var)
    means, variances = (float64(table).copy() for table in (bench.bank.mean, bench.bank.var))
    means[0], variances[0] = own_mean, own_var
    forms = [(FORMS[row] - FORMS[row].mean()) / FORMS[row].std() for row in ROWS]
    start = sum(weight * form for weight, form in zip(weights, forms, strict=True))
    for channel in range(C):
        mean = weights @ means[:, channel]
        var = weights @ (variances[:, channel] + (means[:, channel] - mean) ** 2)
        at = (float64(bench.x)[:, channel] - mean) / np.sqrt(var + EPS)
        moved = np.interp(at, start, forms[0])
        slope = (forms[0][-1] - forms[0][0]) / (start[-1] - start[0])
        moved = np.where(at < start[0], forms[0][0] + slope * (at - start[0]), moved)
        moved = np.where(at > start[-1], forms[0][-1] + slope * (at - start[-1]), moved)
        expected = moved * float64(bench.layer.weight)[channel] + float64(bench.layer.bias)[channel]
        np.testing.assert_allclose(out[:, channel], expected, atol=0.06)  # 64 bins for the map's 64 pieces
        assert np.abs(out[:, channel] - expected).mean() < 0.01


def test_channels_that_were_constant_in_a_row_are_shifted_and_scaled():
    bench = Bench()
    bench.quantiles[:, 2] = 3.0
    bench.quantiles[2, 4] = -1.0
    assign = ASSIGNMENTS["name"]
    expected, out = bench.by_routing(bench.x, assign), bench.matched(bench.x, assign)
    torch.testing.assert_close(out[:, 2], expected[:, 2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, 4], expected[:, 4], rtol=1e-5, atol=1e-5)
    assert out.isfinite().all()


def test_calibrated_statistics_are_those_of_the_routing():
    bench = Bench()
    shares = torch.tensor([[[0.0], [0.3], [0.6]], [[0.0], [0.5], [0.2]]])
    bench.bank = BNStatsBank(ROWS, bench.bank.layers, bench.bank.mean, bench.bank.var, calibration=Calibration(*shares))
    assign = ASSIGNMENTS["rows"]
    expected, out = bench.by_routing(bench.x, assign), bench.matched(bench.x, assign)
    torch.testing.assert_close(out[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bench.matched(bench.x, assign, strength=0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copies", ["adjacent", "stacked"])
def test_images_that_are_seen_several_times_keep_their_rows(copies):
    bench, rows = Bench(), torch.tensor([1, 2, 0, 2, 1])
    several = bench.x.repeat_interleave(2, 0) if copies == "adjacent" else torch.cat([bench.x, bench.x])
    once = bench.matched(bench.x, lambda routing: routing.set(rows))
    out = bench.matched(several, lambda routing: routing.set(rows, copies))
    expected = once.repeat_interleave(2, 0) if copies == "adjacent" else torch.cat([once, once])
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_statistics_of_ones_own_have_no_form_to_correct_and_are_used():
    bench = Bench()
    own = Statistics(torch.full((5, C), 2.0, dtype=torch.float64), torch.full((5, C), 3.0, dtype=torch.float64))
    expected = bench.by_routing(bench.x, lambda routing: routing.use(own))
    out = bench.matched(bench.x, lambda routing: routing.use(own))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_scales_and_shifts_of_a_refined_bank_are_kept():
    bench = Bench()
    weight, bias = (float64(value)[None].repeat(3, 0) for value in (bench.layer.weight, bench.layer.bias))
    weight[1:], bias[1:] = weight[1:] * 3, bias[1:] - 2
    tables = (torch.from_numpy(table).float() for table in (weight, bias))
    bench.bank = BNStatsBank(
        ROWS, bench.bank.layers, bench.bank.mean, bench.bank.var, **dict(zip(("weight", "bias"), tables, strict=True))
    )
    expected = bench.by_routing(bench.x, ASSIGNMENTS["rows"])
    out = bench.matched(bench.x, ASSIGNMENTS["rows"], strength=0)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("assigned", ["rows", "mixtures", "shared"])
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "FrozenBatchNorm2d", "BatchNormAct2d"])
def test_autocast_leaves_statistics_and_quantiles_in_their_precision(name, assigned):
    bench = Bench(name)
    bench.model.float()
    x = bench.x.bfloat16()  # what a convolution hands over
    expected = bench.matched(x, ASSIGNMENTS[assigned]) if name not in ALWAYS_AFFINE else None
    with torch.autocast("cpu", torch.bfloat16):
        out = bench.matched(x, ASSIGNMENTS[assigned])
        own = bench.model(x)
    assert out.dtype == own.dtype
    if expected is not None:
        torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("strength", "named"), [(-0.5, r"strength=-0\.5"), (2, "strength=2")])
def test_bad_strengths_on_routing_are_named(strength, named):
    bench = Bench()
    with pytest.raises(MethodError, match=named):
        RoutedMatchingPolicy("0", Routing(bench.bank, bench.model), bench.quantiles, strength)


def test_two_layers_take_their_own_quantiles_and_statistics_and_are_given_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    bank, x = make_bank(model, ROWS, torch.Generator().manual_seed(1)), torch.randn(4, 3, 6, 6)
    routing, before = Routing(bank, model), snapshot(model)
    tables = torch.randn(3, 6, Q, generator=torch.Generator().manual_seed(2)).sort(-1).values
    parts = {"0": tables[:, :3], "2": tables[:, 3:]}
    with torch.no_grad():
        with Patch(model, lambda name, layer: RoutedMatchingPolicy(name, routing, parts[name])):
            routing.set("frost")
            out = model(x)
            routing.clear()
            assert torch.equal(model(x), model[2].own_forward(model[0].own_forward(x).relu()))
        routing.set("frost")
        first = model[:1]
        with Patch(first, lambda name, layer: RoutedMatchingPolicy("0", routing, parts["0"])):
            inner = first(x).relu()
        second = model[2:]
        with Patch(second, lambda name, layer: RoutedMatchingPolicy("2", routing, parts["2"])):
            assert torch.equal(second(inner), out)
    assert_same(before, model)
