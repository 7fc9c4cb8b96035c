"""The benchmark's short form on real images: the whole job, with bounds that a broken part would miss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynbn_lightning.cli import main
from dynbn_lightning.reporting import methods_of, read_results

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "cifar10_real.py"


METHODS = (
    "source",
    "batch_stats",
    "dynamic_bn/soft",
    "dynamic_bn/calibrated",
    "dynamic_bn/stream",
    "dynamic_bn/refined",
    "oracle",
)


@pytest.mark.slow
def test_short_benchmark_on_real_images(dynbn_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--short", "--data", str(dynbn_data), "--output", str(tmp_path)]
    command += ["--methods", ",".join(METHODS)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "| dynamic BN, calibrated |" in finished.stdout

    results = json.loads((tmp_path / "resnet20" / "results.json").read_text())
    assert results["schema_version"] == 3
    assert {run["stream"] for run in results["runs"]} == {"mixed", "extra", "sequential"}
    methods = methods_of(results, "mixed")
    published = json.loads((dynbn_data / ".." / "reference" / "cifar_c_statistics.json").read_text())
    cells = methods["source"]["cells"]
    assert len(cells) == 8
    expected = sum(published[cell]["resnet20_accuracy"] for cell in cells) / len(cells)
    assert methods["source"]["mean"]["accuracy"] == pytest.approx(expected, abs=0.03)
    assert methods["source"]["clean"]["accuracy"] == pytest.approx(0.91, abs=0.002)
    assert methods["oracle"]["clean"]["accuracy"] == methods["source"]["clean"]["accuracy"], (
        "row 0 is the unpatched model"
    )
    calibrated, soft = methods["dynamic_bn/calibrated"], methods["dynamic_bn/soft"]
    assert soft["severity_5"] > methods["source"]["severity_5"] + 0.2
    assert soft["detection"] > 0.7
    assert calibrated["mean"]["accuracy"] > soft["mean"]["accuracy"]
    assert calibrated["severity_5"] > methods["batch_stats"]["severity_5"] + 0.08
    assert calibrated["clean"]["accuracy"] > methods["source"]["clean"]["accuracy"] - 0.01
    difference, lower, upper = calibrated["against_source"]["mean"]
    assert difference == pytest.approx(calibrated["mean"]["accuracy"] - methods["source"]["mean"]["accuracy"], abs=1e-6)
    assert 0.1 < lower < difference < upper
    assert methods["dynamic_bn/refined"]["mean"]["accuracy"] > calibrated["mean"]["accuracy"] - 0.01
    stream = methods_of(results, "sequential")["dynamic_bn/stream"]
    assert stream["mean"]["accuracy"] > soft["mean"]["accuracy"]
    extra = methods_of(results, "extra")
    assert extra["dynamic_bn/calibrated"]["mean"]["accuracy"] > extra["source"]["mean"]["accuracy"] - 0.02
    _check_what_is_there_is_kept(command, tmp_path)
    _check_batch_sizes(dynbn_data, tmp_path)


def _check_what_is_there_is_kept(command: list[str], folder: Path) -> None:
    bank = folder / "resnet20" / "seed0" / "bank.safetensors"
    before = bank.stat().st_mtime_ns, (folder / "resnet20" / "results.json").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "bank collected" not in again.stdout
    assert (bank.stat().st_mtime_ns, (folder / "resnet20" / "results.json").read_text()) == before


def _check_batch_sizes(dynbn_data: Path, folder: Path) -> None:
    """Each image is routed by itself: one at a time or 256 at a time, the accuracy is the same to 0.1 point."""
    (checkpoint,) = (dynbn_data / "weights").glob("resnet20-*.th")
    means = []
    for batch_size in ("1", "256"):
        output = folder / f"batch{batch_size}"
        command = ["evaluate", "--model", "cifar_resnet20", "--checkpoint", str(checkpoint)]
        command += ["--source", str(dynbn_data / "cifar10"), "--corruptions", "contrast", "--severities", "5"]
        command += ["--bank", str(folder / "resnet20" / "seed0" / "bank.safetensors"), "--row-per", "cell"]
        command += [
            "--detector",
            str(folder / "detectors" / "seed0.ckpt"),
            "--methods",
            "dynamic_bn/calibrated",
            "--batch-size",
            batch_size,
        ]
        assert main([*command, "--output", str(output)]) == 0
        means.append(methods_of(read_results(output))["dynamic_bn/calibrated"]["mean"]["accuracy"])
    assert means[0] == pytest.approx(means[1], abs=0.00101)
