"""The Python of the documentation pages, run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynbn_lightning import datamodules
from dynbn_lightning.methods import METHODS
from dynbn_lightning.reporting import methods_of, read_results

DOCS = Path(__file__).parent.parent / "docs"


def test_routing_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "routing.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(compile(example, "routing.md", "exec"), names)
    assert torch.equal(names["hard"][0], names["own"][0])
    assert not torch.equal(names["hard"][1], names["own"][1])
    assert names["soft"].shape == names["blended"].shape == (4, 8, 30, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["model.bank.safetensors"]


def test_detection_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "detection.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "detection.md", "exec"), names)
    bank, refined = names["bank"], names["refined"]
    assert bank.rows == ("clean", "fog/3", "fog/5", "gaussian_noise/3", "gaussian_noise/5")
    assert bank.calibration.source_share.shape == (5, len(bank.layers))
    assert refined.refined
    assert not bank.refined
    assert [path.name for path in tmp_path.iterdir()] == ["calibrated.safetensors"]


def test_methods_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "methods.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "methods.md", "exec"), names)
    assert names["adapted"]
    assert names["quantiles"].rows == names["bank"].rows == ("clean", "fog", "contrast")
    assert names["both"].base.prior == 16
    assert names["shapes"].strength == 0.5
    assert [(run["stream"], run["batch_size"]) for run in names["results"]["runs"]] == [
        ("mixed", 200),
        ("continual", 200),
        ("mixed", 500),
        ("continual", 500),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["quantiles.safetensors"]


def test_methods_page_names_every_method() -> None:
    text = (DOCS / "methods.md").read_text()
    for name in METHODS:
        assert f"`{name}`" in text or name.startswith(("dynamic_bn/", "oracle", "source")), name


def test_reports_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "reports.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "reports.md", "exec"), names)
    assert names["block"]["cells"].keys() == {"fog/1", "fog/5"}
    assert 0 < len(names["wrong"]) <= 1000
    for folder in ("mine", "others", "both"):
        assert {"report.html", "results.csv", "results.md", "results.tex"} <= {
            path.name for path in (tmp_path / folder).iterdir()
        }
    (schema,) = re.findall(r"```json\n(.*?)```", (DOCS / "reports.md").read_text(), flags=re.DOTALL)
    described, written = json.loads(schema), json.loads((tmp_path / "others" / "results.json").read_text())
    assert described.keys() == written.keys()
    assert described["schema_version"] == written["schema_version"]
    source = written["runs"][0]["methods"]["source"]
    assert source.keys() <= described["runs"][0]["methods"]["source"].keys()
    assert source["clean"].keys() == described["runs"][0]["methods"]["source"]["clean"].keys()


def test_data_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "data.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "data.md", "exec"), names)
    assert names["pixels"].shape == (3, 32, 32)
    block = names["results"]["runs"][0]["methods"]["batch_stats"]
    assert block["cells"].keys() == {"fog/1", "fog/5", "contrast/1", "contrast/5"}
    assert block["clean"]["images"] == 200


def test_data_page_names_every_reader() -> None:
    text = (DOCS / "data.md").read_text()
    for name in datamodules.__all__:
        if name not in ("CorruptionDataModule", "ReleasedSet", "ShapesDataset"):
            assert f"| `{name}` |" in text, name


def test_processes_page(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "processes.md").read_text(), flags=re.DOTALL)
    (tmp_path / "script.py").write_text(example)
    command = [sys.executable, "script.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(tmp_path / "report")
    assert results["settings"]["processes"] == 2
    (method,) = methods_of(results).values()
    assert [block["images"] for block in (method["clean"], *method["cells"].values())] == [1000] * 3
