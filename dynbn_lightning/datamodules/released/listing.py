"""What images a folder of class folders holds, by name, with no look at any file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, first_few


def list_images(folder: Path, *, inside: str | None = None) -> dict[str, str]:
    """`CLASS/NAME` of each image in the class folders of a folder, without suffix, and its suffix; sorted.

    Args:
        folder: that holds the class folders.
        inside: the name of a folder between class and images, looked into where there is one.

    Raises:
        DataError: if the folder cannot be read, or two images have one name.
    """
    found: dict[str, str] = {}
    try:
        for name in class_folders(folder):
            path = folder / name
            if inside is not None and (path / inside).is_dir():
                path = path / inside
            with os.scandir(path) as entries:
                files = sorted(os.path.splitext(entry.name) for entry in entries if not entry.name.startswith("."))
            for stem, suffix in files:
                if suffix.lower() not in IMG_EXTENSIONS:
                    continue
                if found.setdefault(f"{name}/{stem}", suffix) != suffix:
                    raise DataError(f"{path} has {stem + suffix} and {stem + found[f'{name}/{stem}']}: remove one")
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {error}") from error
    return found


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in order, hidden ones left out; `OSError` if there is no such folder."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def check_same_images(names: Sequence[str], expected: Sequence[str], folder: Path, of: str) -> None:
    """Raise `DataError` unless two lists of names are the same.

    Args:
        names: what is there.
        expected: what should be there.
        folder: where `names` are.
        of: where `expected` are, in words.
    """
    if list(names) == list(expected):
        return
    missing = sorted(set(expected) - set(names))
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(expected)} images that {of} has: {first_few(missing)}; unpack "
            "it again, or choose other cells"
        )
    odd = sorted(set(names) - set(expected))
    raise DataError(
        f"{folder} has {len(odd)} images that {of} lacks: {first_few(odd)}; remove them, or unpack it again"
    )
