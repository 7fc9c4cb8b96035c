"""Every page of the documentation and the README, run as they stand; see `documented.py` for what that means."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import ROOT, blocks_of, run_page, write_tiny_data

from dynbn_lightning import BNStatsBank, datamodules
from dynbn_lightning.methods import METHODS
from dynbn_lightning.reporting import methods_of, read_results

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BESIDE = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "notebooks/README.md")]
RUN = ("python", "sh", "bash", "yaml")  # of bash, which is for other machines or data, the options are read
NOT_RUN = ("text", "json")  # formulas and output
WITH_CODE = [page for page in PAGES if {block.language for block in blocks_of(page)} & {*RUN}]


def check_left(*expected: str) -> None:
    """Pages write what they say and nothing else."""
    given = {"data", "dynbn-demo", "examples", "photos", "resnet20-12fca82f.th"}
    assert {path.name for path in Path().iterdir()} - given == {*expected}


def check_readme(names: dict[str, Any]) -> None:
    bank = BNStatsBank.load("resnet20.bank.safetensors")
    assert len(bank) == 76
    assert bank.calibration is not None
    assert bank.provenance["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert Path("results/report.html").is_file()
    assert Path("run/report.html").is_file()
    assert isinstance(names["model"], torch.nn.Module)
    bank.check_model(names["model"])  # refuses a model that is still patched, or was changed


def check_routing(names: dict[str, Any]) -> None:
    assert torch.equal(names["hard"][0], names["own"][0])
    assert not torch.equal(names["hard"][1], names["own"][1])
    assert names["soft"].shape == names["blended"].shape == (4, 8, 30, 30)
    check_left("model.bank.safetensors")


def check_bank(names: dict[str, Any]) -> None:
    bank, refined = names["bank"], names["refined"]
    assert bank.rows == ("clean", "fog/3", "fog/5", "gaussian_noise/3", "gaussian_noise/5")
    assert bank.calibration.source_share.shape == (5, len(bank.layers))
    assert refined.refined
    assert not bank.refined
    check_left("calibrated.safetensors")


def check_methods(names: dict[str, Any]) -> None:
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
    check_left("quantiles.safetensors")


def check_reports(names: dict[str, Any]) -> None:
    assert names["block"]["cells"].keys() == {"fog/1", "fog/5"}
    assert 0 < len(names["wrong"]) <= 1000
    for folder in ("mine", "others", "both", "compared"):
        written = {path.name for path in Path(folder).iterdir()}
        assert {"report.html", "results.csv", "results.md", "results.tex"} <= written
    (schema,) = re.findall(r"```json\n(.*?)```", (DOCS / "reports.md").read_text(), flags=re.DOTALL)
    described, written = json.loads(schema), json.loads(Path("others/results.json").read_text())
    assert described.keys() == written.keys()
    assert described["schema_version"] == written["schema_version"]
    (block,) = described["runs"][0]["methods"].values()
    source = written["runs"][0]["methods"]["source"]
    assert source.keys() <= block.keys()
    assert source["clean"].keys() == block["clean"].keys()


def check_data(names: dict[str, Any]) -> None:
    assert names["pixels"].shape == (3, 32, 32)
    block = names["results"]["runs"][0]["methods"]["batch_stats"]
    assert block["cells"].keys() == {"fog/1", "fog/5", "contrast/1", "contrast/5"}
    assert block["clean"]["images"] == 200
    check_left("results", "shapes")


def check_processes(names: dict[str, Any]) -> None:
    results = read_results("report")
    assert results["settings"]["processes"] == 2
    (method,) = methods_of(results).values()
    assert [block["images"] for block in (method["clean"], *method["cells"].values())] == [1000] * 3


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": check_readme,
    "docs/concepts/routing.md": check_routing,
    "docs/concepts/bank.md": check_bank,
    "docs/data.md": check_data,
    "docs/methods.md": check_methods,
    "docs/processes.md": check_processes,
    "docs/reports.md": check_reports,
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_page(page: Path, cifar10_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run_page(page, monkeypatch)
    CHECKS.get(name_of(page), lambda names: None)(names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^[> ]*(?:`{3,}|~{3,}).*$", page.read_text(), flags=re.MULTILINE)
    blocks = blocks_of(page)
    assert len(fences) == 2 * len(blocks), "a block is of no form that the tests know"
    assert {block.language for block in blocks} <= {*RUN, *NOT_RUN}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_all_checks_are_of_pages_that_are_there() -> None:
    assert set(CHECKS) <= {name_of(page) for page in WITH_CODE}


def test_methods_page_names_every_method() -> None:
    text = (DOCS / "methods.md").read_text()
    for name in METHODS:
        assert f"`{name}`" in text or name.startswith(("dynamic_bn/", "oracle", "source")), name


def test_data_page_names_every_reader() -> None:
    text = (DOCS / "data.md").read_text()
    for name in datamodules.__all__:
        if name not in ("CorruptionDataModule", "ReleasedSet", "ShapesDataset"):
            assert f"| `{name}` |" in text, name


def test_commands_of_the_readme_are_one_line_each() -> None:
    text = (ROOT / "README.md").read_text()
    for marker in ("demo command", "test command"):
        (command,) = re.findall(rf"<!-- {marker} -->\n```sh\n(.*?)\n```", text, flags=re.DOTALL)
        assert "\n" not in command
        assert command.startswith("python3 -m venv ")
