"""Print pip constraints that hold every requirement of pyproject.toml at its lowest supported version."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
requirements = [
    *project["dependencies"],
    *(one for extra in ("report", "test") for one in project["optional-dependencies"][extra]),
]
for requirement in map(Requirement, requirements):
    lowest = [one.version for one in requirement.specifier if one.operator == ">="]
    if requirement.name != project["name"]:
        if not lowest:
            sys.exit(f"{requirement} in pyproject.toml has no lowest version: write {requirement.name}>=...")
        print(f"{requirement.name}=={lowest[0]}")
