"""What a `CorruptionDataModule` accepts, looked at before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from ..corruptions import COMMON_CORRUPTIONS, SEVERITIES, resolve_preset, texture_files
from ..corruptions.cells import check_corruption
from ..errors import DataError, did_you_mean
from .released import ReleasedSet


def check_known(**choices: tuple[str, Any]) -> None:
    """Raise `DataError` unless each choice is one of those known, given as name=(choice, the Literal of them)."""
    for name, (value, literal) in choices.items():
        if value not in (known := get_args(literal)):
            raise DataError(f"{name}={value!r}: {did_you_mean(str(value), known)}")


def check_numbers(**numbers: tuple[int | None, int]) -> None:
    """Raise `DataError` unless each number is None or large enough, given as name=(number, the least)."""
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise DataError(f"{name}={number!r}: expected a whole number of at least {least}")


def chosen_cells(
    test: Any, corruptions: Sequence[str] | None, severities: Sequence[int] | None, image_size: int | None
) -> tuple[Sequence[str], Sequence[int]]:
    """The corruptions and severities that are chosen, or else the test set's, or else the benchmark's.

    Raises:
        DataError: if there is none, one of them twice, or a released set lacks one.
        CorruptionError: for corruptions that can't be generated, where they are not those of a released set.
    """
    released = test if isinstance(test, ReleasedSet) else None
    if corruptions is None:
        corruptions = COMMON_CORRUPTIONS if released is None else released.corruptions
    _check_different("corruptions", corruptions)
    if severities is None:
        severities = SEVERITIES if released is None else released.severities_of(corruptions)
    if isinstance(severities, int):
        raise DataError(f"severities={severities!r}: expected several in a list, as in [{severities}]")
    _check_different("severities", severities)
    for name in corruptions if released is None else ():
        check_corruption(name)
    if released is not None:
        released.check(corruptions, severities)
        released.warn_of_other_size(image_size)
    return corruptions, severities


def _check_different(name: str, values: Sequence[Any]) -> None:
    if isinstance(values, str):
        raise DataError(f"{name}={values!r}: expected one or more different ones in a list, as in [{values!r}]")
    if not values or len(set(values)) != len(values):
        raise DataError(f"{name}={values!r}: expected one or more different ones")


def check_fractions(validation_fraction: float, concentration: float) -> None:
    """Raise `DataError` unless the one lies between 0 and 1 and the other above 0."""
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction={validation_fraction!r} is not between 0 and 1")
    if not 0 < concentration < float("inf"):
        raise DataError(f"concentration={concentration!r}: expected a number above 0")


def check_start(start: int, count: int) -> None:
    """Raise `DataError` unless so many of `count` batches can be left out at the beginning."""
    if not 0 <= start <= count:
        raise DataError(f"start={start!r}: expected a number of batches to leave out, from 0 to all {count}")


def check_corrupting(preset: str, frost_textures: Any) -> None:
    """Raise `CorruptionError` for an unknown preset, or a folder without photographs."""
    resolve_preset(preset, 32, 32)
    if frost_textures is not None:
        texture_files(frost_textures)
