"""Paired bootstrap intervals: against scipy, a plain loop, and what they promise on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dynbn_lightning.errors import DataError
from dynbn_lightning.metrics import bootstrap, paired_bootstrap


def correctness(*shape: int, chance: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < chance


def width(interval: bootstrap.Interval) -> Tensor:
    return interval.upper - interval.lower


def test_agrees_with_scipy_within_monte_carlo_error() -> None:
    first, second = correctness(300, chance=0.8, seed=0), correctness(300, chance=0.6, seed=1)
    ours = paired_bootstrap(first, second, resamples=20_000, level=0.9)
    theirs = stats.bootstrap(
        (first.double().numpy(), second.double().numpy()),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        random_state=0,
    ).confidence_interval
    difference = float(first.double().mean() - second.double().mean())
    assert ours.cells.difference.tolist() == pytest.approx([difference])
    # One image more or less is 0.0033, and at 20,000 resamples a bound is known to about 0.0008.
    assert float(ours.mean.lower) == pytest.approx(theirs.low, abs=0.004)
    assert float(ours.mean.upper) == pytest.approx(theirs.high, abs=0.004)
    assert ours.mean.lower < difference < ours.mean.upper
    assert ours.cells.lower.tolist() == [float(ours.mean.lower)]


def test_agrees_with_a_plain_loop_over_images_cells_and_runs() -> None:
    generator = torch.Generator().manual_seed(3)
    ease = torch.rand(1, 60, 1, generator=generator)
    first = torch.rand(3, 60, 4, generator=generator) < ease
    second = torch.rand(3, 60, 4, generator=generator) < ease * torch.tensor([1.0, 0.9, 0.5, 0.2])
    rng = np.random.default_rng(0)
    differences = first.double().numpy() - second.double().numpy()
    by_image = differences.mean(axis=0).tolist()
    draws = []
    for _ in range(4000):
        drawn = rng.integers(60, size=60).tolist()
        draws.append([sum(by_image[image][cell] for image in drawn) / 60 for cell in range(4)])
    by_cell = np.array(draws)
    ours = paired_bootstrap(first, second, resamples=4000)
    for interval, loop in ((ours.cells, by_cell), (ours.mean, by_cell.mean(axis=1))):
        expected = np.quantile(loop, [0.025, 0.975], axis=0)
        np.testing.assert_allclose(interval.lower.numpy(), expected[0], atol=0.015)
        np.testing.assert_allclose(interval.upper.numpy(), expected[1], atol=0.015)
    np.testing.assert_allclose(ours.cells.difference.numpy(), differences.mean((0, 1)))
    np.testing.assert_allclose(float(ours.mean.difference), differences.mean())


def test_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    ease = torch.rand(400, 100, 1, generator=generator)  # shared by an image's cells and by both methods
    first = torch.rand(400, 100, 3, generator=generator) < 0.5 + 0.4 * ease
    second = torch.rand(400, 100, 3, generator=generator) < 0.4 + 0.4 * ease
    results = [
        paired_bootstrap(one, other, resamples=400, level=0.9, seed=seed)
        for seed, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    for kind in ("mean", "cells"):
        intervals = [getattr(result, kind) for result in results]
        covered = torch.stack([(one.lower <= 0.1) & (one.upper >= 0.1) for one in intervals]).double().mean()
        assert 0.85 < covered < 0.95, kind


def test_no_difference_is_exactly_zero() -> None:
    same = correctness(3, 50, 2, chance=0.7, seed=0)
    other = same.clone()
    other[:, ::7, 1] = ~other[:, ::7, 1]
    cells = paired_bootstrap(same, other).cells
    for value in (cells.difference, cells.lower, cells.upper):
        assert value[0] == 0
    assert width(cells)[1] > 0


def test_the_same_run_again_tells_nothing_new() -> None:
    first, second = correctness(1, 80, 5, chance=0.8, seed=0), correctness(1, 80, 5, chance=0.6, seed=1)
    one_run = paired_bootstrap(first, second)
    five_runs = paired_bootstrap(first.expand(5, -1, -1), second.expand(5, -1, -1))
    torch.testing.assert_close(five_runs.cells.lower, one_run.cells.lower, rtol=0, atol=1e-12)
    torch.testing.assert_close(five_runs.mean.upper, one_run.mean.upper, rtol=0, atol=1e-12)


def test_images_are_drawn_with_all_their_cells() -> None:
    """Five copies of a cell are as unsure as one; five cells that are independent are surer by the root of five."""
    first, second = correctness(400, 1, chance=0.8, seed=0), correctness(400, 1, chance=0.6, seed=1)
    one_cell = float(width(paired_bootstrap(first, second).mean))
    copies = paired_bootstrap(first.expand(-1, 5), second.expand(-1, 5))
    assert float(width(copies.mean)) == pytest.approx(one_cell, abs=1e-9)
    apart = paired_bootstrap(correctness(400, 5, chance=0.8, seed=0), correctness(400, 5, chance=0.6, seed=1))
    assert float(width(apart.mean)) == pytest.approx(one_cell / 5**0.5, rel=0.15)


def test_pairing_narrows_the_interval_where_methods_fail_on_the_same_images() -> None:
    first = correctness(300, chance=0.6, seed=0)
    second = first & correctness(300, chance=0.95, seed=1)
    shuffled = second[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    assert width(paired_bootstrap(first, second).mean) < width(paired_bootstrap(first, shuffled).mean) / 2


def test_depends_on_the_seed_alone_and_leaves_global_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = correctness(70, 2, chance=0.8, seed=0), correctness(70, 2, chance=0.6, seed=1)
    before = torch.get_rng_state()
    once = paired_bootstrap(first, second, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(paired_bootstrap(first, second, seed=5).cells.lower, once.cells.lower)
    assert not torch.equal(paired_bootstrap(first, second, seed=6, resamples=50).cells.lower, once.cells.lower)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 300)
    in_parts = paired_bootstrap(first, second, seed=5)
    torch.testing.assert_close(in_parts.cells.lower, once.cells.lower, rtol=0, atol=1e-12)


def test_shapes_and_kinds_of_numbers() -> None:
    first, second = correctness(2, 30, 3, chance=0.8, seed=0), correctness(2, 30, 3, chance=0.6, seed=1)
    by_bool = paired_bootstrap(first, second)
    by_float = paired_bootstrap(first.float(), second.to(torch.uint8))
    assert torch.equal(by_bool.cells.upper, by_float.cells.upper)
    assert by_bool.cells.lower.shape == (3,)
    assert by_bool.mean.lower.shape == by_bool.mean.difference.shape == ()
    assert by_bool.cells.lower.dtype == torch.float64
    assert paired_bootstrap(first[0, :, 0], second[0, :, 0]).cells.lower.shape == (1,)
    wide, narrow = (paired_bootstrap(first, second, level=level).mean for level in (0.99, 0.5))
    assert width(wide) > width(narrow)


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (torch.ones(4, 2), torch.ones(4, 3), {}, r"\(4, 2\) and \(4, 3\)"),
        (torch.ones(4), torch.ones(1, 4), {}, "one shape"),
        (torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), {}, r"\(runs, images, cells\)"),
        (torch.tensor(1.0), torch.tensor(1.0), {}, r"got \(\)"),
        (torch.ones(0, 3), torch.ones(0, 3), {}, "two images"),
        (torch.ones(1, 3), torch.ones(1, 3), {}, "two images"),
        (torch.ones(4, 0), torch.ones(4, 0), {}, "a cell"),
        (torch.ones(0, 4, 2), torch.ones(0, 4, 2), {}, "a run"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), {}, "NaN"),
        (torch.ones(4), torch.ones(4), {"level": 0.0}, "level=0.0"),
        (torch.ones(4), torch.ones(4), {"level": 1.0}, "level=1.0"),
        (torch.ones(4), torch.ones(4), {"level": float("nan")}, "level=nan"),
        (torch.ones(4), torch.ones(4), {"resamples": 0}, "resamples=0"),
    ],
)
def test_bad_input_is_refused(first: Tensor, second: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(first, second, **options)  # type: ignore[arg-type]
