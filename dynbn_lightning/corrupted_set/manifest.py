"""What a corrupted set was asked to be, on disk beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dynbn_lightning.corruptions import CORRUPTIONS
from dynbn_lightning.errors import OutputError
from dynbn_lightning.files import whole_file

SCHEMA_VERSION = 1


class Manifest:
    """What was asked for and which corruptions are whole, in a file beside the set.

    Args:
        path: of the file.
        asked: what decides the pixels and where they lie. `source` is there for readers: the checksum decides.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path, self.asked = path, asked
        self.whole: set[str] = set()

    def is_there(self) -> bool:
        """Whether a run has begun here."""
        return self.path.exists()

    def check(self) -> None:
        """`OutputError`, which names the differences, unless the file says that the same was asked for."""
        try:
            content = json.loads(self.path.read_text())
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {content['schema_version']}")
            there, self.whole = dict(content["asked"]), set(content["whole"])
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{self.path} says nothing of a corrupted set ({error!r}): choose another output folder"
            ) from error
        differences = [
            f"{key} {there.get(key)!r} there, {value!r} now"
            for key, value in self.asked.items()
            if key != "source" and there.get(key) != value
        ]
        if differences:
            raise OutputError(
                f"{self.path.parent} holds another corrupted set, of {there.get('source')!r}: "
                f"{'; '.join(differences)}; choose another output folder, or ask for what is there"
            )

    def write(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "asked": self.asked,
            "whole": [corruption for corruption in CORRUPTIONS if corruption in self.whole],
        }
        with whole_file(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    def is_whole(self, corruption: str) -> bool:
        """Whether a corruption is whole."""
        return corruption in self.whole

    def note(self, corruption: str, *, whole: bool) -> None:
        """Write down whether a corruption is whole."""
        if whole != (corruption in self.whole):
            self.whole ^= {corruption}
            self.write()
