"""What `dynbn corrupt` says of a set that it wrote, in a file beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...corruptions import SEVERITIES
from ...errors import DataError

FILE = "dynbn_corrupt.json"


@dataclass(frozen=True)
class WrittenSet:
    """A set that was not released but written by `dynbn corrupt`.

    Attributes:
        source: the images that were corrupted.
        severities: in the order of their blocks.
        corruptions: those that are whole.
        how: what else decided the pixels, in words.
    """

    source: str
    severities: tuple[int, ...]
    corruptions: tuple[str, ...]
    how: str

    @classmethod
    def read(cls, folder: Path) -> WrittenSet | None:
        """What the file in a folder says; None if there is none, as in released sets.

        Raises:
            DataError: if it is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            asked = content["asked"]
            return cls(
                source=str(asked["source"]),
                severities=tuple(int(severity) for severity in asked["severities"]),
                corruptions=tuple(str(name) for name in content["whole"]),
                how=f"dynbn corrupt {asked['version']}, preset {asked['preset']}, seed {asked['seed']}, "
                f"{asked['image_format'] or 'arrays'}",
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} says nothing of a corrupted set ({error!r}): write the set anew, or remove the file if the "
                f"set is a released one, with severities {SEVERITIES}"
            ) from error
