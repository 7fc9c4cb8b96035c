"""Quantiles and the maps between distributions, against NumPy in float64."""

import math

import numpy as np
import pytest
import torch
from batchnorm_reference import float64
from torch import nn

from dynbn_lightning.batchnorm.quantiles import map_values, probabilities, quantiles_of, sampled, shapes_of

N, C, L, Q = 3, 4, 50, 9
BINS = [None, 64]
BY_BINS = pytest.mark.parametrize("bins", BINS, ids=["exact", "bins"])


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def knots(*shape, seed=1, dtype=torch.float64):
    return draws(*shape, seed=seed, dtype=dtype).sort(-1).values


def mapped_by_numpy(x, start, end):
    """One channel's values by numpy.interp, beyond the knots with the slope between the first and the last one."""
    if start[-1] == start[0]:
        return np.full_like(x, sum(end) / len(end))
    out = np.interp(x, start, end)
    slope = (end[-1] - end[0]) / (start[-1] - start[0])
    out = np.where(x < start[0], end[0] + slope * (x - start[0]), out)
    return np.where(x > start[-1], end[-1] + slope * (x - start[-1]), out)


def every_channel_by_numpy(x, start, end):
    x, start, end = float64(x), float64(start), float64(end)
    out = np.empty_like(x)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            of = min(n, len(start) - 1)
            out[n, c] = mapped_by_numpy(x[n, c], start[of, c], end[of, c])
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [2, 3, 9, 64])
@pytest.mark.parametrize("length", [1, 2, 7, 50])
def test_quantiles_are_numpys_linear_ones(length, count, dtype):
    values = draws(2, 3, length, dtype=dtype)
    found = quantiles_of(values, count)
    at = [(i + 0.5) / count for i in range(count)]
    wanted = np.moveaxis(np.quantile(float64(values), at, axis=-1, method="linear"), 0, -1)
    assert probabilities(count).tolist() == at
    assert found.shape == (2, 3, count)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    np.testing.assert_allclose(float64(found), wanted, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6)


def test_a_sample_is_whole_where_samples_is_none_or_large():
    x = draws(N, C, L)
    for samples in (None, L, 10_000):
        assert torch.equal(sampled(x, samples, per_image=True), x)
    whole = torch.stack([torch.cat([image[c] for image in x]) for c in range(C)])[None]
    for samples in (None, N * L, 10_000):
        assert torch.equal(sampled(x, samples, per_image=False).sort(-1).values, whole.sort(-1).values)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize(("images", "samples"), [(3, 12), (40, 12), (3, 2), (1, 49)])
def test_a_sample_has_values_of_its_own_channel_the_same_ones_every_time(images, samples, per_image):
    x = torch.arange(images * C * L, dtype=torch.float64).view(images, C, L)
    found = sampled(x, samples, per_image=per_image)
    assert torch.equal(found, sampled(x.clone(), samples, per_image=per_image))
    assert found.shape[:2] == ((images if per_image else 1), C)
    if per_image:
        assert found.shape[2] == samples
    else:
        assert samples / 2 <= found.shape[2] <= 2 * samples
        # A channel at a time, but all channels at the same places.
        assert torch.equal(found[0] - found[0, :1], torch.arange(C).view(C, 1).expand(C, found.shape[2]) * float(L))
    for n, image in enumerate(found):
        for c, channel in enumerate(image):
            own = x[n, c] if per_image else x[:, c]
            assert set(channel.tolist()) <= set(own.flatten().tolist())


def test_an_images_sample_does_not_depend_on_the_others():
    x = draws(N, C, L)
    for n in range(N):
        assert torch.equal(sampled(x[n : n + 1], 12, per_image=True)[0], sampled(x, 12, per_image=True)[n])


@pytest.mark.parametrize("per_image", [True, False])
def test_a_samples_quantiles_are_those_of_the_whole_within_sampling_error(per_image):
    x, samples = torch.rand(8, 30, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1000
    found = quantiles_of(sampled(x, samples, per_image=per_image), Q)
    whole = quantiles_of(sampled(x, None, per_image=per_image), Q)
    # Of uniform values the standard error at p is sqrt(p (1 - p) / 1,000) <= 0.016; 6 of them for all channels.
    assert (found - whole).abs().max() < 6 * 0.016
    assert not torch.equal(found, whole)


def test_a_sample_that_was_first_drawn_in_inference_mode_takes_gradients_later():
    x = draws(N, C, L + 1).requires_grad_()
    for per_image in (True, False):
        with torch.inference_mode():
            sampled(x, 12, per_image=per_image)
        sampled(x, 12, per_image=per_image).sum().backward()
        assert x.grad.abs().sum() > 0
        x.grad = None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tables", [1, N])
def test_values_move_as_numpys_interpolation_and_beyond_the_knots_by_the_overall_slope(tables, dtype):
    x, start, end = draws(N, C, L, dtype=dtype) * 3, knots(tables, C, Q), knots(tables, C, Q, seed=2) * 2 + 5
    out = map_values(x, start, end)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}[dtype]
    assert out.dtype == dtype
    assert out.shape == x.shape
    wanted = every_channel_by_numpy(x, start, end)
    assert (x.double() < start[..., :1]).any()
    assert (x.double() > start[..., -1:]).any()
    np.testing.assert_allclose(float64(out), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bins", [16, 64, 256])
@pytest.mark.parametrize("tables", [1, N])
def test_with_bins_values_are_off_by_less_than_the_rise_of_their_bin(tables, bins, dtype):
    # Both maps ascend and agree at the ends of bins, so within a bin they differ by what the map rises there at most.
    x, start, end = draws(N, C, L, dtype=dtype), knots(tables, C, Q), knots(tables, C, Q, seed=2) * 2 + 5
    out, wanted = float64(map_values(x, start, end, bins)), every_channel_by_numpy(x, start, end)
    low, width = float64(start)[..., :1], float64(start[..., -1:] - start[..., :1]) / bins
    place = np.floor((float64(x) - low) / width)
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    inside = (place >= 0) & (place < bins)
    left, right = (low + width * (place + step) for step in (0, 1))
    rise = every_channel_by_numpy(torch.from_numpy(right), start, end)
    rise = rise - every_channel_by_numpy(torch.from_numpy(left), start, end)
    assert (np.abs(out - wanted) <= np.where(inside, rise, 0) + rounding).all()
    assert inside.any()
    assert not inside.all()


@BY_BINS
def test_maps_ascend_also_across_ties(bins):
    x = torch.linspace(-4, 4, 2001, dtype=torch.float64).expand(1, C, -1)
    start, end = knots(1, C, Q), knots(1, C, Q, seed=2)
    start[0, 1, 3:6] = start[0, 1, 3]
    end[0, 2, 2:7] = end[0, 2, 2]
    start[0, 3, :4], end[0, 3, 5:] = start[0, 3, 0], end[0, 3, 5]
    assert (map_values(x, start, end, bins).diff(dim=-1) >= -1e-12).all()


@BY_BINS
def test_distributions_onto_themselves_are_left_where_they_are(bins):
    x, start = draws(N, C, L), knots(N, C, Q)
    torch.testing.assert_close(map_values(x, start, start, bins), x, rtol=1e-10, atol=1e-10)


@BY_BINS
def test_a_tied_value_lands_between_where_its_knots_go(bins):
    start = torch.tensor([[[0.0, 0, 0, 0, 1, 2, 3, 4]]])  # half the values are 0, as after a ReLU
    end = torch.tensor([[[0.0, 0.1, 0.2, 0.3, 1.5, 2, 3, 4]]])
    out = map_values(torch.tensor([[[0.0, 1, 4]]]), start, end, bins)[0, 0]
    assert 0 <= out[0] <= 0.3 + 1e-6
    assert out[2] == pytest.approx(4, abs=1e-5)
    if bins is None:
        assert out[1] == pytest.approx(1.5, abs=1e-6)


@BY_BINS
@pytest.mark.parametrize("value", [0.0, -7.25, 3e4])
def test_a_constant_channel_goes_to_the_mean_of_the_wanted_one(value, bins):
    x, start, end = torch.full((2, 1, 5), value), torch.full((1, 1, Q), value), knots(1, 1, Q).float()
    x[1, 0, 0] = value + 1  # and what isn't the constant, as well
    wanted = torch.full_like(x, end.double().mean().item())
    torch.testing.assert_close(map_values(x, start, end, bins), wanted, rtol=1e-5, atol=1e-5)


@BY_BINS
@pytest.mark.parametrize("scale", [1e-38, 1e-42], ids=["tiny", "denormal"])
def test_a_channel_that_is_almost_constant_lands_within_the_wanted_one(scale, bins):
    start, end = torch.linspace(0, scale, Q).view(1, 1, Q), knots(1, 1, Q).float()
    out = map_values(start[:, :, 1:-1].clone(), start, end, bins)
    assert out.isfinite().all()
    assert end.min() - 1e-5 <= out.min() <= out.max() <= end.max() + 1e-5


@BY_BINS
def test_a_channel_with_denormal_steps_between_its_knots_stays_finite(bins):
    start = torch.tensor([[[0.0, 1e-42, 2e-42, 1.0]]])
    end = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
    out = map_values(torch.tensor([[[0.0, 1e-42, 0.5, 1.0]]]), start, end, bins)
    assert out.isfinite().all()
    assert 0 <= out.min() <= out.max() <= 3 + 1e-5


@BY_BINS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays_nan_and_infinity_leads_no_neighbour_astray(dtype, bins):
    x, start, end = draws(N, C, L, dtype=dtype), knots(1, C, Q), knots(1, C, Q, seed=2)
    clean = map_values(x, start, end, bins)
    spoiled = x.clone()
    spoiled[0, 0, 3], spoiled[1, 2, 0], spoiled[1, 2, 1] = math.nan, math.inf, -math.inf
    out = map_values(spoiled, start, end, bins)
    assert out[0, 0, 3].isnan()
    assert out[1, 2, 0] == math.inf
    assert out[1, 2, 1] == -math.inf
    others = spoiled.isfinite()
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("per_image", [True, False])
def test_quantiles_of_nan_and_infinity_spoil_their_own_channel_alone(per_image, spoil):
    x = draws(N, C, L, dtype=torch.float32)
    end = quantiles_of(sampled(x, None, per_image=False) + 1, Q).expand(N if per_image else 1, -1, -1)
    for bins in BINS:
        outs = []
        for values in (x, x.index_fill(1, torch.tensor(2), spoil)):
            found = quantiles_of(sampled(values, None, per_image=per_image), Q)
            outs.append(map_values(values, found, end, bins))
        kept = [0, 1, 3]
        assert torch.equal(outs[0][:, kept], outs[1][:, kept])


@BY_BINS
@pytest.mark.parametrize(("scale", "dtype"), [(1e30, torch.float32), (1e-30, torch.float32), (100, torch.float16)])
def test_huge_and_tiny_values_move_as_others(scale, dtype, bins):
    x, start, end = draws(N, C, L), knots(1, C, Q), knots(1, C, Q, seed=2)
    scaled = map_values((x * scale).to(dtype), start * scale, end, bins).double()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(scaled, map_values(x, start, end, bins), rtol=tolerance, atol=tolerance)


@BY_BINS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_matching_before_a_layers_scale_and_shift_is_matching_after_them(dtype, bins):
    layer = nn.BatchNorm1d(C).eval().to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, -0.5, 1e-3, -3.0]))
        layer.bias.copy_(torch.tensor([0.0, 4.0, -1.0, 2.0]))
        layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
        layer.running_var.copy_(torch.tensor([0.2, 3.0, 1.0, 9.0]))
        x, train = draws(N, C, L, dtype=dtype), draws(7, C, L, seed=3, dtype=dtype).exp()

        def matched(values, reference):
            found, wanted = (quantiles_of(sampled(part, None, per_image=False), Q) for part in (values, reference))
            return map_values(values, found, wanted, bins)

        before, after = layer(matched(x, train)), matched(layer(x), layer(train))
    assert not torch.allclose(before, layer(x), atol=0.1)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(before, after, rtol=tolerance, atol=tolerance)


@BY_BINS
def test_maps_commute_with_shifts_and_scalings_of_either_side(bins):
    x, start, end = draws(N, C, L), knots(N, C, Q), knots(N, C, Q, seed=2)
    plain = map_values(x, start, end, bins)
    torch.testing.assert_close(map_values(x * 3 - 5, start * 3 - 5, end, bins), plain)
    torch.testing.assert_close(map_values(x, start, end * 3 - 5, bins), plain * 3 - 5)
    reflected = map_values(-x, -start.flip(-1), -end.flip(-1), bins)
    torch.testing.assert_close(reflected, -plain)


@BY_BINS
@pytest.mark.parametrize("images", [1, 40])
def test_values_in_memory_of_any_layout_and_of_many_images_move_alike(images, bins):
    x, start, end = draws(images, 64, 64), knots(images, 64, Q), knots(images, 64, Q, seed=2)
    plain = map_values(x, start, end, bins)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(map_values(strided, start, end, bins), plain)
    one = slice(images - 1, images)
    assert torch.equal(map_values(x[one], start[one], end[one], bins), plain[one])


def test_shapes_have_mean_0_and_deviation_1_and_a_constants_is_0():
    quantiles = knots(2, C, Q) * 5 + 3
    quantiles[1, 2] = 0.1
    quantiles = quantiles.float()
    shapes, moved = shapes_of(quantiles), shapes_of(quantiles * 7 - 2)
    for row in range(2):
        for channel in range(C):
            values = float64(quantiles[row, channel])
            wanted = (values - values.mean()) / values.std() if (row, channel) != (1, 2) else np.zeros(Q)
            np.testing.assert_allclose(float64(shapes[row, channel]), wanted, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(float64(moved[row, channel]), wanted, rtol=1e-4, atol=1e-5)
