"""Several results side by side: which entries there are, how sure each number is, and what it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.metrics import BASELINES, Baseline, Interval, PairedIntervals, paired_bootstrap
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.results import errors, method_blocks, read_results

SOURCE = "source"

_SAME_IMAGES = ("fingerprint", "source", "preset", "frost_textures", "seed", "test_images", "image_size")


@dataclass(frozen=True, eq=False)
class Entry:
    """One method on one stream with one batch size, of one results folder.

    Attributes:
        folder: where the results are.
        title: of the folder, empty where there is but one.
        protocol: what the results say of how they were made.
        stream: the order that images arrived in.
        batch_size: images per batch.
        method: its name.
        block: its numbers, as `results.json` has them.
    """

    folder: Path
    title: str
    protocol: dict[str, Any]
    stream: str
    batch_size: int
    method: str
    block: dict[str, Any]

    @property
    def label(self) -> str:
        """The method's name, after the folder's where there are several."""
        return f"{self.title}: {self.method}" if self.title else self.method

    @cached_property
    def records(self) -> ImageRecords | None:
        """The record of each image; None where none were kept, or `results.json` was copied without them."""
        name = self.block.get("records")
        if name is None or not (self.folder / name).parent.is_dir():
            return None
        return ImageRecords.load(self.folder / name)[0]

    @property
    def intervals(self) -> PairedIntervals | None:
        """The accuracy of each cell, and its mean over them, with bounds; None without records of all cells."""
        return accuracy_intervals(self, tuple(self.block["cells"]))

    @property
    def clean_interval(self) -> Interval | None:
        """The accuracy on clean images, with bounds; None without records of them."""
        intervals = accuracy_intervals(self, ("clean",))
        return None if intervals is None else intervals.mean


@lru_cache(maxsize=1024)
def accuracy_intervals(entry: Entry, cells: tuple[str, ...]) -> PairedIntervals | None:
    """The accuracy in each of some cells, and its mean over them, with bounds.

    None without records of two or more images that were shown in each of them.
    """
    correct = None if entry.records is None else entry.records.correct_by_cell(cells)
    return None if correct is None or len(correct) < 2 else paired_bootstrap(correct, torch.zeros_like(correct))


@lru_cache(maxsize=1024)
def difference(first: Entry, second: Entry) -> PairedIntervals | None:
    """How much more often the first is right, in each of the first's cells and over them; None if nothing pairs."""
    cells = tuple(first.block["cells"])
    return _paired(first, second, cells) if set(cells) == set(second.block["cells"]) else None


@lru_cache(maxsize=1024)
def clean_difference(first: Entry, second: Entry) -> Interval | None:
    """How much more often the first is right on clean images; None if nothing pairs."""
    intervals = _paired(first, second, ("clean",))
    return None if intervals is None else intervals.mean


def _paired(first: Entry, second: Entry, cells: tuple[str, ...]) -> PairedIntervals | None:
    """None unless both have records of the same images, two or more, in each of the cells."""
    if first.records is None or second.records is None:
        return None
    one, other = first.records.correct_by_cell(cells), second.records.correct_by_cell(cells)
    if one is None or other is None or len(one) < 2:
        return None
    if not torch.equal(first.records.images_of(cells[0]), second.records.images_of(cells[0])):
        return None
    return paired_bootstrap(one, other)


@dataclass(frozen=True)
class Comparison:
    """The entries of one or more results folders.

    Attributes:
        entries: in the order of folders, streams, batch sizes and methods.
        unfinished: for each folder whose run was interrupted, what is missing from it, in words.
        baseline: the denominators of corruption errors; None where there are none that fit.
    """

    entries: tuple[Entry, ...]
    unfinished: dict[Path, str]
    baseline: Baseline | None = None

    @classmethod
    def read(cls, folders: Sequence[Path], baseline: str | Path | None = None) -> Comparison:
        """Read the results in some folders.

        Args:
            folders: each with a `results.json`; one or more different ones.
            baseline: a name in `metrics.BASELINES`, or results whose source is the baseline; by default the one that
                the literature has for the data, if there is one.

        Raises:
            DataError: if a folder holds no results, or there is no such baseline.
        """
        folders = [folder_of(path) for path in folders]
        if not folders or len({folder.resolve() for folder in folders}) != len(folders):
            raise DataError(f"expected one or more different folders of results, got {[str(one) for one in folders]}")
        found = {folder: read_results(folder) for folder in folders}
        titles = _titles(folders)
        entries = tuple(
            Entry(folder, titles[folder], results["protocol"], stream, size, method, block)
            for folder, results in found.items()
            for stream, size, method, block in method_blocks(results)
        )
        if not entries and not any(results.get("missing") for results in found.values()):
            raise DataError(f"there are no results in {', '.join(map(str, folders))}")
        unfinished = {
            folder: ", ".join(results["missing"]) for folder, results in found.items() if results.get("missing")
        }
        chosen = usual_baseline([results["protocol"] for results in found.values()])
        return cls(entries, unfinished, chosen if baseline is None else find_baseline(baseline))

    def source_of(self, entry: Entry) -> Entry | None:
        """The unpatched model on the same stream with the same batch size; None if it wasn't run.

        That of the same folder, or else of another one with the same weights on the same images.
        """
        same_folder = self.other(entry, SOURCE)
        if same_folder is not None:
            return same_folder
        place = (entry.stream, entry.batch_size, SOURCE)
        its = [entry.protocol.get(key) for key in _SAME_IMAGES]
        return next(
            (
                one
                for one in self.entries
                if (one.stream, one.batch_size, one.method) == place
                and None not in its
                and [one.protocol.get(key) for key in _SAME_IMAGES] == its
            ),
            None,
        )

    def other(self, entry: Entry, method: str) -> Entry | None:
        """Another method on the entry's stream with its batch size; None if it wasn't run."""
        place = (entry.folder, entry.stream, entry.batch_size, method)
        found = (one for one in self.entries if (one.folder, one.stream, one.batch_size, one.method) == place)
        return next(found, None)


def folder_of(path: Path) -> Path:
    """The folder of some results: `path`, or where it lies if it is the `results.json` itself."""
    return path.parent if path.name == "results.json" else path


def _titles(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell the folders apart; empty for one alone."""
    if len(folders) == 1:
        return {folders[0]: ""}
    parts = [folder.resolve().parts for folder in folders]
    length = next(
        count for count in range(1, 1 + max(map(len, parts))) if len({part[-count:] for part in parts}) == len(parts)
    )
    return {folder: "/".join(part[-length:]) for folder, part in zip(folders, parts, strict=True)}


def usual_baseline(protocols: Sequence[dict[str, Any]]) -> Baseline | None:
    """The baseline that the literature has for the data that these results are of; None if there is none for all."""
    usual = {"cifar10": "benz-cifar10", "cifar100": "benz-cifar100", "imagenet": "alexnet"}
    names = {usual.get(str(protocol.get("source", "")).lower().replace("-", "")) for protocol in protocols}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else BASELINES[name]


def find_baseline(baseline: str | Path) -> Baseline:
    """A baseline by its name, or the source of some results; `DataError` if there is neither."""
    if str(baseline) in BASELINES:
        return BASELINES[str(baseline)]
    if not Path(baseline).exists():
        hint = did_you_mean(str(baseline), BASELINES)
        raise DataError(f"there is no baseline {str(baseline)!r}, nor results there: {hint}")
    results = read_results(Path(baseline))
    block = next((block for *_, method, block in method_blocks(results) if method == SOURCE), None)
    if block is None:
        raise DataError(f"{baseline} has no results of the source, which would be the baseline")
    model = results["protocol"].get("model", "the source")
    return Baseline.from_errors(f"{model} in {Path(baseline)}", errors(block))
