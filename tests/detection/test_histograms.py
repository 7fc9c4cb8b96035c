import itertools

import numpy as np
import pytest
import torch

from dynbn_lightning.detection.histograms import (
    DETAIL_BINS,
    DETAIL_EDGES,
    LEVEL_BINS,
    LEVEL_EDGES,
    MASS_FLOOR,
    Bins,
    log_histogram,
)

CASES = [(LEVEL_EDGES, LEVEL_BINS, 255), (DETAIL_EDGES, DETAIL_BINS, 510)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("edges", "bins", "largest"), CASES, ids=["levels", "detail"])
def test_equals_numpy(edges, bins, largest, dtype):
    multiples = torch.randint(
        0, int(largest / bins.step) + 1, (2, 3, 20, 30), generator=torch.Generator().manual_seed(0)
    )
    values = (multiples * bins.step).to(dtype)  # many of them on an edge
    result = log_histogram(values, bins)
    assert result.shape == (2, 3, len(edges) + 1)
    for image in range(2):
        for channel in range(3):
            counts, _ = np.histogram(values[image, channel].double().numpy(), bins=[-np.inf, *edges, np.inf])
            np.testing.assert_allclose(result[image, channel], np.log(counts / 600 + MASS_FLOOR), rtol=1e-5)


@pytest.mark.parametrize(("edges", "bins", "largest"), CASES, ids=["levels", "detail"])
def test_every_possible_value_is_in_the_bin_that_searching_the_edges_finds(edges, bins, largest):
    values = torch.arange(0, largest + bins.step, bins.step)
    found = [int(log_histogram(value.view(1, 1, 1, 1), bins).argmax()) for value in values]
    expected = torch.bucketize(values, torch.tensor(edges, dtype=torch.float32), right=True)
    assert found == expected.tolist()


def test_clipped_levels_have_bins_of_their_own():
    levels = torch.tensor([0.0, 1.0, 15.0, 16.0, 239.0, 240.0, 254.0, 255.0])
    bins = [int(log_histogram(level.view(1, 1, 1, 1), LEVEL_BINS).argmax()) for level in levels]
    assert bins == [0, 1, 1, 2, 15, 16, 16, 17]
    assert LEVEL_BINS.size == len(LEVEL_EDGES) + 1 == 18


def test_detail_edges_rise_from_almost_none_in_equal_ratios():
    assert 0 < DETAIL_EDGES[0] < 0.25  # below the smallest step of detail
    ratios = [(upper + 0.25) / (lower + 0.25) for lower, upper in itertools.pairwise(DETAIL_EDGES)]
    assert ratios == pytest.approx([2**0.625] * 14)


def test_order_of_pixels_does_not_matter():
    values = torch.randint(0, 256, (1, 1, 40, 40), generator=torch.Generator().manual_seed(1)).float()
    shuffled = values.flatten()[torch.randperm(1600)].view_as(values)
    assert torch.equal(log_histogram(values, LEVEL_BINS), log_histogram(shuffled, LEVEL_BINS))


def test_nan_ends_in_some_bin():
    values = torch.tensor([torch.nan, 300.0, 1.0]).view(1, 1, 1, 3)
    shares = log_histogram(values, Bins.between((1, 255))).exp() - MASS_FLOOR
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert shares[0, 0, 2] >= 1 / 3 - 1e-5
