"""Blending with the source statistics: mixtures and routed outputs against a float64 computation by hand."""

import numpy as np
import pytest
import torch
from batchnorm_reference import (
    float64,
    give_nontrivial_statistics,
    make_bank,
    mix_by_total_variance,
    normalize_image_by_image,
)
from torch import nn

from dynbn_lightning.batchnorm import MIXINGS, blend_with_source, routed
from dynbn_lightning.errors import RoutingError

ROWS = ("clean", "fog", "frost", "snow")
N, C = 5, 6
NUMBERS = torch.tensor([2, 0, 3, 1, 2])
WEIGHTS = torch.tensor(
    [[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64
)
SHARED = torch.tensor([0.05, 0.25, 0.3, 0.4], dtype=torch.float64)
ASSIGNMENTS = {"numbers": NUMBERS, "weights": WEIGHTS, "name": "frost", "shared weights": SHARED}
PER_IMAGE = torch.tensor([0.25, 0.5, 0.0, 1.0, 0.125])


@pytest.fixture
def model():
    model = nn.Sequential(nn.BatchNorm2d(C))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.double().eval()


@pytest.fixture
def bank(model):
    return make_bank(model, ROWS, torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def images(count=N):
    return torch.randn(count, C, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 + 0.5


def one_hot(row):
    return [float(number == row) for number in range(len(ROWS))]


def weights_of_each_image(assignment):
    if isinstance(assignment, str):
        return [one_hot(ROWS.index(assignment))] * N
    if not assignment.is_floating_point():
        return [one_hot(row) for row in assignment.tolist()]
    return [assignment.tolist()] * N if assignment.dim() == 1 else assignment.tolist()


def expected_output(model, bank, assignment, shares, mixing):
    """By Schneider et al.: s * source + (1 - s) * target for "average"; the moments of that mixture for "moments"."""
    layer, means, variances = model[0], float64(bank.mean), float64(bank.var)
    rows = []
    for weights, share in zip(weights_of_each_image(assignment), shares, strict=True):
        target = mix_by_total_variance(weights, means, variances, average=mixing == "average")
        mean = share * means[0] + (1 - share) * target[0]
        var = share * variances[0] + (1 - share) * target[1]
        if mixing == "moments":
            var = var + share * (means[0] - mean) ** 2 + (1 - share) * (target[0] - mean) ** 2
        rows.append((mean, var))
    affine = float64(layer.weight), float64(layer.bias)
    return normalize_image_by_image(
        float64(images()), [mean for mean, _ in rows], [var for _, var in rows], *affine, layer.eps
    )


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("share", [0.25, 0.9, 1 / 3])
@pytest.mark.parametrize("kind", ASSIGNMENTS)
def test_one_share_blends_every_assignment_as_by_hand(model, bank, kind, share, mixing):
    with routed(model, bank, mixing) as routing:
        routing.set(ASSIGNMENTS[kind], source_weight=share)
        out = model(images())
    expected = expected_output(model, bank, ASSIGNMENTS[kind], [share] * N, mixing)
    np.testing.assert_allclose(float64(out), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("kind", ["numbers", "weights"])
def test_shares_of_each_image_blend_each_as_by_hand(model, bank, kind, mixing):
    with routed(model, bank, mixing) as routing:
        routing.set(ASSIGNMENTS[kind], source_weight=PER_IMAGE)
        out = model(images())
    expected = expected_output(model, bank, ASSIGNMENTS[kind], PER_IMAGE.tolist(), mixing)
    np.testing.assert_allclose(float64(out), expected, rtol=1e-12, atol=1e-12)


def test_the_two_mixings_differ(model, bank):
    by_hand = [expected_output(model, bank, NUMBERS, [0.5] * N, mixing) for mixing in MIXINGS]
    assert np.abs(by_hand[0] - by_hand[1]).max() > 0.05


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("kind", ASSIGNMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_share_of_none_or_all_is_exact(model, bank, kind, mixing, dtype):
    model, x = model.to(dtype), images().to(dtype)
    own = model(x)
    with routed(model, bank, mixing) as routing:
        routing.set(ASSIGNMENTS[kind])
        plain = model(x)
        for nothing in (0, 0.0, torch.tensor(0.0)):
            routing.set(ASSIGNMENTS[kind], source_weight=nothing)
            assert torch.equal(model(x), plain)
        for everything in (1, 1.0, torch.tensor(1.0)):
            routing.set(ASSIGNMENTS[kind], source_weight=everything)
            assert torch.equal(model(x), own)
        if kind in ("numbers", "weights"):
            some = torch.tensor([1, 0, 1, 0, 0])
            routing.set(ASSIGNMENTS[kind], source_weight=some)
            assert torch.equal(model(x), torch.where(some.bool().view(-1, 1, 1, 1), own, plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_weights_are_blended_in_their_shape_and_dtype(dtype):
    weights = WEIGHTS.to(dtype)
    before = weights.clone()
    blended = blend_with_source(weights, PER_IMAGE)
    assert torch.equal(weights, before)
    assert (blended.shape, blended.dtype) == (weights.shape, dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    for image, share in enumerate(PER_IMAGE.tolist()):
        expected = [share * (row == 0) + (1 - share) * weight for row, weight in enumerate(WEIGHTS[image].tolist())]
        np.testing.assert_allclose(float64(blended[image]), expected, rtol=0, atol=tolerance)
    assert torch.equal(blend_with_source(weights, 0), weights)
    assert blend_with_source(weights, 1).tolist() == [one_hot(0)] * N
    shared = blend_with_source(SHARED.to(dtype), 0.25)
    np.testing.assert_allclose(float64(shared), [0.2875, 0.1875, 0.225, 0.3], rtol=0, atol=tolerance)


# Weights that all images share


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("source_weight", [None, 0.25])
def test_shared_weights_are_those_weights_for_every_image_of_batches_of_any_size(model, bank, mixing, source_weight):
    with routed(model, bank, mixing) as routing:
        for count in (1, 3, N):
            routing.set(SHARED.repeat(count, 1), source_weight=source_weight)
            repeated = model(images(count))
            routing.set(SHARED, source_weight=source_weight)
            for size in (N, count):  # without another set
                shared = model(images(size))[:count]
            # One kernel for a row shared by the batch, another for a row per image: two ways to round.
            torch.testing.assert_close(shared, repeated, rtol=1e-14, atol=1e-14)


def test_shared_weights_make_one_row_and_one_ordinary_batch_norm(model, bank, monkeypatch):
    shapes = []
    with routed(model, bank) as routing:
        normalize = model[0].normalize

        def note_shapes(x, mean, var, affine):
            shapes.append((mean.shape, var.shape))
            return normalize(x, mean, var, affine)

        monkeypatch.setattr(model[0], "normalize", note_shapes)
        routing.set(SHARED, source_weight=0.5)
        model(images())
        routing.set(SHARED.repeat(N, 1), source_weight=0.5)
        model(images())
    assert shapes == [((C,), (C,)), ((N, C), (N, C))]


# Refused


@pytest.mark.parametrize(
    ("assignment", "source_weight", "message"),
    [
        (NUMBERS, -0.1, r"source_weight from -0.1 to -0.1: expected shares in \[0, 1\]"),
        (WEIGHTS, 1.5, r"source_weight from 1.5 to 1.5: expected"),
        ("frost", float("nan"), "source_weight from nan"),
        (SHARED, float("inf"), "source_weight from inf"),
        (NUMBERS, PER_IMAGE - 0.2, r"source_weight from -0.2 to 0.8"),
        (WEIGHTS, PER_IMAGE.masked_fill(PER_IMAGE == 1, float("nan")), "source_weight from nan"),
        (NUMBERS, torch.full((N - 1,), 0.5), r"source_weight of shape \(4,\) for 5 images"),
        (WEIGHTS, torch.full((N, 1), 0.5), r"source_weight of shape \(5, 1\) for 5 images"),
        (WEIGHTS, torch.full((N, len(ROWS)), 0.5), r"source_weight of shape \(5, 4\)"),
        (WEIGHTS, torch.zeros(0), r"source_weight of shape \(0,\)"),
        ("frost", PER_IMAGE, r"source_weight of shape \(5,\)"),
        (SHARED, PER_IMAGE, r"source_weight of shape \(5,\)"),
        (WEIGHTS * 2, 0.5, "sum to 1"),
        (torch.tensor([0, len(ROWS)]), 0.5, "row numbers from 0 to 4"),
        ("frots", 0.5, "did you mean 'frost'"),
        (torch.tensor([0.5, 0.5]), 0.5, r"or \(4,\) for all images; got \(2,\)"),
        (torch.tensor([0.5, 0.5, 0.5, -0.5]), None, "sums from"),
    ],
)
def test_a_refused_blend_leaves_the_earlier_assignment(model, bank, assignment, source_weight, message):
    with routed(model, bank) as routing:
        routing.set(WEIGHTS, source_weight=0.5)
        before = model(images())
        with pytest.raises(RoutingError, match=message):
            routing.set(assignment, source_weight=source_weight)
        assert torch.equal(model(images()), before)
        with pytest.raises(RoutingError, match=f"assigned to {N} images"):
            model(images(N - 1))
