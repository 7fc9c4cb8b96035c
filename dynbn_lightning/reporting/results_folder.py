"""A folder in which the results of one model on one data set gather, method by method, and survive interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dynbn_lightning.errors import DataError
from dynbn_lightning.files import FolderLock, check_output_folder, os_errors_named
from dynbn_lightning.reporting.examples import example_path, read_examples
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.results import SCHEMA_VERSION, block_of, method_blocks, read_results, write_results


class Piece(NamedTuple):
    """One method on one stream with one batch size."""

    stream: str
    batch_size: int
    method: str

    def __str__(self) -> str:
        return f"{self.method} on the {self.stream} stream in batches of {self.batch_size}"


class ResultsFolder:
    """Reads what a folder has, adds to it piece by piece, and refuses what was made with other settings.

    `results.json` is whole at any time: after each piece it is written anew, with what is still missing. What goes
    wrong while writing, such as a full disk, is an `OutputError`.

    Args:
        path: the folder, made when something is written; None to keep results in memory alone, without records.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = FolderLock()
        self._results: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "protocol": {}, "settings": {}, "runs": []}

    def begin(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
        """Take in what is there, if it was made with the same settings.

        Args:
            settings: whatever decides the numbers; what is None here or there may be anything.
            protocol: what should be said beside the numbers.

        Raises:
            DataError: if the folder holds results that were made with other settings, or of another schema.
            OutputError: if nothing can be written there, or another run is writing.
        """
        settings, protocol = (json.loads(json.dumps(given)) for given in (settings, protocol))
        if self.path is not None:
            check_output_folder(self.path)
            self._lock.take(self.path)
        if self.path is not None and (self.path / "results.json").exists():
            there = read_results(self.path)
            differences = list(_differences(there.get("settings", {}), settings))
            if differences:
                raise DataError(
                    f"{self.path} holds results that were made with other settings ({'; '.join(differences)}), and "
                    "they are not mixed: write to another folder, or remove that one"
                )
            self._results = there
        known = self._results.setdefault("settings", {})
        known.update({key: value for key, value in settings.items() if value is not None or key not in known})
        self.say(**protocol)

    def close(self) -> None:
        """Let others write to the folder."""
        self._lock.give_back()

    def check(self, piece: Piece, settings: Mapping[str, Any]) -> None:
        """Raise `DataError` if the folder has a piece of this name that was made in another way.

        Args:
            piece: which piece.
            settings: of the callbacks that make it, which its block holds too.
        """
        there = self._methods(piece).get(piece.method, {}).get("settings")
        if there is None:
            return
        differences = list(_differences(there, json.loads(json.dumps(settings)), exact=True))
        if differences:
            raise DataError(
                f"{self.path} has results of {piece} that were made in another way ({'; '.join(differences)}): give "
                "one of them another name (the callback's method=), or write to another folder"
            )

    def say(self, **protocol: Any) -> None:
        """Add to what is said beside the numbers; what is None leaves what was said before."""
        known = self._results["protocol"]
        known.update({key: value for key, value in protocol.items() if value is not None or key not in known})

    def clear(self) -> None:
        """Remove the results that are there, with their records and examples, and nothing else."""
        if self.path is None or not (self.path / "results.json").exists():
            return
        try:
            there = read_results(self.path)
        except DataError:
            return  # somebody else's, or an older version's
        (self.path / "results.json").unlink()
        for *_, block in method_blocks(there):
            if "records" in block:
                (self.path / block["records"]).unlink(missing_ok=True)
        for example in read_examples(self.path):
            example_path(self.path, example.cell, example.index).unlink(missing_ok=True)

    @property
    def results(self) -> dict[str, Any]:
        """The results so far, as `results.json` has them."""
        return self._results

    def block(self, piece: Piece) -> dict[str, Any] | None:
        """The numbers of a finished piece; None if it isn't finished."""
        block = self._methods(piece).get(piece.method)
        return None if block is None or block.get("unfinished") else block

    def unfinished(self, piece: Piece) -> tuple[ImageRecords, dict[str, Any]] | None:
        """What `keep` kept of a piece; None if nothing."""
        block = self._methods(piece).get(piece.method)
        if self.path is None or block is None or not block.get("unfinished"):
            return None
        file = self.path / block["records"]
        return ImageRecords.load(file) if file.is_file() else None

    def keep(self, piece: Piece, records: ImageRecords, about: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        """Write down what there is of a piece; `about` must tell how to go on with it, `more` stands in its block."""
        if self.path is None:
            return
        name = _file_name(piece, unfinished=True)
        with os_errors_named(self.path):
            records.save(self.path / name, about)
        self._methods(piece)[piece.method] = {**block_of(records), **more, "unfinished": True, "records": name}

    def finish(self, piece: Piece, records: ImageRecords, more: Mapping[str, Any]) -> dict[str, Any]:
        """Write a piece's records; `more` stands in its block beside the numbers. Returns the block."""
        block = {**block_of(records), **more}
        if self.path is not None:
            block["records"] = _file_name(piece)
            with os_errors_named(self.path):
                records.save(self.path / block["records"], piece._asdict())
        self.add(piece, block)
        return block

    def add(self, piece: Piece, block: Mapping[str, Any]) -> None:
        """Give a piece its block."""
        self._methods(piece)[piece.method] = dict(block)

    def write(self, missing: Sequence[Piece] = ()) -> None:
        """Write `results.json`, saying what is still missing, and remove what it no longer needs."""
        unfinished = [
            Piece(stream, size, method)
            for stream, size, method, block in method_blocks(self._results)
            if block.get("unfinished")
        ]
        self._results["missing"] = list(dict.fromkeys(str(piece) for piece in (*missing, *unfinished)))
        if self.path is None:
            return
        with os_errors_named(self.path):
            write_results(self._results, self.path)
            used = {block.get("records") for *_, block in method_blocks(self._results)}
            for left in (self.path / "images").glob("*.unfinished.safetensors"):
                if f"images/{left.name}" not in used:
                    left.unlink(missing_ok=True)

    def _methods(self, piece: Piece) -> dict[str, Any]:
        runs: list[dict[str, Any]] = self._results["runs"]
        for run in runs:
            if (run["stream"], run["batch_size"]) == (piece.stream, piece.batch_size):
                methods: dict[str, Any] = run["methods"]
                return methods
        runs.append({"stream": piece.stream, "batch_size": piece.batch_size, "methods": {}})
        added: dict[str, Any] = runs[-1]["methods"]
        return added


def _file_name(piece: Piece, *, unfinished: bool = False) -> str:
    method = quote(piece.method, safe="").replace("-", "%2D").replace("%2F", "--")  # none like another's
    return f"images/{piece.stream}-{piece.batch_size}-{method}{'.unfinished' if unfinished else ''}.safetensors"


def _differences(there: Any, here: Any, name: str = "", *, exact: bool = False) -> Iterator[str]:
    """What differs, in words; unless `exact`, what is None or lacking on one side doesn't."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else key, exact=exact)
    elif there != here and (exact or (there is not None and here is not None)):
        yield f"{name}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
