"""What `CONTRIBUTING.md` says is there, the versions of files that it names, the issue forms, and the hooks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dynbn_lightning.batchnorm.bank_file import BANK_FILE
from dynbn_lightning.batchnorm.quantile_bank import QUANTILE_FILE
from dynbn_lightning.corrupted_set import manifest
from dynbn_lightning.reporting import SCHEMA_VERSION

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
# Files that a recipe names shortly, after the folder that it says they are in.
FOLDERS = ("", "dynbn_lightning", "dynbn_lightning/corruptions", "tests/corruptions")


def named_files() -> set[str]:
    return set(re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|toml|cff))`", TEXT))


def test_files_that_are_named_are_there() -> None:
    assert len(named_files()) > 40
    assert {name for name in named_files() if not any((ROOT / folder / name).is_file() for folder in FOLDERS)} == set()


def test_folders_that_are_named_are_there() -> None:
    folders = set(re.findall(r"`((?:[\w.]+/)+)`", TEXT)) - {"data/", "results/"}
    assert {name for name in folders if not any((ROOT / folder / name).is_dir() for folder in FOLDERS)} == set()


def test_versions_of_files() -> None:
    said = " ".join(TEXT.split())
    readable = " and ".join(map(str, BANK_FILE.readable))
    assert f"Banks of formats {readable} load and {BANK_FILE.version} is written" in said
    assert f"of quantile banks there is format {QUANTILE_FILE.version}" in said
    assert QUANTILE_FILE.readable == (QUANTILE_FILE.version,)
    assert f"of `results.json` schema {SCHEMA_VERSION}, of corrupted sets schema {manifest.SCHEMA_VERSION}" in said


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert all(part["type"] in ("input", "textarea", "dropdown", "checkboxes") for part in asked)
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_commands_of_the_issue_forms_work() -> None:
    commands = [command for path in FORMS for command in re.findall(r'python -c "([^"]+)"', path.read_text())]
    assert len(commands) == 2
    exec(commands[0], {})  # versions; the other is of a folder of theirs
    compile(commands[1], "form", "exec")


def test_there_is_a_form_for_each_kind_and_no_blank_one() -> None:
    assert [path.stem for path in FORMS] == ["1_bug", "2_wrong_number", "3_question_or_feature"]
    assert yaml.safe_load((FORMS[0].parent / "config.yml").read_text())["blank_issues_enabled"] is False


def test_hooks_fetch_nothing() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff", "ruff-format", "mypy"}
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
