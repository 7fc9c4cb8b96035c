import itertools

import numpy as np
import pytest
import torch

from dynbn_lightning.detection.histograms import DETAIL_EDGES, LEVEL_EDGES, MASS_FLOOR, log_histogram


@pytest.mark.parametrize("edges", [LEVEL_EDGES, DETAIL_EDGES], ids=["levels", "detail"])
def test_equals_numpy(edges):
    quarters = torch.randint(0, 4 * 256, (2, 3, 20, 30), generator=torch.Generator().manual_seed(0))
    values = quarters.clamp(max=4 * 255) / 4  # many of them on an edge
    result = log_histogram(values, edges)
    assert result.shape == (2, 3, len(edges) + 1)
    for image in range(2):
        for channel in range(3):
            counts, _ = np.histogram(values[image, channel].double().numpy(), bins=[-np.inf, *edges, np.inf])
            np.testing.assert_allclose(result[image, channel], np.log(counts / 600 + MASS_FLOOR), rtol=1e-5)


def test_clipped_levels_have_bins_of_their_own():
    levels = torch.tensor([0.0, 1.0, 15.0, 16.0, 239.0, 240.0, 254.0, 255.0])
    bins = [int(log_histogram(level.view(1, 1, 1, 1), LEVEL_EDGES).argmax()) for level in levels]
    assert bins == [0, 1, 1, 2, 15, 16, 16, 17]
    assert len(LEVEL_EDGES) + 1 == 18


def test_detail_edges_rise_from_almost_none_in_equal_ratios():
    assert 0 < DETAIL_EDGES[0] < 0.25  # below the smallest step of detail
    ratios = [(upper + 0.25) / (lower + 0.25) for lower, upper in itertools.pairwise(DETAIL_EDGES)]
    assert ratios == pytest.approx([2**0.625] * 14)


def test_order_of_pixels_does_not_matter():
    values = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(1)) * 255
    shuffled = values.flatten()[torch.randperm(1600)].view_as(values)
    assert torch.equal(log_histogram(values, LEVEL_EDGES), log_histogram(shuffled, LEVEL_EDGES))
