"""Rows blended with statistics found in the batch, and what a routing tells of its assignment."""

import math

import numpy as np
import pytest
import torch
from batchnorm_reference import (
    assert_same,
    float64,
    make_bank,
    mix_by_total_variance,
    normalize_image_by_image,
    snapshot,
)
from test_layer_types import ALWAYS_AFFINE, EPS, FROZEN_TOLERANCE, LAYERS, TOLERANCE, C, in_format, make_layer
from torch import nn

from dynbn_lightning.batchnorm import (
    BatchStatisticsPolicy,
    BlendedRoutingPolicy,
    BNStatsBank,
    Calibration,
    Patch,
    Routing,
    RunningAveragePolicy,
    Statistics,
    UnMixPolicy,
    routed,
)
from dynbn_lightning.errors import RoutingError

ROWS = ("clean", "fog", "frost", "snow")
WEIGHTS = [0.0, 0.3, 1.0]
MIXTURES = [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.7, 0.1, 0.1, 0.1]]
# What is assigned, and each image's weights over rows.
ASSIGNMENTS = {
    "rows": (lambda routing: routing.set(torch.tensor([2, 0, 3, 1, 2])), np.eye(4)[[2, 0, 3, 1, 2]]),
    "mixtures": (lambda routing: routing.set(torch.tensor(MIXTURES)), np.array(MIXTURES)),
    "one_row": (lambda routing: routing.set(torch.full((5,), 3)), np.eye(4)[[3] * 5]),
    "name": (lambda routing: routing.set("frost"), np.eye(4)[[2] * 5]),
    "partly": (
        lambda routing: routing.set(torch.tensor([1, 1, 2, 0, 3]), source_weight=0.25),
        0.75 * np.eye(4)[[1, 1, 2, 0, 3]] + 0.25 * np.eye(4)[[0] * 5],
    ),
    "source": (lambda routing: routing.set(torch.zeros(5, dtype=torch.int64)), np.eye(4)[[0] * 5]),
    "nothing": (lambda routing: None, np.eye(4)[[0] * 5]),
}


def blended(model, routing, base, share):
    return Patch(model, lambda name, layer: BlendedRoutingPolicy(name, routing, base, share))


def blend_by_hand(first, second, share):
    """The moments of a mixture of two distributions, channel by channel."""
    mean, var = np.empty(C), np.empty(C)
    for c in range(C):
        mean[c] = (1 - share) * first[0][c] + share * second[0][c]
        within = (1 - share) * first[1][c] + share * second[1][c]
        var[c] = within + (1 - share) * (first[0][c] - mean[c]) ** 2 + share * (second[0][c] - mean[c]) ** 2
    return mean, var


def of_batch_and_source(x, mean, var, prior):
    """Schneider et al.: the source counts as `prior` images."""
    own_mean, own_var = np.empty(C), np.empty(C)
    for c in range(C):
        values = x[:, c].ravel().tolist()
        own_mean[c] = math.fsum(values) / len(values)
        own_var[c] = math.fsum((value - own_mean[c]) ** 2 for value in values) / (len(values) - 1)
    share = prior / (prior + len(x))
    return share * mean + (1 - share) * own_mean, share * var + (1 - share) * own_var


def rows_of(model, bank):
    means, variances = float64(bank.mean).copy(), float64(bank.var).copy()
    means[0], variances[0] = float64(model[0].running_mean), float64(model[0].running_var)
    return means, variances


@pytest.mark.parametrize("share", WEIGHTS)
@pytest.mark.parametrize("assigned", ASSIGNMENTS)
@pytest.mark.parametrize("name", LAYERS)
def test_each_image_has_the_mixture_of_its_rows_and_the_batchs_statistics(name, assigned, share):
    forms = ((torch.float64, "contiguous"), (torch.bfloat16, "strided"), (torch.float32, "channels_last"))
    for dtype, memory in forms if assigned in ("rows", "partly") else forms[2:]:
        model, bank, x, activation = make_layer(name, "both", dtype)
        x, layer, before = in_format(x, memory), model[0], snapshot(model)
        assign, weights = ASSIGNMENTS[assigned]
        means, variances = rows_of(model, bank)
        base = of_batch_and_source(float64(x), means[0], variances[0], prior=4)
        images = [blend_by_hand(mix_by_total_variance(row, means, variances), base, share) for row in weights]
        scale, shift = float64(layer.weight), float64(layer.bias)
        expected = normalize_image_by_image(float64(x), *zip(*images, strict=True), scale, shift, EPS, activation)
        routing = Routing(bank, model)
        with torch.no_grad(), blended(model, routing, BatchStatisticsPolicy(prior=4), share):
            assign(routing)
            out = model(x)
        tolerance = (FROZEN_TOLERANCE if name in ALWAYS_AFFINE else TOLERANCE)[dtype]
        assert out.dtype == model(x).dtype
        np.testing.assert_allclose(float64(out), expected, tolerance, tolerance, err_msg=str(dtype))
        assert_same(before, model)


@pytest.mark.parametrize("assigned", ASSIGNMENTS)
def test_without_a_share_of_the_base_it_is_routing_and_with_all_of_it_the_base(assigned):
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    assign, _ = ASSIGNMENTS[assigned]
    routing, base = Routing(bank, model), BatchStatisticsPolicy(prior=4)
    outs = []
    with torch.no_grad():
        for share in (0, 1):
            with blended(model, routing, base, share):
                assign(routing)
                outs.append(model(x))
        with routed(model, bank) as other:
            assign(other)
            torch.testing.assert_close(outs[0], model(x), rtol=1e-9, atol=1e-9)
        with Patch(model, lambda name, layer: base):
            torch.testing.assert_close(outs[1], model(x), rtol=1e-9, atol=1e-9)


def test_a_base_with_a_memory_goes_on_from_batch_to_batch():
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    blend, alone = RunningAveragePolicy(0.5), RunningAveragePolicy(0.5)
    routing = Routing(bank, model)
    with torch.no_grad():
        for batch in (x, x * 2 + 1, x[:2]):
            with blended(model, routing, blend, 1.0):
                routing.set("snow")
                out = model(batch)
            with Patch(model, lambda name, layer: alone):
                torch.testing.assert_close(out, model(batch), rtol=1e-9, atol=1e-9)
    assert torch.equal(blend.state["mean"], alone.state["mean"])


@pytest.mark.parametrize("assigned", ASSIGNMENTS)
def test_a_base_with_statistics_of_each_image_blends_image_by_image(assigned):
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    assign, weights = ASSIGNMENTS[assigned]
    means, variances = rows_of(model, bank)
    routing, base = Routing(bank, model), UnMixPolicy(components=1)  # each image's own moments
    with torch.no_grad(), blended(model, routing, base, 0.3):
        assign(routing)
        out = model(x)
    own = [(float64(image).mean((1, 2)), float64(image).var((1, 2))) for image in x]
    images = [
        blend_by_hand(mix_by_total_variance(row, means, variances), its, 0.3)
        for row, its in zip(weights, own, strict=True)
    ]
    scale, shift = float64(model[0].weight), float64(model[0].bias)
    expected = normalize_image_by_image(float64(x), *zip(*images, strict=True), scale, shift, EPS)
    np.testing.assert_allclose(float64(out), expected, 1e-6, 1e-6)


@pytest.mark.parametrize("base", [BatchStatisticsPolicy(prior=4), UnMixPolicy(components=1)], ids=["batch", "images"])
@pytest.mark.parametrize("assigned", ["rows", "name"])
def test_scales_shifts_and_calibration_of_a_bank_are_kept(assigned, base):
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    weight, bias = (value.detach().float().repeat(4, 1) for value in (model[0].weight, model[0].bias))
    weight[1:], bias[1:] = weight[1:] * torch.tensor([[2.0], [3], [4]]), bias[1:] - 1
    shares = torch.tensor([[[0.0], [0.3], [0.6], [0.1]], [[0.0], [0.5], [0.2], [0.4]]])
    bank = BNStatsBank(
        ROWS, bank.layers, bank.mean, bank.var, weight=weight, bias=bias, calibration=Calibration(*shares)
    )
    assign, weights = ASSIGNMENTS[assigned]
    rows = weights.argmax(1)
    with torch.no_grad():
        with routed(model, bank) as plain:
            assign(plain)
            expected = model(x)
        routing = Routing(bank, model)
        with blended(model, routing, base, 0.0):
            assign(routing)
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
        with blended(model, routing, base, 1.0):
            assign(routing)
            out = model(x)
        with Patch(model, lambda name, layer: base):
            own = (model(x) - model[0].bias.view(1, C, 1, 1)) / model[0].weight.view(1, C, 1, 1)
    wanted = own * weight[rows].double().view(5, C, 1, 1) + bias[rows].double().view(5, C, 1, 1)
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)


def test_copies_of_images_keep_their_rows():
    model, bank, x, _ = make_layer("BatchNorm2d", "both", torch.float64)
    routing, base = Routing(bank, model), BatchStatisticsPolicy(source_weight=0.5)
    rows, several = torch.tensor([2, 0, 3, 1, 2]), torch.cat([x, x])
    with torch.no_grad(), blended(model, routing, base, 0.3):
        routing.set(rows, "stacked")
        out = model(several)
        routing.set(torch.cat([rows, rows]))
        assert torch.equal(model(several), out)


def test_training_mode_wrong_batches_and_single_values_are_refused():
    model, bank, x, _ = make_layer("BatchNorm1d", "both", torch.float32)
    routing = Routing(bank, model)
    with torch.no_grad(), blended(model, routing, BatchStatisticsPolicy(), 0.5):
        routing.set(torch.tensor([1, 2, 3]))
        with pytest.raises(RoutingError, match="assigned to 3 images"):
            model(x)
        routing.set(torch.tensor([1]))
        with pytest.raises(RoutingError, match="one value per channel"):
            model(x[:1])
        model.train()
        with pytest.raises(RoutingError, match="training mode"):
            model(x)


@pytest.fixture
def routing():
    model, bank, _, _ = make_layer("BatchNorm2d", "both", torch.float32)
    return Routing(bank, model)


def test_nothing_is_assigned_at_first_and_after_clear(routing):
    assert routing.weights is None
    for assign, _ in ASSIGNMENTS.values():
        assign(routing)
        routing.clear()
        assert routing.weights is None


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_row_numbers_are_one_hot_weights(routing, dtype):
    for rows in ([2, 0, 3], [0, 0], [3, 3, 3, 3], [1]):
        routing.set(torch.tensor(rows, dtype=dtype))
        assert routing.weights.is_floating_point()
        assert routing.weights.tolist() == np.eye(4)[rows].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_mixtures_are_their_own_weights_also_on_the_source_alone(routing, dtype):
    for mixtures in (MIXTURES, [[1.0, 0, 0, 0]] * 3):
        routing.set(torch.tensor(mixtures, dtype=dtype))
        assert routing.weights.tolist() == torch.tensor(mixtures, dtype=dtype).tolist()


def test_a_name_or_a_shared_mixture_is_one_row_for_all_images(routing):
    for number, name in enumerate(ROWS):
        routing.set(name)
        assert routing.weights.tolist() == np.eye(4)[[number]].tolist()
    routing.set(torch.tensor([0.5, 0.25, 0.25, 0]))
    assert routing.weights.tolist() == [[0.5, 0.25, 0.25, 0]]


def test_a_source_weight_moves_weights_to_row_0(routing):
    routing.set(torch.tensor([2, 0]), source_weight=0.25)
    assert routing.weights.tolist() == [[0.25, 0, 0.75, 0], [1, 0, 0, 0]]
    routing.set(torch.tensor([2, 3]), source_weight=torch.tensor([0.5, 1.0]))
    assert routing.weights.tolist() == [[0.5, 0, 0.5, 0], [1, 0, 0, 0]]
    routing.set("fog", source_weight=0.5)
    assert routing.weights.tolist() == [[0.5, 0.5, 0, 0]]
    routing.set(torch.tensor([[0.5, 0.5, 0, 0]]), source_weight=0)
    assert routing.weights.tolist() == [[0.5, 0.5, 0, 0]]


def test_statistics_of_ones_own_have_no_weights(routing):
    routing.set("fog")
    routing.use(Statistics(torch.zeros(3, C), torch.ones(3, C)))
    assert routing.weights is None


def test_a_refused_assignment_leaves_the_one_before(routing):
    routing.set(torch.tensor([1, 2]))
    for wrong in (torch.tensor([4]), torch.tensor([[0.5, 0.4, 0, 0]]), "fogg", torch.tensor([1.5, -0.5, 0, 0])):
        with pytest.raises(RoutingError):
            routing.set(wrong)
        assert routing.weights.tolist() == np.eye(4)[[1, 2]].tolist()


def test_the_statistics_of_a_layer_are_its_columns_under_the_present_assignment():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(3)).eval()
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(0))
    routing, x = Routing(bank, model), torch.zeros(2, 3, 1, 1)
    layer = model[1]
    assert routing.statistics("1", layer, x) is None
    routing.set(torch.tensor([1, 3]))
    found = routing.statistics("1", layer, x)
    assert torch.equal(found.mean, bank.mean[[1, 3], 2:])
    assert torch.equal(found.var, bank.var[[1, 3], 2:])
    assert found.weight is None
    routing.set(torch.tensor([1, 3]), copies="adjacent")
    assert torch.equal(routing.statistics("1", layer, torch.zeros(4, 3, 1, 1)).mean, bank.mean[[1, 1, 3, 3], 2:])
    routing.set(torch.tensor([1, 3]), copies="stacked")
    assert torch.equal(routing.statistics("1", layer, torch.zeros(4, 3, 1, 1)).mean, bank.mean[[1, 3, 1, 3], 2:])
    routing.set("snow")
    assert torch.equal(routing.statistics("1", layer, torch.zeros(9, 3, 1, 1)).mean, bank.mean[3, 2:])
    routing.set("clean")
    assert routing.statistics("1", layer, x) is None
    routing.set(torch.tensor([1, 3]))
    with pytest.raises(RoutingError, match="layer '1' sees a batch of 3"):
        routing.statistics("1", layer, torch.zeros(3, 3, 1, 1))
    routing.clear()
    assert routing.statistics("1", layer, torch.zeros(3, 3, 1, 1)) is None
    layer.train()
    with pytest.raises(RoutingError, match="training mode"):
        routing.statistics("1", layer, x)
