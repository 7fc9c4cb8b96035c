"""The README's Python example, run as it stands on small files of the layouts it names."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import dynbn_lightning
from dynbn_lightning import BNStatsBank, calibrate
from dynbn_lightning.models import cifar_resnet20

README = Path(__file__).parent.parent / "README.md"


def test_python_example(cifar10_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    weights = {f"module.{name}": value for name, value in cifar_resnet20().state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "resnet20-12fca82f.th")
    monkeypatch.chdir(tmp_path)
    assert cifar10_archive == tmp_path / "data"
    # As it stands but for the number of images: the default takes minutes.
    monkeypatch.setattr(dynbn_lightning, "calibrate", partial(calibrate, images=256))
    names: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), names)
    bank = BNStatsBank.load("resnet20.bank.safetensors")
    assert len(bank) == 76
    assert bank.calibration is not None
    assert bank.provenance["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert "report.html" in {path.name for path in (tmp_path / "results").iterdir()}
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    bank.check_model(model)  # refuses a model that is still patched, or was changed


def test_commands_are_one_line_each() -> None:
    text = README.read_text()
    for marker in ("demo command", "test command"):
        (command,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)\n```", text, flags=re.DOTALL)
        assert "\n" not in command
        assert command.startswith("python3 -m venv ")
