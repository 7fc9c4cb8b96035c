"""The benchmark of routing: a short run in this process, and its check that what it times is right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def routing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("routing")


def test_short_run(routing: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    routing.main(["--short", "--full", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "routing.json").read_text())
    table = (tmp_path / "routing.md").read_text()
    assert table in capsys.readouterr().out

    routed = {routing.HARD, routing.SOFT, routing.CALIBRATED, routing.ONE_ROW, routing.SOURCE}
    assert set(results["times"]) == {routing.PLAIN, routing.AGAIN, *routed, routing.BN_1, routing.GROUPS} | {
        f"measuring a row, {propagate}" for propagate in ("batch", "source", "sequential")
    }
    for name, times in results["times"].items():
        assert f"| {name} |" in table
        for clock in ("wall", "CPU"):
            low, median, high = times[clock]["ratio"]
            assert 0 < low <= median <= high < math.inf, (name, clock)
            assert all(0 < seconds < math.inf for seconds in times[clock]["seconds"]), (name, clock)
            assert len(times[clock]["seconds"]) == 2
    assert results["times"][routing.PLAIN]["wall"]["ratio"] == [1, 1, 1]
    assert results["loading"]["seconds"] > 0
    assert results["environment"]["threads"] >= 1


def test_peaks_are_of_fresh_processes(routing: ModuleType, tmp_path: Path) -> None:
    """The processes import the benchmark by its name, which they must find."""
    options = routing.parsed(["--short"])
    with routing.ProcessPoolExecutor(1, routing.get_context("spawn")) as fresh:
        peak = fresh.submit(routing.peak_of, routing.HARD, options).result()
    assert peak["peak"] >= peak["before"] > 0


@pytest.mark.parametrize("routed", ["HARD", "SOFT"])
def test_a_row_that_is_not_the_banks_is_found(routing: ModuleType, routed: str) -> None:
    options = routing.parsed(["--short", "--size", "32"])
    given = routing.setting(options)
    calls = routing.contestants(given, options)
    bound = routing.BOUNDS["float32"]
    assert max(routing.check_logits(calls, given, bound)[name] for name in (routing.HARD, routing.SOFT)) <= bound

    var = given.bank.var.clone()
    var[5] *= 1.01
    tampered = routing.routed_calls(routing.deepcopy(given.model), given._replace(bank=replace(given.bank, var=var)))
    name = getattr(routing, routed)
    with pytest.raises(routing.BenchmarkError, match=name):
        routing.check_logits({**calls, name: tampered[name]}, given, bound)


def test_rows_that_change_nothing_are_found(routing: ModuleType) -> None:
    options = routing.parsed(["--short", "--size", "32"])
    given = routing.setting(options)
    same = given._replace(bank=replace(given.bank, mean=0 * given.bank.mean, var=0 * given.bank.var + 1))
    with pytest.raises(routing.BenchmarkError, match="no error would show"):
        routing.check_logits(routing.contestants(same, options), same, routing.BOUNDS["float32"])
