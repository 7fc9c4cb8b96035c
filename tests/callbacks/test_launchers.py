"""However the processes are started, the report is that of one process, and a process that fails ends them all."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launched_script import evaluate_with_report, prepare
from methods_on_processes import METHODS

from dynbn_lightning.reporting import read_results

SCRIPT = Path(__file__).with_name("launched_script.py")
LAUNCHERS = {
    "ddp": [sys.executable, SCRIPT],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT],
}
SECONDS = 120
SPAWNED = list(METHODS) if os.environ.get("DYNBN_FULL") else ["dynamic_bn", "ema/never"]
STARTED = ["dynamic_bn/stream"]


def numbers_of(report: Path) -> Any:
    results = read_results(report)
    for run in results["runs"]:
        for block in run["methods"].values():
            block.pop("hardware")
    return results["runs"], results["settings"].pop("processes")


def of_one(folder: Path, method: str) -> Any:
    evaluate_with_report(prepare(folder), method)
    return numbers_of(folder / "report")[0]


def run(launcher: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHERS[launcher], *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )


@pytest.mark.parametrize("method", SPAWNED)
def test_processes_that_lightning_spawns(tmp_path, method):
    evaluate_with_report(prepare(tmp_path / "two"), method, devices=2, strategy="ddp_spawn")
    runs, processes = numbers_of(tmp_path / "two" / "report")
    assert processes == 2
    assert runs == of_one(tmp_path / "one", method)


@pytest.mark.parametrize("method", STARTED)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_scripts_that_are_started_twice(tmp_path, launcher, method):
    done = run(launcher, prepare(tmp_path / "two"), method, 2)
    assert done.returncode == 0, done.stderr
    runs, processes = numbers_of(tmp_path / "two" / "report")
    assert processes == 2
    assert runs == of_one(tmp_path / "one", method)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_script_that_fails_on_one_process_ends_on_both(tmp_path, launcher):
    began = time.monotonic()
    done = run(launcher, prepare(tmp_path), "ema", 2, 1)
    assert done.returncode != 0
    assert "ValueError: process 1 stopped here" in done.stderr
    assert time.monotonic() - began < SECONDS / 2
    # torchrun ends the others itself, now and then before the first of them has written its report.
    if launcher != "torchrun" or (tmp_path / "report" / "results.json").exists():
        assert read_results(tmp_path / "report")["missing"]
