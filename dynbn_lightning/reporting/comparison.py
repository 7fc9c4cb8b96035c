"""Several results side by side: which entries there are, how sure each number is, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from dynbn_lightning.errors import DataError, did_you_mean
from dynbn_lightning.metrics import BASELINES, Baseline, Interval, PairedIntervals, paired_bootstrap
from dynbn_lightning.metrics.bootstrap import forget_draws
from dynbn_lightning.reporting.records import ImageRecords
from dynbn_lightning.reporting.results import errors, method_blocks, read_results

SOURCE = "source"

_KNOWN = ("fingerprint", "source")
_SAME_IMAGES = (
    *("preset", "frost_textures", "seed", "test_images", "image_size", "images_fingerprint"),
    *("normalization", "precision"),
)


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

    @property
    def is_unfinished(self) -> bool:
        """Whether the method was interrupted: its numbers are of the images so far, and compare with no others."""
        return bool(self.block.get("unfinished"))

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
def shared_cells(first: Entry, second: Entry) -> frozenset[str]:
    """The cells, `clean` too, in which two methods may be compared: none unless both are finished.

    Where both have records these tell whether the images of a cell were the same; else they are taken to be.
    """
    if first.is_unfinished or second.is_unfinished:
        return frozenset()
    cells = set(first.block["cells"]) & set(second.block["cells"])
    cells |= {"clean"} if first.block["clean"] is not None and second.block["clean"] is not None else set()
    one, other = first.records, second.records
    if one is None or other is None:
        return frozenset(cells)
    return frozenset(cell for cell in cells if torch.equal(one.images_of(cell), other.images_of(cell)))


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
    """None unless both are finished and have records of the same images, two or more, in each of the cells."""
    if first.is_unfinished or second.is_unfinished or first.records is None or second.records is None:
        return None
    one, other = first.records.correct_by_cell(cells), second.records.correct_by_cell(cells)
    if one is None or other is None or len(one) < 2:
        return None
    if not torch.equal(first.records.images_of(cells[0]), second.records.images_of(cells[0])):
        return None
    return paired_bootstrap(one, other)


def forget() -> None:
    """Free what is kept for the next look at the same entries: their records and intervals, and the draws for these."""
    for kept in (accuracy_intervals, shared_cells, difference, clean_difference):
        kept.cache_clear()
    forget_draws()


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
        """The unpatched model on the same stream with the same batch size; None if it wasn't run to its end.

        That of the same folder, or else of another one with the same weights on the same images.
        """
        same_folder = self.other(entry, SOURCE)
        if same_folder is not None and not same_folder.is_unfinished:
            return same_folder
        place = (entry.stream, entry.batch_size, SOURCE)
        if any(entry.protocol.get(key) is None for key in _KNOWN):
            return None
        return next(
            (
                one
                for one in self.entries
                if (one.stream, one.batch_size, one.method) == place
                and not one.is_unfinished
                and _is_alike(one.protocol, entry.protocol)
            ),
            None,
        )

    def other(self, entry: Entry, method: str) -> Entry | None:
        """Another method on the entry's stream with its batch size; None if it wasn't run."""
        place = (entry.folder, entry.stream, entry.batch_size, method)
        found = (one for one in self.entries if (one.folder, one.stream, one.batch_size, one.method) == place)
        return next(found, None)


def data_used(protocol: Mapping[str, Any]) -> tuple[str, Any]:
    """Which images were shown, `test` or `validation`, and how many batches of them, `all` or a Trainer's limit.

    Where nothing is said it was all of the test images: so does `evaluate`.
    """
    return protocol.get("split") or "test", "all" if (limit := protocol.get("limit_batches")) is None else limit


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two protocols are of the same weights on the same images; what neither says is no difference."""
    same = all(one.get(key) == other.get(key) for key in (*_KNOWN, *_SAME_IMAGES))
    return same and data_used(one) == data_used(other)


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
    usual = {
        **dict.fromkeys(("cifar10", "cifar10c"), "benz-cifar10"),
        **dict.fromkeys(("cifar100", "cifar100c"), "benz-cifar100"),
        **dict.fromkeys(("imagenet", "imagenetc"), "alexnet"),
    }
    names = {usual.get(str(protocol.get("source", "")).lower().replace("-", "")) for protocol in protocols}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else BASELINES[name]


def find_baseline(baseline: str | Path) -> Baseline:
    """A baseline by its name, or the source of some results; `DataError` if there is neither, or not all of it."""
    if str(baseline) in BASELINES:
        return BASELINES[str(baseline)]
    if not Path(baseline).exists():
        hint = did_you_mean(str(baseline), BASELINES)
        raise DataError(f"there is no baseline {str(baseline)!r}, nor results there: {hint}")
    results = read_results(Path(baseline))
    blocks = [block for *_, method, block in method_blocks(results) if method == SOURCE]
    if not blocks:
        raise DataError(f"{baseline} has no results of the source, which would be the baseline")
    block = next((block for block in blocks if not block.get("unfinished")), None)
    if block is None:
        raise DataError(f"the source in {baseline} is unfinished, and no baseline: run it to its end first")
    model = results["protocol"].get("model", "the source")
    return Baseline.from_errors(f"{model} in {Path(baseline)}", errors(block))
