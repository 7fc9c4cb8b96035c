import itertools
import math

import numpy as np
import pytest
import torch

from dynbn_lightning.detection import StreamMemory, pooled_posterior
from dynbn_lightning.errors import DetectorError


def make_posteriors(images, rows, seed=0, sharpness=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(images, rows, generator=generator, dtype=torch.float64)).softmax(1).to(dtype)


# A batch


def product_by_hand(posteriors, outliers):
    """The normalised product of the posteriors, each mixed with a uniform one, in plain Python."""
    count = len(posteriors[0])
    products = []
    for row in range(count):
        product = 1.0
        for posterior in posteriors:
            product *= (1 - outliers) * posterior[row] + outliers / count
        products.append(product)
    return [product / sum(products) for product in products]


@pytest.mark.parametrize("images", [1, 2, 7, 20])
@pytest.mark.parametrize("outliers", [0.05, 0.5, 1.0, 1e-12])
def test_the_pooled_posterior_is_the_normalised_product(images, outliers):
    posteriors = make_posteriors(images, 4, seed=images)
    expected = torch.tensor(product_by_hand(posteriors.tolist(), outliers), dtype=torch.float64)
    torch.testing.assert_close(pooled_posterior(posteriors, outliers), expected, rtol=1e-10, atol=1e-13)


def test_the_default_takes_one_image_in_twenty_for_an_outlier():
    posteriors = make_posteriors(6, 3)
    assert torch.equal(pooled_posterior(posteriors), pooled_posterior(posteriors, 0.05))
    assert not torch.allclose(pooled_posterior(posteriors), pooled_posterior(posteriors, 0.1))


def test_images_that_lean_the_same_way_become_sure_together():
    leaning = torch.tensor([[0.4, 0.3, 0.3]]).repeat(40, 1)
    assert pooled_posterior(leaning)[0] > 0.999
    assert pooled_posterior(leaning[:2])[0] < 0.6


def test_one_image_cannot_decide_alone():
    """An image that rules the others' row out, with a probability of exactly 0, is outvoted; a product would obey."""
    posteriors = torch.tensor([[0.1, 0.6, 0.3]]).repeat(9, 1)
    posteriors = torch.cat([posteriors, torch.tensor([[0.0, 0.0, 1.0]])])
    assert posteriors.prod(dim=0).argmax() == 2
    pooled = pooled_posterior(posteriors)
    assert pooled.argmax() == 1
    assert pooled[1] > 0.8
    contradicting = pooled_posterior(torch.eye(3))
    torch.testing.assert_close(contradicting, torch.full((3,), 1 / 3))


def test_the_order_of_the_images_does_not_matter():
    posteriors = make_posteriors(30, 5, sharpness=1.0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pooled_posterior(posteriors[order]), pooled_posterior(posteriors), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_the_pooled_posterior_of_lower_precisions(dtype):
    posteriors = make_posteriors(600, 4, sharpness=0.1, dtype=dtype)  # their product underflows in any precision
    pooled = pooled_posterior(posteriors)
    assert pooled.dtype == dtype
    expected = pooled_posterior(posteriors.double())
    assert expected.max() < 1 - 1e-6
    assert torch.equal(pooled, expected.to(dtype))
    assert expected.sum() == pytest.approx(1)


# A stream


def filtered_by_enumeration(posteriors, changes, outliers):
    """Each image's filtered posterior, from the probability of every sequence of rows that there could have been.

    Before each image the row is drawn anew with probability `changes`, all rows equally likely.
    """
    count = len(posteriors[0])
    filtered = []
    for end in range(1, len(posteriors) + 1):
        totals = [0.0] * count
        for sequence in itertools.product(range(count), repeat=end):
            probability = 1 / count
            for before, after in itertools.pairwise(sequence):
                probability *= (1 - changes if before == after else 0) + changes / count
            for row, posterior in zip(sequence, posteriors, strict=False):
                probability *= (1 - outliers) * posterior[row] + outliers / count
            totals[sequence[-1]] += probability
        filtered.append([total / sum(totals) for total in totals])
    return torch.tensor(filtered, dtype=torch.float64)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize(("changes", "outliers"), [(0.01, 0.05), (0.4, 0.3), (0.1, 1e-9)])
def test_a_stream_is_filtered_as_enumerating_all_row_sequences_says(rows, changes, outliers):
    posteriors = make_posteriors(6, rows, seed=rows)
    filtered = StreamMemory(changes, outliers).update(posteriors)
    expected = filtered_by_enumeration(posteriors.tolist(), changes, outliers)
    torch.testing.assert_close(filtered, expected, rtol=1e-10, atol=1e-13)


def test_the_defaults_are_one_change_in_a_hundred_and_one_outlier_in_twenty():
    posteriors = make_posteriors(9, 3)
    assert torch.equal(StreamMemory().update(posteriors), StreamMemory(0.01, 0.05).update(posteriors))
    assert not torch.allclose(StreamMemory().update(posteriors), StreamMemory(0.02, 0.05).update(posteriors))


def test_a_stream_may_be_cut_into_batches_anywhere():
    posteriors = make_posteriors(6, 3)
    whole = StreamMemory().update(posteriors)
    for cuts in itertools.product([False, True], repeat=5):
        bounds = [0, *(position + 1 for position, cut in enumerate(cuts) if cut), 6]
        memory = StreamMemory()
        parts = [memory.update(posteriors[start:end]) for start, end in itertools.pairwise(bounds)]
        assert torch.equal(torch.cat(parts), whole), cuts


def test_clearing_begins_a_new_stream():
    first, second = make_posteriors(5, 3, seed=0), make_posteriors(5, 3, seed=1)
    memory = StreamMemory()
    memory.update(first)
    assert not torch.allclose(memory.update(second), StreamMemory().update(second))
    memory.clear()
    assert torch.equal(memory.update(second), StreamMemory().update(second))


def test_a_change_is_followed():
    unsure = torch.tensor([[0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]).repeat_interleave(60, dim=0)
    found = StreamMemory().update(unsure)
    assert (found[10:60, 1] > 0.95).all(), "sure of what no single image is sure of"
    assert found[60].argmax() == 1, "one image is no change"
    assert (found[75:].argmax(1) == 2).all()
    assert (found[90:, 2] > 0.95).all()


def test_an_outlier_in_a_stream_is_outvoted():
    posteriors = torch.tensor([[0.2, 0.6, 0.2]]).repeat(30, 1)
    posteriors[20] = torch.tensor([0.0, 0.0, 1.0])
    filtered = StreamMemory().update(posteriors)
    assert (filtered[5:].argmax(1) == 1).all()
    assert filtered[20, 1] < filtered[19, 1]


def test_old_evidence_decays():
    """Under images that say nothing, what is known draws near to nothing by the share `changes` each image."""
    memory = StreamMemory(changes=0.1)
    last = memory.update(make_posteriors(4, 3))[-1]
    empty = memory.update(torch.full((50, 3), 1 / 3, dtype=torch.float64))
    assert (last - 1 / 3).abs().max() > 0.2
    for after, belief in enumerate(empty, start=1):
        torch.testing.assert_close(belief - 1 / 3, 0.9**after * (last - 1 / 3), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_long_stream_in_lower_precisions(dtype):
    posteriors = make_posteriors(3000, 4, sharpness=6.0, dtype=dtype)  # many of exactly 0 in float16
    filtered = StreamMemory().update(posteriors)
    assert filtered.dtype == dtype
    expected = StreamMemory().update(posteriors.double())
    assert torch.equal(filtered, expected.to(dtype))
    np.testing.assert_allclose(expected.sum(1).numpy(), 1)
    assert expected.isfinite().all()


# Errors


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 4), ()])
def test_what_is_no_table_of_posteriors_is_refused(shape):
    memory = StreamMemory()
    before = memory.update(make_posteriors(3, 3))
    for pool in (pooled_posterior, memory.update):
        with pytest.raises(DetectorError, match=r"posteriors \(N, rows\), got \("):
            pool(torch.ones(shape))
    again = StreamMemory()
    again.update(make_posteriors(3, 3))
    later = make_posteriors(2, 3, seed=5)
    assert torch.equal(memory.update(later), again.update(later)), "what was refused left no trace"
    assert math.isclose(before.sum().item(), 3)
