"""The speed benchmark of the corruptions: what it makes of times, and a short run without the peers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("corruption_tables")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("corruption_peers")


def results_of(times: dict[str, dict[str, float | None]], summaries: dict[str, Any]) -> dict[str, Any]:
    """The results of a run over two corruptions, with these milliseconds for each contestant."""
    corruptions = {name: {who: {"ms_per_image": times[who][name]} for who in times} for name in ("fog", "snow")}
    memory = {who: {"peak_mib": 600.4, "increase_mib": 100.0} for who in times}
    size = {"images": 32, "preset": "imagenet", "corruptions": corruptions, "summary": summaries, "memory": memory}
    return {
        "date": "2026-11-22",
        "machine": {"cpu": "some CPU", "cores": 2, "load_before": 0.1},
        "protocol": {"severities": [3], "repetitions": 3, "images": "real images"},
        "versions": {who: {"python": "3.11"} for who in times},
        "sizes": {"224": {**size, "pixels": 224}},
    }


def test_ratios_and_their_means(tables: ModuleType) -> None:
    summary = tables.summary({"fog": 2.0, "snow": 1.0, "frost": 5.0}, {"fog": 4.0, "snow": 8.0, "frost": None})
    assert summary["ratios"] == {"fog": 2.0, "snow": 8.0}
    assert summary["geometric_mean"] == pytest.approx(4.0)
    assert summary["ratio_of_sums"] == pytest.approx(12 / 3)
    assert summary["ours_faster"] == 2
    assert summary["left_out"] == ["frost"]


def test_nothing_in_common_has_no_means(tables: ModuleType) -> None:
    summary = tables.summary({"fog": None}, {"fog": 4.0})
    assert summary["geometric_mean"] is None
    assert summary["ratio_of_sums"] is None


def test_table(tables: ModuleType) -> None:
    times = {"ours": {"fog": 1.0, "snow": 0.5}, "corrupt-tta": {"fog": 123.4, "snow": None}}
    results = results_of(times, {"corrupt-tta": tables.summary(times["ours"], times["corrupt-tta"])})
    results["sizes"]["224"]["corruptions"]["snow"]["corrupt-tta"]["error"] = "ValueError: too cold"
    text = tables.markdown(results)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2:4] == ["| fog | 1.00 | 123 | 123 |", "| snow | 0.500 | fails |  |"]
    assert rows[4] == "| geometric mean of the ratios |  |  | 123 |"
    assert rows[6] == "| peak memory, MiB | 600 | 600 |  |"
    assert len({row.count("|") for row in rows}) == 1
    assert "Not in the means of corrupt-tta: snow (ValueError: too cold)." in text


def raises(image: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    raise ValueError(f"no {corruption}/{severity}")


def gives_floats(image: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    return image / 2


def gives_images(image: np.ndarray, corruption: str, severity: int) -> np.ndarray:
    return image // 2


@pytest.mark.parametrize(
    ("corrupt", "error"),
    [(raises, "ValueError: no fog/3"), (gives_floats, "gives float64 of shape (4, 4, 3)"), (gives_images, None)],
)
def test_worker_times_a_peer_or_says_what_is_wrong(worker: ModuleType, corrupt: Any, error: str | None) -> None:
    peer = worker.ImageByImage(corrupt)
    peer.load(np.zeros((2, 4, 4, 3), np.uint8), "imagenet")
    reply = worker.timed(peer, {"corruption": "fog", "severity": 3, "images": 2, "begin_at": time.monotonic()})
    if error is None:
        assert reply["ended"] >= reply["began"]
    else:
        assert error in reply["error"]


def test_short_run_without_peers(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "corruptions.py"), "--output", str(tmp_path), "--images", "3"]
    command += ["--peers", "none", "--short", "--only", "contrast", "--environments", str(tmp_path / "environments")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "| contrast |" in finished.stdout
    assert (tmp_path / "corruptions.md").read_text() in finished.stdout
    results = json.loads((tmp_path / "corruptions.json").read_text())
    assert set(results["sizes"]) == {"224", "32"}
    for size in results["sizes"].values():
        figures = size["corruptions"]["contrast"]["ours"]
        assert figures["ms_per_image"] > 0
        assert figures["images"] == [3]
        assert size["memory"]["ours"]["peak_mib"] > size["memory"]["ours"]["increase_mib"] >= 0
    assert not (tmp_path / "environments").exists()
