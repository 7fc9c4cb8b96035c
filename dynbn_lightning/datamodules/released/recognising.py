"""Folders and names that were meant to be released sets, for those who pass them as plain images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...corruptions import ALL_CORRUPTIONS, SEVERITIES
from .folder_layout import GROUPS
from .listing import class_folders
from .released_set import ReleasedSet

_NUMBERS = tuple(map(str, SEVERITIES))


def reader_for(folder: Path, readers: Mapping[str, type[ReleasedSet]]) -> str:
    """What to read a folder with that looks like a released set, or like a part of one; empty if it doesn't.

    Args:
        folder: that is there.
        readers: those there are.

    Returns:
        Arguments of a `CorruptionDataModule`, as code.
    """
    root, inside, chosen = _parts(folder.resolve())
    known = [
        reader
        for reader in readers.values()
        if {*reader.own_corruptions, *reader.more_corruptions} & set(inside) and reader.layout_type.is_in(root, inside)
    ]
    named = [reader for reader in known if root.name in reader.folders]
    return f"test={(named or known)[0].__name__}({str(root)!r}){chosen}" if known else ""


def reader_of_name(name: str, readers: Mapping[str, type[ReleasedSet]]) -> str:
    """The reader that a name is another spelling of, as code like that of `reader_for`; empty if it is none."""
    wanted = _letters(name)
    return next((f"test={one.__name__}('data')" for one in readers.values() if _letters(one.title) == wanted), "")


def _parts(folder: Path) -> tuple[Path, list[str], str]:
    """The folder of the set, names of corruptions in it, and what of it was meant; no names if it is no set."""
    if folder.parent.name in ALL_CORRUPTIONS and folder.name in _NUMBERS:
        name = folder.parent.name
        return folder.parent.parent, [name], f", corruptions=[{name!r}], severities=[{folder.name}]"
    if (folder / "labels.npy").is_file():
        return folder, [path.stem for path in folder.glob("*.npy") if path.name != "labels.npy"], ""
    inside = class_folders(folder)
    if folder.name in ALL_CORRUPTIONS and inside and set(inside) <= set(_NUMBERS):
        return folder.parent, [folder.name], f", corruptions=[{folder.name!r}]"
    if inside and set(inside) <= set(GROUPS):
        inside = [name for group in inside for name in class_folders(folder / group)]
    if not set(inside) <= set(ALL_CORRUPTIONS):
        return folder, [], ""
    # Photographs may be of fog, frost and snow too, but not in folders with a number.
    places = (folder / group / name / number for group in GROUPS for name in inside for number in _NUMBERS)
    return folder, inside if any(place.is_dir() for place in places) else [], ""


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
