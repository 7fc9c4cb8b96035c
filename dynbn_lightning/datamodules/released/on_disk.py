"""Where the files of a released set lie: found, checked for what is missing, downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ...corruptions import cells_of
from ...corruptions.cells import SEVERITIES, check_corruption_name
from ...errors import DataError, did_you_mean, first_few
from .archive import Archive, one_at_a_time
from .layout import Layout


class SetOnDisk:
    """The files of a set.

    Args:
        root: the folder that holds the set's folder, or that folder itself.
        download: whether what is missing may be fetched.
        numbering: the names of the classes in the order of the labels, where that is not the usual one.

    Raises:
        DataError: if it has no archives to fetch, or lies in a folder that they don't belong into.
    """

    layout_type: ClassVar[type[Layout]]
    title: ClassVar[str]
    """What the set is called."""
    folders: ClassVar[tuple[str, ...]]
    """What its folder may be called; the first one is made where it is downloaded."""
    nominal_size: ClassVar[int]
    """The side of its images in pixels, as released."""
    own_corruptions: ClassVar[tuple[str, ...]]
    """Those it has by default."""
    more_corruptions: ClassVar[tuple[str, ...]] = ()
    """Others that it may have."""
    archives: ClassVar[tuple[Archive, ...]] = ()
    no_archive: ClassVar[str] = "has no official archive"
    """What to say of `download=True` where there are no archives."""

    def __init__(self, root: str | Path, download: bool, numbering: Sequence[str] | None) -> None:
        self.root, self.download, self.numbering = Path(root), download, numbering
        if isinstance(numbering, str) or (numbering is not None and len(set(numbering)) != len(numbering)):
            raise DataError(f"classes={numbering!r}: expected the names of different classes")
        if download and not self.archives:
            raise DataError(f"{self.title} {self.no_archive}")
        if download and self.is_there and self.layout.written is not None:
            raise DataError(
                f"{self.layout.folder} was written by dynbn corrupt, and {self.title} can't be downloaded into it: "
                "leave out download=True to read it, or pass another root="
            )

    @cached_property
    def layout(self) -> Layout:
        """The set's files; `DataError` if it is not there, or what `dynbn corrupt` says of it is damaged."""
        if (folder := self._folder()) is not None:
            return self.layout_type(folder, self.title, self.numbering)
        known = self.own_corruptions + self.more_corruptions
        hints = filter(None, (self.layout_type.hint(place, known) for place in self._places()))
        if hint := next(hints, ""):
            raise DataError(f"{hint}: expected {self.layout_type.expected} of {self.title}; get what is missing")
        can = ", or pass download=True to fetch it" if self.archives else f"; it {self.no_archive}"
        raise DataError(
            f"{self.title} is not in {str(self.root.absolute())!r}: expected {self.layout_type.expected}, there or "
            f"in a folder {' or '.join(self.folders)}; pass root= with the folder that holds it"
            + (", or call prepare() to download it" if self.download else can)
        )

    @property
    def is_there(self) -> bool:
        """Whether there are files of the set, if not all."""
        return "layout" in vars(self) or self._folder() is not None

    def _places(self) -> list[Path]:
        return [*(self.root / name for name in self.folders), self.root]

    def _folder(self) -> Path | None:
        known = self.own_corruptions + self.more_corruptions
        return next((one for one in self._places() if one.is_dir() and self.layout_type.is_in(one, known)), None)

    def severities_of(self, corruptions: Sequence[str]) -> tuple[int, ...]:
        """The severities that all these corruptions have."""
        return self.layout.severities_of(corruptions) if self.is_there else SEVERITIES

    def check(self, corruptions: Sequence[str] = (), severities: Sequence[int] | None = None) -> None:
        """Raise `DataError`, naming what is missing and where, unless the set has all these cells.

        Args:
            corruptions: names.
            severities: by default those that the corruptions have.
        """
        for name in corruptions:
            self._checked_name(name)
        if self.download and self._lacking(corruptions):
            return  # it will be fetched
        layout = self.layout
        lacking = [severity for severity in severities or () if severity not in layout.severities]
        if lacking:
            raise DataError(
                f"{layout.folder} has no severity {', '.join(map(str, lacking))}: pass severities= with some of "
                f"{', '.join(map(str, layout.severities))}"
            )
        cells = cells_of(corruptions, severities or layout.severities_of(corruptions))
        missing = list(dict.fromkeys(name for cell in cells if (name := layout.missing(cell))))
        if missing:
            can = ", or pass download=True to fetch it" if self.archives else ""
            raise DataError(
                f"{self.title} in {str(layout.folder.absolute())!r} lacks {first_few(missing)}: choose other "
                f"corruptions= or severities=, or put what is missing there{can}"
            )

    def fetch(self, corruptions: Sequence[str]) -> None:
        """Download what is missing, if that was asked for.

        What else the same archives hold, and is not there, is put there too.

        Args:
            corruptions: those that are needed.

        Raises:
            DataError: if it can't be downloaded.
            OutputError: if it can't be written.
        """
        wanted = list(map(self._checked_name, corruptions))
        if not self.download or not self._lacking(wanted):
            return
        with one_at_a_time(self.root, self.folders[0]):
            for archive in self.archives:
                lacking = [name for name in self._lacking(wanted) if name in archive.corruptions]
                if lacking:
                    folder, others = self.root / self.folders[0], archive.corruptions
                    if self.is_there:
                        folder, others = self.layout.folder, tuple(self.layout.absent(others))
                    of = self.layout_type
                    archive.fetch(self.root, folder, of.entries(lacking), of.is_whole, of.entries(others))

    def _lacking(self, corruptions: Sequence[str]) -> list[str]:
        return self.layout.lacking(corruptions) if self.is_there else list(corruptions)

    def _checked_name(self, name: str) -> str:
        check_corruption_name(name)
        known = self.own_corruptions + self.more_corruptions
        if name not in known:
            raise DataError(f"{self.title} has no {name!r}: {did_you_mean(name, known)}")
        return name
