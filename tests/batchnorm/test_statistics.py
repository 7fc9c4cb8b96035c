"""Statistics of rows and of images: mixing and blending against plain float64 loops."""

import numpy as np
import pytest
import torch
from batchnorm_reference import float64, mix_by_total_variance

from dynbn_lightning.batchnorm import MIXINGS, Statistics
from dynbn_lightning.batchnorm.mixing import mix_values
from dynbn_lightning.batchnorm.statistics import blend_moments

K, WIDTHS, N = 4, (3, 1, 5), 6
C, LAYERS = sum(WIDTHS), len(WIDTHS)
LAYER_OF_CHANNEL = [layer for layer, width in enumerate(WIDTHS) for _ in range(width)]


def rows_of(dtype=torch.float32, center=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    mean, weight, bias = (torch.randn(K, C, generator=generator, dtype=torch.float64) * scale for _ in range(3))
    var = (torch.rand(K, C, generator=generator, dtype=torch.float64) + 0.5) * scale**2
    share = torch.rand(K, LAYERS, generator=generator, dtype=torch.float64)
    return Statistics(*(table.to(dtype) for table in (mean + center, var, weight, bias, share)))


def softmaxed(dtype=torch.float32):
    return (torch.randn(N, K, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2).softmax(1)


def shares_of_rows(dtype=torch.float64):
    return torch.rand(K, LAYERS, generator=torch.Generator().manual_seed(2), dtype=dtype)


def wanting_gradients(statistics):
    return statistics.map(lambda table: table.clone().requires_grad_())


# Mixing


def averages(weights, table):
    return [
        [sum(w * row[c] for w, row in zip(each, table, strict=True)) for c in range(len(table[0]))] for each in weights
    ]


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mixtures_equal_a_float64_loop(dtype, gradients, mixing):
    rows, weights = rows_of(dtype), softmaxed(dtype)
    mixed = (wanting_gradients(rows) if gradients else rows).mixed(weights, mixing)
    assert mixed.mean.requires_grad == gradients
    assert all(table.dtype == dtype for table in mixed)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    mean, var, *others = (float64(table) for table in rows)
    for image, each in enumerate(float64(weights)):
        expected = mix_by_total_variance(each, mean, var, average=mixing == "average")
        np.testing.assert_allclose(float64(mixed.mean[image]), expected[0], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(float64(mixed.var[image]), expected[1], rtol=tolerance)
    for table, values in zip(mixed[2:], others, strict=True):
        np.testing.assert_allclose(float64(table), averages(float64(weights), values), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(("center", "scale"), [(0, 1), (30, 1), (-1000, 0.1), (1e4, 1)])
def test_gradients_change_no_value_even_where_means_are_large_against_deviations(center, scale, mixing):
    rows, weights = rows_of(center=center, scale=scale), softmaxed()
    assert (weights.double().sum(1) != 1).any()  # as a softmax in float32 leaves them
    exact, mixed = rows.mixed(weights, mixing), wanting_gradients(rows).mixed(weights, mixing)
    for name, value, expected in zip(Statistics._fields, mixed, exact, strict=True):
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-6 * scale, msg=lambda m, n=name: n + m)
    torch.testing.assert_close(mixed.var.detach(), exact.var, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gradients_of_mixtures_are_finite_differences(mixing):
    logits = torch.randn(2, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    def mixed(logits, *tables):
        return tuple(Statistics(*tables).mixed(logits.softmax(1), mixing))

    assert torch.autograd.gradcheck(mixed, (logits, *wanting_gradients(rows_of(torch.float64))))


def test_only_what_wants_gradients_gets_them_and_absent_tables_stay_absent():
    weights = softmaxed()
    rows = Statistics(*rows_of()[:2])
    mixed = rows._replace(mean=rows.mean.clone().requires_grad_()).mixed(weights)
    assert mixed[2:] == (None, None, None)
    assert mixed.mean.requires_grad
    assert not rows.mixed(weights).mean.requires_grad
    with torch.no_grad():
        mixed = wanting_gradients(rows_of()).mixed(weights)
    for table, expected in zip(mixed, rows_of().mixed(weights), strict=True):
        assert torch.equal(table, expected)  # bit for bit: no gradients, no other way of mixing


@pytest.mark.parametrize("mixing", MIXINGS)
def test_one_hot_weights_copy_rows_exactly_and_an_image_keeps_its_bits(mixing):
    rows, weights = rows_of(center=1.2345678), softmaxed()
    for table, row in zip(rows.mixed(torch.eye(K)[[2, 0, 2]], mixing), rows, strict=True):
        assert torch.equal(table, row[[2, 0, 2]])
    mixed = rows.mixed(weights, mixing)
    for image in range(N):
        for table, alone in zip(mixed, rows.mixed(weights[image : image + 1], mixing), strict=True):
            assert torch.equal(table[image], alone[0])


def test_values_are_averaged_in_their_own_dtype_whatever_autocast_says():
    values, weights = rows_of().image_share, softmaxed(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mix_values(weights, values)
    assert mixed.dtype == torch.float32
    np.testing.assert_allclose(float64(mixed), averages(float64(weights), float64(values)), rtol=1e-6)


# Blending rows with row 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_blended_rows_have_the_moments_of_both(dtype):
    rows, shares = rows_of(dtype), shares_of_rows(dtype)
    blended = rows.blended_with_source(shares, WIDTHS)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    mean, var = float64(rows.mean), float64(rows.var)
    for row in range(K):
        for channel in range(C):
            share, pair, column = float(shares[row, LAYER_OF_CHANNEL[channel]]), [0, row], slice(channel, channel + 1)
            expected = mix_by_total_variance([share, 1 - share], mean[pair, column], var[pair, column])
            assert float(blended.mean[row, channel]) == pytest.approx(expected[0][0], rel=tolerance, abs=tolerance)
            assert float(blended.var[row, channel]) == pytest.approx(expected[1][0], rel=tolerance)
    for table, before in zip(blended[2:], rows[2:], strict=True):
        assert table is before


def test_a_share_of_none_or_all_is_exact_layer_by_layer():
    rows = rows_of(center=1.2345678)
    shares = torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.float32)
    blended = rows.blended_with_source(shares, WIDTHS)
    for table, before in zip(blended[:2], rows[:2], strict=True):
        for row in range(K):
            for channel in range(C):
                source = shares[row, LAYER_OF_CHANNEL[channel]] == 1
                assert table[row, channel] == before[0 if source else row, channel]


def test_blending_then_mixing_is_mixing_by_the_composed_weights():
    rows, shares, weights = rows_of(torch.float64), shares_of_rows(), softmaxed(torch.float64)
    mixed = rows.blended_with_source(shares, WIDTHS).mixed(weights)
    start = 0
    for layer, width in enumerate(WIDTHS):
        channels, start = slice(start, start + width), start + width
        composed = weights * (1 - shares[:, layer])
        composed[:, 0] += (weights * shares[:, layer]).sum(1)
        for image, each in enumerate(composed.tolist()):
            mean, var = mix_by_total_variance(each, float64(rows.mean[:, channels]), float64(rows.var[:, channels]))
            np.testing.assert_allclose(float64(mixed.mean[image, channels]), mean, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(float64(mixed.var[image, channels]), var, rtol=1e-12)


# Blending with images' own moments


def test_blending_with_an_image_gives_the_moments_of_the_weighted_union_of_samples():
    rng = np.random.default_rng(0)
    row, images = rng.normal(3, 2, 600), rng.normal((-1, 4), (0.5, 3), (600, 2)).T
    share = torch.tensor([[0.25], [0.6]], dtype=torch.float64)
    expected = [
        np.concatenate([np.repeat(row, 3), images[0]]),  # 1 in 4 is of the image
        np.concatenate([np.repeat(row, 2), np.repeat(images[1], 3)]),
    ]
    moments = [torch.tensor(values)[:, None] for values in (images.mean(1), images.var(1))]
    shared = [torch.tensor([value]) for value in (row.mean(), row.var())]
    for of_row in (shared, [value.repeat(2, 1) for value in shared]):
        mean, var = blend_moments(*of_row, *moments, share)
        np.testing.assert_allclose(mean[:, 0], [union.mean() for union in expected], rtol=1e-12)
        np.testing.assert_allclose(var[:, 0], [union.var() for union in expected], rtol=1e-12)


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_an_image_of_none_or_all_is_exact(share):
    rows, images = rows_of(), rows_of(center=0.5)
    mean, var = blend_moments(rows.mean, rows.var, images.mean, images.var, torch.full((K, 1), float(share)))
    assert torch.equal(var, (images if share else rows).var)
    if not share:
        assert torch.equal(mean, rows.mean)
    torch.testing.assert_close(mean, (images if share else rows).mean, rtol=1e-6, atol=1e-6)


# Layers and tables


def test_a_layer_has_its_channels_and_its_column():
    rows, start = rows_of(), 0
    for layer, width in enumerate(WIDTHS):
        channels, start = slice(start, start + width), start + width
        for statistics in (rows, rows.map(lambda table: table[2])):
            of_layer = statistics.of_layer(channels, layer)
            for name in ("mean", "var", "weight", "bias"):
                assert torch.equal(getattr(of_layer, name), getattr(statistics, name)[..., channels]), name
            assert of_layer.image_share.tolist() == statistics.image_share[..., [layer]].tolist()
    assert Statistics(*rows[:2]).of_layer(slice(0, 3), 0)[2:] == (None, None, None)


def test_map_reaches_every_table_and_leaves_the_absent_ones():
    rows = rows_of()
    for table, before in zip(rows.map(lambda table: table + 1), rows, strict=True):
        assert torch.equal(table, before + 1)
    assert Statistics(*rows[:2]).map(torch.clone)[2:] == (None, None, None)
    assert Statistics(*rows[:2], image_share=rows.image_share).map(torch.clone)[2:4] == (None, None)
