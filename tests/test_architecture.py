"""`docs/architecture.md` says what the code says: floors, imports on a floor, and files."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest
from test_house import BASEMENT, FILES, FLOORS, GROUND, PACKAGE, ROOT, imported_packages, package_of

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def table_under(head: str) -> list[list[str]]:
    """The cells of the rows of the one table whose first line is `head`."""
    (_, text) = PAGE.split(f"\n{head}\n")
    rows = re.match(r"\|[-|: ]+\|\n((?:\|.*\n)+)", text)
    assert rows is not None, f"no table under {head}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def floors() -> dict[str, int]:
    """The floor of each package, as the page has it."""
    return {
        package: int(floor)
        for floor, packages, _ in table_under("| floor | packages | what stands there |")
        for package in names_in(packages)
    }


def on_own_floor() -> dict[str, set[str]]:
    """What each package that the page mentions imports on its own floor."""
    rows = table_under("| package | imports on its own floor | for |")
    return {names_in(package)[0]: set(names_in(imports)) for package, imports, _ in rows}


def test_floors_are_those_that_imports_are_held_to() -> None:
    by_number: dict[int, set[str]] = defaultdict(set)
    for package, floor in floors().items():
        by_number[floor].add(package)
    assert [by_number[number] for number in sorted(by_number)] == [BASEMENT, *FLOORS]
    assert sorted(by_number) == list(range(len(FLOORS) + 1))


def test_the_ground_floor_is_the_one_of_the_house() -> None:
    said = on_own_floor()
    assert {package: said.get(package, set()) for package in GROUND} == GROUND


def test_every_package_has_a_floor() -> None:
    assert {package_of(path) for path in FILES} == set(floors())


def test_imports_are_the_ones_of_the_page() -> None:
    floor_of, imported = floors(), defaultdict(set)
    for path in FILES:
        imported[package_of(path)] |= imported_packages(path) - {package_of(path), "lightning"}
    beside = {
        package: {other for other in others if floor_of[other] == floor_of[package]}
        for package, others in imported.items()
    }
    said = on_own_floor()
    assert {package: others for package, others in beside.items() if others} == {
        package: others for package, others in said.items() if others
    }
    upwards = {
        (package, other)
        for package, others in imported.items()
        for other in others
        if floor_of[other] > floor_of[package]
    }
    assert upwards == set()


@pytest.mark.parametrize("floor", [0, 1])
def test_no_lightning_on_the_lower_floors(floor: int) -> None:
    for path in FILES:
        if floors()[package_of(path)] == floor:
            assert "lightning" not in imported_packages(path), path


def test_files_of_ideas_are_there() -> None:
    rows = table_under("| idea | file |")
    named = {name for _, files in rows for name in names_in(files)}
    assert {name for name in named if not (PACKAGE / name).is_file()} == set()
    of_text = set(re.findall(r"`((?:callbacks|batchnorm|datamodules|reporting)/[\w/]+\.py)`", PAGE))
    assert {name for name in of_text if not (PACKAGE / name).is_file()} == set()
    assert {path.split("/")[0].removesuffix(".py") for path in named} >= {
        package for package, floor in floors().items() if floor in (1, 2, 3)
    }
