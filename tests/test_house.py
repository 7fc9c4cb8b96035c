"""Who may import whom, and the links at the root."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dynbn_lightning"

# floor by floor: a package imports those of lower floors only, and on the ground only what stands behind it here
GROUND = {
    "corruptions": set(),
    "batchnorm": set(),
    "detection": set(),
    "models": set(),
    "metrics": {"corruptions"},  # the names and codes of cells
    "reporting": {"corruptions", "metrics"},  # what it reports
}
BASEMENT = {"errors", "files", "progress"}
FLOORS = [
    set(GROUND),
    {"modules", "datamodules"},
    {"callbacks"},
    {
        "processes",
        "fitting",
        "evaluation",
        "methods",
        "pieces",
        "cost",
        "demo",
        "corrupted_set",
        "calibrating",
        "refining",
        "tuning",
        "figures",
    },
    {"cli"},
]


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    """The packages of dynbn_lightning, and `lightning`, that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = path.parent
            for _ in range(max(node.level - 1, 0)):
                folder = folder.parent
            prefix = ".".join((PACKAGE.name, *folder.relative_to(PACKAGE).parts)) + "." if node.level else ""
            modules = [prefix + (node.module or "")]
        for module in modules:
            parts = module.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1]:
                found.add(parts[1])
            elif parts[0] in ("lightning", "pytorch_lightning"):
                found.add("lightning")
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py" or path.parent != PACKAGE]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_downwards(path: Path) -> None:
    package = package_of(path)
    if package in BASEMENT:
        assert imported_packages(path) <= {"errors"}
        return
    imported = imported_packages(path) - {package, *BASEMENT}
    floor = next(number for number, packages in enumerate(FLOORS) if package in packages)
    if floor == 0:
        assert imported <= GROUND[package], f"{package} stands on the ground and imports {imported}"
        return
    allowed = set().union(*FLOORS[: floor + 1]) | {"lightning"}
    assert imported <= allowed, f"{package} imports {imported - allowed} from a higher floor"


def test_relative_imports_behind_the_root_links() -> None:
    for folder in ("callbacks", "datamodules"):
        link = ROOT / folder
        assert link.is_symlink()
        assert link.resolve() == PACKAGE / folder
        for path in (PACKAGE / folder).glob("*.py"):
            assert f"from {PACKAGE.name}" not in path.read_text(), f"{path} would be imported as a second copy"
