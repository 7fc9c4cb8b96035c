"""The documentation site: every public name and page is on it, it builds without a warning, and needs no network."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

import dynbn_lightning
from dynbn_lightning import errors

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
NEEDED = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")


def _entries() -> Counter[str]:
    """How often each name is documented on the pages of the API."""
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")]
    return Counter(name for page in pages for name in re.findall(r"^::: (\S+)", page, flags=re.MULTILINE))


def _public_names() -> set[str]:
    """The names of `__all__`, each where users import it from: the package itself, or else a package inside it."""
    names = {f"dynbn_lightning.{name}" for name in dynbn_lightning.__all__}
    for found in pkgutil.iter_modules(dynbn_lightning.__path__, "dynbn_lightning."):
        public = getattr(importlib.import_module(found.name), "__all__", []) if found.ispkg else []
        names |= {f"{found.name}.{name}" for name in public if name not in dynbn_lightning.__all__}
    return names


def test_every_public_name_has_its_place() -> None:
    assert _public_names() - _entries().keys() == set()


def test_every_error_has_its_place() -> None:
    classes = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert {f"dynbn_lightning.errors.{name}" for name in classes} - _entries().keys() == set()


def test_no_name_has_two_places_and_none_is_of_nothing() -> None:
    documented = []
    for name, times in _entries().items():
        assert times == 1, name
        module, _, attribute = name.rpartition(".")
        documented.append(getattr(importlib.import_module(module), attribute))
    classes = [one for one in documented if isinstance(one, type)]
    assert len(set(classes)) == len(classes)


def _nav(entries: list[Any]) -> list[str]:
    values = [value for entry in entries for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [page for value in values for page in (_nav(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(_nav(CONFIG["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.fixture(scope="module")
def rewrite_links() -> Callable[..., str]:
    spec = spec_from_file_location("hooks", DOCS / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    rewrite: Callable[..., str] = hooks.rewrite_links
    return rewrite


@pytest.mark.parametrize(
    ("markdown", "place", "page", "expected"),
    [
        ("[r](../benchmarks/RESULTS.md)", "docs/methods.md", "methods.md", "[r](results.md)"),
        ("[r](../../benchmarks/RESULTS.md#a)", "docs/concepts/bank.md", "concepts/bank.md", "[r](../results.md#a)"),
        ("[m](../docs/methods.md#what)", "benchmarks/RESULTS.md", "results.md", "[m](methods.md#what)"),
        ("![s](../docs/images/spectra.png)", "benchmarks/RESULTS.md", "results.md", "![s](images/spectra.png)"),
        ("[examples/](../examples) has", "docs/command_line.md", "command_line.md", "`examples` has"),
        ("[them](../pyproject.toml)", "docs/data.md", "data.md", "them (`pyproject.toml`)"),
        ("[`pyproject.toml`](../pyproject.toml)", "docs/data.md", "data.md", "`pyproject.toml`"),
        ("`[x](../README.md)`", "docs/data.md", "data.md", "`[x](../README.md)`"),
        ("```\n[x](../README.md)\n```", "docs/data.md", "data.md", "```\n[x](../README.md)\n```"),
        ("[x](data.md) [y](#here) [z](https://a.org/b.md)", "docs/faq.md", "faq.md", None),
        ("[x](../nothing.md)", "docs/faq.md", "faq.md", None),
    ],
)
def test_links_out_of_the_documentation(
    rewrite_links: Callable[..., str], markdown: str, place: str, page: str, expected: str | None
) -> None:
    assert rewrite_links(markdown, place, page, ROOT) == (markdown if expected is None else expected)


def test_links_to_a_public_repository(rewrite_links: Callable[..., str]) -> None:
    markdown = "[a](../examples) [b](../pyproject.toml)"
    rewritten = rewrite_links(markdown, "docs/data.md", "data.md", ROOT, url="https://a.org/b")
    assert rewritten == "[a](https://a.org/b/tree/main/examples) [b](https://a.org/b/blob/main/pyproject.toml)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"the site's tools are not installed ({', '.join(missing)}): pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-5000:]
    return folder


def test_the_site_shows_files_of_the_repository(site: Path) -> None:
    shown = {"results": "benchmarks/RESULTS.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
    for page, file in shown.items():
        heading = re.search(r"^## (\w+)", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        content = (site / f"{page}.html").read_text(encoding="utf-8")
        assert heading is not None
        assert re.search(rf"<h2 id=\"[^\"]*\">{heading[1]}", content), page
        assert "The site shows" not in content
    assert not list(site.rglob("*.py"))


def test_the_site_needs_no_network(site: Path) -> None:
    tag = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(?:https?:)?//[^\s\">]+")
    for page in site.rglob("*.html"):
        assert tag.findall(page.read_text(encoding="utf-8")) == [], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_site_leaves_out_what_lightning_calls(site: Path) -> None:
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="dynbn_lightning.CorruptionDataModule.row_loaders"' in page
    for hook in ("setup", "on_after_batch_transfer", "teardown"):
        assert f'id="dynbn_lightning.CorruptionDataModule.{hook}"' not in page
