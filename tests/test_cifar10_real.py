"""The benchmark's short form on real images: the whole job, with bounds that a broken part would miss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dynbn_lightning.cli import main

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "cifar10_real.py"


@pytest.mark.slow
def test_short_benchmark_on_real_images(dynbn_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--short", "--data", str(dynbn_data), "--output", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "| dynamic BN, soft |" in finished.stdout

    results = json.loads((tmp_path / "results.json").read_text())
    assert results["schema_version"] == 1
    assert set(results["streams"]) == {"sequential", "mixed", "sequential/severity_5", "mixed/severity_5"}
    methods = results["streams"]["mixed"]["methods"]
    hardest = results["streams"]["mixed/severity_5"]["methods"]
    published = json.loads((dynbn_data / ".." / "reference" / "cifar_c_statistics.json").read_text())
    cells = methods["source"]["cells"]
    assert len(cells) == 8
    expected = sum(published[cell]["resnet20_accuracy"] for cell in cells) / len(cells)
    assert methods["source"]["mean"] == pytest.approx(expected, abs=0.03)
    assert methods["source"]["clean"] == pytest.approx(0.91, abs=0.002)
    assert methods["oracle"]["clean"] == methods["source"]["clean"], "row 0 is the unpatched model"
    assert hardest["dynamic_bn/soft"]["mean"] > hardest["source"]["mean"] + 0.2
    assert hardest["dynamic_bn/soft"]["mean"] > hardest["batch_stats"]["mean"] + 0.08
    assert methods["dynamic_bn/soft"]["detection"] > 0.8
    sequential = results["streams"]["sequential/severity_5"]["methods"]
    assert sequential["batch_stats"]["mean"] > hardest["batch_stats"]["mean"] + 0.05
    _check_batch_sizes(dynbn_data, tmp_path)
    for method in ("source", "dynamic_bn/soft", "oracle"):
        # The same pixels and no state: the order of a stream changes no prediction, to float32 rounding.
        for cell, accuracy in sequential[method]["cells"].items():
            assert accuracy == pytest.approx(hardest[method]["cells"][cell], abs=0.0021), (method, cell)


def _check_batch_sizes(dynbn_data: Path, folder: Path) -> None:
    """Each image is routed by itself: one at a time or 256 at a time, the accuracy is the same to 0.1 point."""
    (checkpoint,) = (dynbn_data / "weights").glob("resnet20-*.th")
    means = []
    for batch_size in ("1", "256"):
        output = folder / f"batch{batch_size}"
        command = ["evaluate", "--model", "cifar_resnet20", "--checkpoint", str(checkpoint)]
        command += ["--source", str(dynbn_data / "cifar10"), "--corruptions", "contrast", "--severities", "5"]
        command += ["--bank", str(folder / "seed0" / "bank.safetensors"), "--methods", "dynamic_bn/soft"]
        command += ["--detector", str(folder / "seed0" / "detector.ckpt"), "--batch-size", batch_size]
        assert main([*command, "--output", str(output)]) == 0
        means.append(json.loads((output / "results.json").read_text())["methods"]["dynamic_bn/soft"]["mean"])
    assert means[0] == pytest.approx(means[1], abs=0.00101)
