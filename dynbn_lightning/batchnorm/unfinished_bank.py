"""The finished rows of a collection that has more to measure, in a file beside the one that the bank will have."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dynbn_lightning.errors import BankError, first_few
from dynbn_lightning.files import check_output_folder


class RowsOfAModel(Protocol):
    """What every kind of bank has."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Their names, the first one `clean`."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the model's weights, by precision."""


Bank = TypeVar("Bank", bound=RowsOfAModel)


class UnfinishedBank(Generic[Bank]):
    """The finished rows of a collection.

    Args:
        path: of the bank that they become.
        load: reads a bank of this kind, and raises `BankError` if it is damaged.
        settings_of: what decided a bank's rows, beside its model, by name; as a file has it.
    """

    def __init__(
        self, path: Path, load: Callable[[Path], Bank], settings_of: Callable[[Bank], Mapping[str, Any]]
    ) -> None:
        self._path, self._load, self._settings_of = path, load, settings_of
        self.rows_so_far = path.with_name(f"{path.stem}.unfinished{path.suffix}")

    def begin(self, settings: Mapping[str, Any], fingerprints: Mapping[str, str], rows: Sequence[str]) -> Bank | None:
        """The bank that an interrupted collection of `rows`, which follow row 0, left; None if there is none.

        Raises:
            OutputError: if nothing can be written there.
            BankError: if what is there is damaged or comes from another collection.
        """
        check_output_folder(self._path.parent)
        if not self.rows_so_far.exists():
            return None
        kept = self._load(self.rows_so_far)
        measured = kept.rows[1:]
        found = differences(self._settings_of(kept), settings)
        if measured != tuple(rows)[: len(measured)]:
            found.append(f"rows: {first_few(measured)} there, {first_few(rows)} here")
        if dict(kept.fingerprints) != dict(fingerprints):
            found.append("the model")
        if found:
            raise BankError(
                f"{self.rows_so_far} holds the first rows of another collection ({'; '.join(found)}): "
                "remove it to begin anew, or write to another path"
            )
        return kept

    def finish(self) -> None:
        """Give the file its name, now that all rows are in it."""
        self.rows_so_far.replace(self._path)


def as_in_a_file(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance as it comes back from a file, tuples as lists; `BankError` if it cannot be written as JSON."""
    try:
        read: dict[str, Any] = json.loads(json.dumps(dict(provenance)))
    except (TypeError, ValueError) as error:
        raise BankError(f"the provenance of these loaders cannot be written as JSON: {error}") from error
    return read


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between the settings that a file was made with and a call's, a phrase each."""
    return [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]
