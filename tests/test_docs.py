"""The Python of the documentation pages, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

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
