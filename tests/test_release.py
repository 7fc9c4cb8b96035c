"""What a release contains, what it is called, and which names it promises."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
from hatchling.build import build_sdist, build_wheel

import dynbn_lightning

ROOT = Path(__file__).parent.parent
NAME = f"dynbn_lightning-{dynbn_lightning.__version__}"
PUBLIC = Path(__file__).parent / "public_names.txt"


def files_of_the_package() -> set[str]:
    """The package's files, but for caches."""
    found = (path.relative_to(ROOT) for path in (ROOT / "dynbn_lightning").rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        return zipfile.ZipFile(folder / build_wheel(str(folder)))


def test_the_wheel_is_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    about = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    licence = {f"{NAME}.dist-info/licenses/LICENSE"}
    assert set(wheel.namelist()) == files_of_the_package() | about | licence
    assert {"dynbn_lightning/py.typed", "dynbn_lightning/reporting/html/templates/page.html"} <= set(wheel.namelist())
    assert sum(entry.file_size for entry in wheel.infolist()) < 2e6


def test_the_sdist_is_what_the_wheel_is_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
        assert not [entry.name for entry in archive if not entry.isfile()]
    beside = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == files_of_the_package() | beside


def test_the_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
    assert metadata["Version"] == dynbn_lightning.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    needed = {re.split(r"[\[><=]", one)[0] for one in metadata.get_all("Requires-Dist") if "extra ==" not in one}
    assert {"torch", "torchvision", "lightning", "torchmetrics", "timm"} <= needed
    # What only some people need is an extra.
    assert not needed & {"matplotlib", "pandas", "scipy", "tensorboard", "pytest", "mkdocs-material", "nbclient"}
    assert set(metadata.get_all("Provides-Extra")) == {"report", "test", "docs", "dev"}
    assert b"dynbn = dynbn_lightning.cli:main" in wheel.read(f"{NAME}.dist-info/entry_points.txt")


def test_one_version_everywhere() -> None:
    version, _, development = dynbn_lightning.__version__.partition(".dev")
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert heading is not None
    assert heading[1] == version
    if not development:  # what is cited is a release
        assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def public_names() -> list[str]:
    """What every package says it offers, as lines `package: name`."""
    folder = ROOT / "dynbn_lightning"
    packages = [path.parent.name for path in sorted(folder.glob("*/__init__.py")) if "__all__" in path.read_text()]
    modules = [path.stem for path in sorted(folder.glob("[!_]*.py")) if "__all__ =" in path.read_text()]
    offering = ["dynbn_lightning", *(f"dynbn_lightning.{name}" for name in (*packages, *modules))]
    return [f"{package}: {name}" for package in offering for name in sorted(import_module(package).__all__)]


def test_public_names() -> None:
    # A name that goes or changes breaks somebody's code: CONTRIBUTING.md says how that is announced. After a change
    # that is meant, `python tests/test_release.py` writes the file anew.
    assert public_names() == PUBLIC.read_text().splitlines()
    for line in public_names():
        package, _, name = line.partition(": ")
        value = getattr(import_module(package), name)
        if isinstance(value, (type, FunctionType)):
            assert value.__doc__, f"{line} says nothing of itself"


def test_names_at_the_top_are_found_without_importing_everything() -> None:
    for name in dynbn_lightning.__all__:
        assert getattr(dynbn_lightning, name).__module__.startswith("dynbn_lightning.")
    assert set(dynbn_lightning.__all__) <= set(dir(dynbn_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dynbn_lightning.nothing  # noqa: B018


def test_importing_brings_nothing_that_lightning_and_torchvision_do_not() -> None:
    # How long it takes is measured by benchmarks/import_time.py; this is why it is no longer.
    program = """
import sys
import lightning, torchvision
before = {name.partition(".")[0] for name in sys.modules}
import dynbn_lightning
assert "dynbn_lightning.callbacks" not in sys.modules
from dynbn_lightning import *
print(*sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"dynbn_lightning", "safetensors"}


if __name__ == "__main__":
    PUBLIC.write_text("\n".join(public_names()) + "\n")
