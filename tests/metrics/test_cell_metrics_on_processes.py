"""Two processes with different images and cells get the scores of one process, in one all-reduce."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from metric_data import random_stream

from dynbn_lightning.metrics import CellMetrics
from dynbn_lightning.metrics.cell_metrics import sum_over_processes

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier")


def shares(case):
    """The images of each rank: other numbers of images, in cells of which some are seen by one rank only."""
    logits, labels, cells = random_stream(1000)
    cells = torch.where(torch.arange(1000) < 650, cells % 30, 20 + cells % 30)
    if case == "nothing on rank 1":
        return [(logits, labels, cells), None]
    return [(logits[:650], labels[:650], cells[:650]), (logits[650:], labels[650:], cells[650:])]


CASES = ("both", "nothing on rank 1")


def run_rank(rank, folder):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timeout, rank=rank, world_size=2)
    try:
        state = torch.tensor([1, 10]) * (rank + 1)
        (total,) = sum_over_processes(state)
        sums = {"sum": (state.tolist(), total.tolist())}
        return sums | {case: counted(shares(case)[rank]) for case in CASES}
    finally:
        dist.destroy_process_group()


def counted(share):
    """The scores, the collectives that were called, and whether the rank's own counts were left alone."""
    calls, originals = [], {name: getattr(dist, name) for name in COLLECTIVES}

    def counting(name):
        def call(*args, **kwargs):
            calls.append(name)
            return originals[name](*args, **kwargs)

        return call

    metric = CellMetrics()
    if share is not None:
        metric.update(*share)
    own = metric.counts.clone()
    try:
        for name in COLLECTIVES:
            setattr(dist, name, counting(name))
        scores = metric.compute()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return {name: tuple(its) for name, its in scores.items()}, calls, torch.equal(own, metric.counts)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(run_rank, rank, str(folder)) for rank in (0, 1)]]


@pytest.mark.parametrize("case", CASES)
def test_every_process_has_the_scores_of_one(answers, case):
    alone = CellMetrics()
    for share in shares(case):
        if share is not None:
            alone.update(*share)
    expected = {name: tuple(its) for name, its in alone.compute().items()}
    for answer in answers:
        scores, calls, own_counts_kept = answer[case]
        assert scores == expected
        assert list(scores) == list(expected)
        assert calls == ["all_reduce"]
        assert own_counts_kept


def test_the_sum_leaves_the_state_as_it_is(answers):
    assert [answer["sum"] for answer in answers] == [([1, 10], [3, 30]), ([2, 20], [3, 30])]


def test_the_ranks_saw_different_cells():
    first, second = (set(share[2].tolist()) for share in shares("both"))
    assert first - second
    assert second - first
    assert first & second
