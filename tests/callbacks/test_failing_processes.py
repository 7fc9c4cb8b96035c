"""A process that fails ends the run on all processes with its error, soon, and nothing stays patched."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from callback_models import bare_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from methods_on_processes import METHODS, Observed, fingerprint, make_tools, small_data, use_tools
from started_processes import failures, of_several, start

from dynbn_lightning.callbacks import failure_watch

FAIL_AT, SECONDS = 3, 20
HURRY = 0.5
"""What `GRACE` is in these tests."""


class FailsInStep(Observed):
    """Raises before, in the middle of, or after the forward of its fourth step; on one process alone."""

    def __init__(self, where: str, only_on: int) -> None:
        super().__init__()
        self.where, self.only_on = where, only_on
        self.net[4].register_forward_pre_hook(lambda *args: self.fail("in the forward"))

    def fail(self, where: str) -> None:
        if (where, self.global_rank) == (self.where, self.only_on) and self.steps == FAIL_AT + 1:
            raise ValueError(f"{where} of step {FAIL_AT}")

    def step(self, batch: Any) -> None:
        self.fail("before the forward")
        super().step(batch)
        self.fail("after the forward")

    def on_test_start(self) -> None:
        if (self.where, self.global_rank) == ("at the start", self.only_on):
            raise ValueError("at the start")


CASES = [
    (method, "after the forward", rank)
    for method in ("dynamic_bn", "ema/never", "dynamic_bn/stream")
    for rank in (0, 1)
] + [
    ("dynamic_bn", "before the forward", 0),
    ("dynamic_bn", "in the forward", 1),
    ("dynamic_bn", "at the start", 1),
    ("ema", "at the start", 0),
    ("dynamic_bn", "at another callback's start", 1),
    ("ema", "at another callback's start", 1),
]


class AnothersCallback(Callback):
    """Of which there is one on one process alone."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.where == "at another callback's start":
            raise ValueError(self.where)


def outcome(method: str, where: str, only_on: int, world: int) -> dict[str, Any]:
    module = FailsInStep(where, only_on)
    before = fingerprint(module)
    others = [AnothersCallback(where)] if dist.get_rank() == only_on else []
    trainer = bare_trainer(*others, *METHODS[method](module), **of_several(world))
    began, told = time.monotonic(), "nothing"
    try:
        trainer.test(module, datamodule=small_data(batch_size=3), verbose=False)
    except Exception as error:
        told = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return {"told": told, "seconds": time.monotonic() - began, "as before": fingerprint(module) == before}


def run_all(rank: int, world: int, folder: Path) -> None:
    use_tools(folder)
    for number, case in enumerate(CASES):
        torch.save(outcome(*case, world), folder / f"{number} {rank}.pt")


def fail_while_another_makes_a_long_step(rank: int, world: int, folder: Path) -> None:
    failure_watch.GRACE = HURRY
    use_tools(folder)

    class Slow(FailsInStep):
        def step(self, batch: Any) -> None:
            super().step(batch)
            if self.global_rank == 0 and self.steps == FAIL_AT + 1:
                time.sleep(6 * HURRY)

    module = Slow("after the forward", 1)
    told = "nothing"
    try:
        bare_trainer(*METHODS["ema"](module), **of_several(world)).test(
            module, datamodule=small_data(batch_size=3), verbose=False
        )
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    (folder / f"slow {rank}.txt").write_text(told)


class SlowAtTheEnd(Callback):
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            time.sleep(8 * HURRY)


class Predicts(Observed):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch)


def go_before_another_is_ready(rank: int, world: int, folder: Path) -> None:
    """The first process keeps the store, which ends with it."""
    failure_watch.GRACE = HURRY
    use_tools(folder)
    module = Predicts()
    bare_trainer(*METHODS["ema"](module), SlowAtTheEnd(), **of_several(world)).predict(
        module, datamodule=small_data(batch_size=3)
    )
    (folder / f"ready {rank}").touch()
    if rank == 0:
        os._exit(0)


def die(rank: int, world: int, folder: Path) -> None:
    failure_watch.NO_SIGN = 6 * HURRY
    use_tools(folder)

    class Dies(Observed):
        def step(self, batch: Any) -> None:
            if self.global_rank == 1 and self.steps == FAIL_AT:
                os._exit(9)
            super().step(batch)

    told = "nothing"
    try:
        module = Dies()
        bare_trainer(*METHODS["dynamic_bn"](module), **of_several(world)).test(
            module, datamodule=small_data(batch_size=3), verbose=False
        )
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    (folder / f"died {rank}.txt").write_text(told)


def hang_in_a_collective(rank: int, world: int, folder: Path) -> None:
    """The process group is of no use afterwards."""
    failure_watch.GRACE = HURRY
    use_tools(folder)
    torch.save(outcome("ema", "in the forward", 1, world), folder / f"hang {rank}.pt")
    deadline = time.monotonic() + SECONDS
    while not (folder / f"hang {1 - rank}.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)  # the end of a process would free the other one by itself


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    make_tools(folder)
    start(2, run_all, folder, seconds=120)
    return folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(map(str, case)) for case in CASES])
def test_all_processes_end_with_the_error_of_the_one_that_fails(folder, number):
    assert failures(folder) == []
    _, where, failing = CASES[number]
    outcomes = [torch.load(folder / f"{number} {rank}.pt") for rank in (0, 1)]
    error = f"ValueError: {where}" + (f" of step {FAIL_AT}" if where.endswith("forward") else "")
    assert outcomes[failing]["told"] == error
    assert outcomes[1 - failing]["told"] == f"RankError: process {failing} failed: {error}"
    assert [its["as before"] for its in outcomes] == [True, True]
    assert max(its["seconds"] for its in outcomes) < SECONDS


def test_a_process_that_waits_in_a_layer_for_one_that_failed_says_so_and_ends(tmp_path, capfd):
    make_tools(tmp_path)
    start(2, hang_in_a_collective, tmp_path, seconds=60)
    error = f"ValueError: in the forward of step {FAIL_AT}"
    assert torch.load(tmp_path / "hang 1.pt")["told"] == error
    assert not (tmp_path / "hang 0.pt").exists()
    assert failures(tmp_path) == []
    assert f"process 1 failed: {error}; process 0 waits for it and ends" in capfd.readouterr().err


def test_a_process_in_a_long_step_is_not_ended_and_raises_after_it(tmp_path):
    make_tools(tmp_path)
    start(2, fail_while_another_makes_a_long_step, tmp_path, seconds=60)
    error = f"ValueError: after the forward of step {FAIL_AT}"
    assert (tmp_path / "slow 1.txt").read_text() == error
    assert (tmp_path / "slow 0.txt").read_text() == f"RankError: process 1 failed: {error}"


def test_a_process_may_take_longer_than_the_first_one(tmp_path, capfd):
    make_tools(tmp_path)
    start(2, go_before_another_is_ready, tmp_path, seconds=60)
    assert (tmp_path / "ready 0").exists()
    assert (tmp_path / "ready 1").exists()
    assert "waits for it" not in capfd.readouterr().err


def test_a_process_that_is_killed_is_missed(tmp_path):
    make_tools(tmp_path)
    start(2, die, tmp_path, seconds=60)
    assert (tmp_path / "died 0.txt").read_text() == "RankError: process 1 gave no sign of life for 3 s"
    assert not (tmp_path / "died 1.txt").exists()
