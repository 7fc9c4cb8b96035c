"""Two processes, each with its share of every row's images, get the bank of one process, or both an error.

The processes are started once for all tests. A check that leaves the ranks out of step has no answer of one of them,
and neither have those after it.
"""

import multiprocessing
import os
import time
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from batchnorm_reference import assert_same, float64, give_nontrivial_statistics, snapshot
from torch import nn

from dynbn_lightning.batchnorm import PROPAGATIONS, BNStatsBank
from dynbn_lightning.errors import DataError, DynBNError

RANKS = (0, 1)
SECONDS_FOR_ALL, SECONDS_FOR_THE_OTHER_RANK = 180, 10
SIZES = {"fog": ([5, 4], [3]), "frost": ([6, 6], []), "snow": ([], [12])}  # of the batches on each rank


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)
    )
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model.eval()


def batches_of(row, rank):
    sizes = SIZES[row]
    generator = torch.Generator().manual_seed(list(SIZES).index(row))
    images = torch.randn(12, 3, 8, 8, generator=generator) * 2 + torch.randn(12, 1, 1, 1, generator=generator)
    of_ranks = images.split([sum(sizes[0]), sum(sizes[1])])
    return list(of_ranks[rank].split(sizes[rank])) if sizes[rank] else []


def shares(rank, rows=tuple(SIZES)):
    return {row: batches_of(row, rank) for row in rows}


def collect(loaders, model=None, **options):
    return BNStatsBank.collect(make_model() if model is None else model, loaders, progress=False, **options)


def failure_of(loaders, model=None, **options):
    """The kind of error and its message, after checking that the model is as it was."""
    model = make_model() if model is None else model
    before = snapshot(model)
    try:
        collect(loaders, model, **options)
    except Exception as error:
        assert_same(before, model)
        return type(error).__name__, str(error)
    return "nothing", ""


# What the ranks do; what these return is read by the tests


def banks(rank, folder):
    return {propagate: collect(shares(rank), propagate=propagate) for propagate in PROPAGATIONS}


def failing_on_rank_1(batches, propagate="batch", model=None):
    def check(rank, folder):
        row = [torch.randn(4, 3, 8, 8)] if rank == 0 else batches()
        return failure_of({"fog": row}, None if model is None else model(), propagate=propagate)

    return check


def raising():
    yield torch.randn(4, 3, 8, 8)
    raise ValueError("no such image")


class OrderByBrightness(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.first(self.second(x)) if x.mean() > 5 else self.second(self.first(x))


def without_images(rank, folder):
    return failure_of({"fog": []}, propagate="sequential")


def files_and_writers(rank, folder):
    path, saved = folder / "bank.safetensors", []
    save, replace = BNStatsBank.save, Path.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BNStatsBank, "save", lambda self, to: (saved.append(to), save(self, to)))
        # Finished late, so that a rank that does not wait for the file is seen to miss it.
        patch.setattr(Path, "replace", lambda self, to: (time.sleep(to == path), replace(self, to)))
        bank = collect(shares(rank), path=path)
        return {"bank": bank, "saves": len(saved), "is there": path.exists()}


def interrupted_on_rank_1(rank, folder):
    path = folder / "resumed.safetensors"
    failure = failure_of({**shares(rank, ["fog", "frost"]), "snow": raising() if rank else []}, path=path)
    loaders = {"fog": raising(), "frost": raising(), "snow": batches_of("snow", rank)}  # must not be begun again
    return {"failure": failure, "bank": collect(loaders, path=path)}


def unfinished_file_of_another_collection(rank, folder):
    path = folder / "other.safetensors"
    if rank == 0:
        other = BNStatsBank(("clean", "hail"), {"1": 4, "5": 4}, torch.zeros(2, 8), torch.ones(2, 8))
        other.save(path.with_name("other.unfinished.safetensors"))
    return failure_of(shares(rank), path=path)


def full_disk_on_rank_0(rank, folder):
    def fail(self, path):
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BNStatsBank, "save", fail)
        return failure_of(shares(rank), path=folder / "full.safetensors")


def rows_in_another_order(rank, folder):
    return failure_of(shares(rank, ["fog", "frost"] if rank == 0 else ["frost", "fog"]))


FAILURES = {
    "whole numbers": failing_on_rank_1(lambda: [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)]),
    "whole numbers, source": failing_on_rank_1(lambda: [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], "source"),
    "whole numbers, sequential": failing_on_rank_1(lambda: [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], "sequential"),
    "a loader that raises": failing_on_rank_1(raising, "sequential"),
    "a batch of one image": failing_on_rank_1(lambda: [torch.randn(1, 3, 8, 8)]),
    "another order": failing_on_rank_1(lambda: [torch.randn(2, 3, 8, 8) + 9], "sequential", OrderByBrightness),
    "NaN": failing_on_rank_1(lambda: [torch.full((4, 3, 8, 8), float("nan"))]),
    "NaN, sequential": failing_on_rank_1(lambda: [torch.full((4, 3, 8, 8), float("nan"))], "sequential"),
}
CHECKS = {
    check.__name__: check
    for check in (
        banks,
        without_images,
        files_and_writers,
        interrupted_on_rank_1,
        unfinished_file_of_another_collection,
        full_disk_on_rank_0,
        rows_in_another_order,
    )
} | FAILURES


def answer_file(folder, name, rank):
    return folder / f"{name} on {rank}.pt"


def run_rank(rank, folder):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS_FOR_THE_OTHER_RANK * 6)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timeout, rank=rank, world_size=len(RANKS))
    for name, check in CHECKS.items():
        try:
            answer = check(rank, folder)
        except Exception:
            answer = traceback.format_exc()
        torch.save(answer, folder / f"{rank}.partial")
        (folder / f"{rank}.partial").replace(answer_file(folder, name, rank))
        deadline = time.monotonic() + SECONDS_FOR_THE_OTHER_RANK
        while not (is_there := answer_file(folder, name, 1 - rank).exists()) and time.monotonic() < deadline:
            time.sleep(0.005)
        if not is_there:  # out of step from here on
            break
    os._exit(0)  # torch 2.6 hangs now and then where one rank ends a group before the other


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, folder), daemon=True) for rank in RANKS]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS_FOR_ALL
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    for process in processes:
        if process.is_alive():
            process.kill()
    return folder


def answers(folder, name):
    missing = [rank for rank in RANKS if not answer_file(folder, name, rank).exists()]
    assert not missing, f"{name}: no answer of ranks {missing}, which hang or died"
    found = [torch.load(answer_file(folder, name, rank), weights_only=False) for rank in RANKS]
    errors = [answer for answer in found if isinstance(answer, str)]
    assert not errors, errors[0]
    return found


def single_process_bank(propagate):
    return collect({row: batches_of(row, 0) + batches_of(row, 1) for row in SIZES}, propagate=propagate)


def assert_same_bits(first, second):
    assert first.rows == second.rows
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)
    assert first.provenance == second.provenance


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_unequal_and_empty_shares_give_all_ranks_the_bank_of_one_process(folder, propagate):
    first, second = (banks[propagate] for banks in answers(folder, "banks"))
    assert_same_bits(first, second)
    alone = single_process_bank(propagate)
    assert first.rows == alone.rows
    assert first.provenance == alone.provenance
    assert first.provenance["image_counts"] == {"fog": 12, "frost": 12, "snow": 12}
    deviation = np.abs(float64(first.mean) - float64(alone.mean)) / np.sqrt(float64(alone.var))
    assert deviation.max() < 1e-5
    np.testing.assert_allclose(float64(first.var), float64(alone.var), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("whole numbers", "DataError", "torch.uint8"),
        ("whole numbers, source", "DataError", "torch.uint8"),
        ("whole numbers, sequential", "DataError", "torch.uint8"),
        ("a loader that raises", "ValueError", "no such image"),
        ("a batch of one image", "RoutingError", "one value per channel"),
        ("another order", "RoutingError", "another order"),
    ],
)
def test_an_error_on_one_rank_is_raised_there_and_told_on_the_other(folder, name, kind, message):
    other, failing = answers(folder, name)
    assert failing[0] == kind
    assert message in failing[1]
    assert other[0] == DataError.__name__
    assert other[1].startswith("row 'fog': rank 1 failed: ")
    assert message in other[1]


@pytest.mark.parametrize("name", ["NaN", "NaN, sequential"])
def test_nan_on_one_rank_is_refused_on_both(folder, name):
    for kind, message in answers(folder, name):
        assert kind == DataError.__name__
        assert message.startswith("row 'fog': the statistics of layer '1' are not finite")


def test_no_images_on_any_rank_are_refused_on_both(folder):
    assert (
        answers(folder, "without_images") == [("DataError", "row 'fog': no image batches to measure statistics on")] * 2
    )


def test_the_first_rank_alone_writes(folder):
    first, second = answers(folder, "files_and_writers")
    assert (first["saves"], second["saves"]) == (len(SIZES), 0)
    assert_same_bits(BNStatsBank.load(folder / "bank.safetensors"), first["bank"])
    assert not (folder / "bank.unfinished.safetensors").exists()


def test_the_file_is_there_on_every_rank_afterwards(folder):
    assert [answer["is there"] for answer in answers(folder, "files_and_writers")] == [True, True]


def test_a_collection_that_failed_on_one_rank_goes_on_on_both(folder):
    first, second = answers(folder, "interrupted_on_rank_1")
    assert [first["failure"][0], second["failure"][0]] == ["DataError", "ValueError"]
    assert_same_bits(first["bank"], second["bank"])
    assert_same_bits(first["bank"], answers(folder, "banks")[0]["batch"])
    assert_same_bits(BNStatsBank.load(folder / "resumed.safetensors"), first["bank"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("unfinished_file_of_another_collection", "another collection"), ("full_disk_on_rank_0", "disk full")],
)
def test_a_file_that_stops_the_first_rank_stops_the_other_with_its_reason(folder, name, message):
    for _, told in answers(folder, name):
        assert message in told


def test_rows_in_another_order_are_refused_and_not_merged(folder):
    for kind, _ in answers(folder, "rows_in_another_order"):
        assert kind in {error.__name__ for error in DynBNError.__subclasses__()}
