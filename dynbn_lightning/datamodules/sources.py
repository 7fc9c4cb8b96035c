"""Where images come from: torchvision's CIFAR sets, folders, any data set, and the embedded default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100, ImageFolder

from ..errors import DataError, did_you_mean, first_few
from .released import RELEASED_SETS, ReleasedSet
from .released.recognising import reader_for, reader_of_name
from .shapes import ShapesDataset

NAMED_SOURCES: tuple[str, ...] = ("shapes", "cifar10", "cifar100")


@dataclass(frozen=True)
class Source:
    """Training images (for detector, bank and classifier) and test images; either may be missing."""

    name: str
    train: Dataset[Any] | None
    test: Dataset[Any] | None


def check_source(source: str | Path | Dataset[Any] | None, test: str | Path | Dataset[Any] | None) -> None:
    """Raise `DataError` for a source that cannot be one, before any work; opens nothing."""
    if source is None and test is None:
        raise DataError(f"no data source: pass a folder, a data set, or one of {', '.join(NAMED_SOURCES)}")
    for given in (source, test):
        if not isinstance(given, (str, Path)) or str(given) in NAMED_SOURCES:
            continue
        if Path(given).is_dir():
            _refuse_released(Path(given))
        else:
            reader = reader_of_name(str(given), RELEASED_SETS)
            hint = f"read that released set with CorruptionDataModule({reader})" if reader else ""
            hint = hint or did_you_mean(str(given), NAMED_SOURCES)
            raise DataError(
                f"there is no data folder {str(Path(given).absolute())!r}, nor a data set of that name; {hint}"
            )
    if test is None and isinstance(source, (str, Path)) and str(source) not in NAMED_SOURCES:
        _split_folder(Path(source), "train")
        _split_folder(Path(source), "test")


def open_source(
    source: str | Path | Dataset[Any] | None, test: str | Path | Dataset[Any] | None, root: str | Path
) -> Source:
    """Open the training and test images that `source` and `test` stand for.

    Args:
        source: a name in `NAMED_SOURCES`, a folder with `train/` and `test/` (or `val/`) in the layout of
            torchvision's `ImageFolder`, or training images: a data set, or with `test` a folder of class folders.
        test: test images, a data set or a folder of class folders; None where `source` brings its own.
        root: where torchvision's data sets lie, or are downloaded to.

    Raises:
        DataError: for missing folders, failed downloads, and training and test images of different classes.
    """
    check_source(source, test)
    if isinstance(test, ReleasedSet):  # whose training images may not be needed: they are opened when they are
        return Source(test.name, None, test)
    if isinstance(source, (str, Path)) and test is None:
        name = str(source)
        if name in NAMED_SOURCES:
            return Source(name, _named(name, root, "train"), _named(name, root, "test"))
        folder = Path(source)
        train_images, test_images = (_folder(_split_folder(folder, split)) for split in ("train", "test"))
        return _same_classes(Source(folder.name, train_images, test_images))
    return _same_classes(Source(_name(source or test), _open_images(source), _open_images(test)))


def open_training_images(source: str | Path | Dataset[Any] | None, released: ReleasedSet, root: str | Path) -> Source:
    """Open training images that stand beside a released set, and may have other test images.

    Args:
        source: a name in `NAMED_SOURCES`, a folder with `train/`, a folder of class folders, a data set, or None.
        released: the test images.
        root: where torchvision's data sets lie, or are downloaded to.

    Raises:
        DataError: for missing folders, failed downloads, and other classes than those of the test images.
    """
    if not isinstance(source, (str, Path)):
        return _same_classes(Source(_name(source), source, released))
    name, folder = str(source), Path(source)
    if name in NAMED_SOURCES:
        return _same_classes(Source(name, _named(name, root, "train"), released))
    train = folder / "train"
    return _same_classes(Source(folder.resolve().name, _folder(train if train.is_dir() else folder), released))


def open_test_images(source: str | Path | Dataset[Any], root: str | Path) -> Source:
    """Open test images alone, where training images need not be there.

    Args:
        source: a name in `NAMED_SOURCES`, a folder with `test/` (or `val/`), a folder of class folders, or a data set.
        root: where torchvision's data sets lie, or are downloaded to.

    Raises:
        DataError: for missing folders and failed downloads.
    """
    check_source(None, source)
    if isinstance(source, (str, Path)):
        name = str(source)
        if name in NAMED_SOURCES:
            return Source(name, None, _named(name, root, "test"))
        folder = Path(source)
        has_splits = any((folder / split).is_dir() for split in ("train", "test", "val"))
        return Source(folder.resolve().name, None, _folder(_split_folder(folder, "test") if has_splits else folder))
    return Source(_name(source), None, source)


def _refuse_released(folder: Path) -> None:
    if reader := reader_for(folder, RELEASED_SETS):
        raise DataError(
            f"{str(folder)!r} looks like corrupted images of a released set, which would be corrupted once more: read "
            f"them with CorruptionDataModule({reader})"
        )


def _same_classes(source: Source) -> Source:
    train, test = (getattr(images, "classes", None) for images in (source.train, source.test))
    if train is not None and test is not None and list(train) != list(test):
        odd = sorted(set(map(str, train)) ^ set(map(str, test)))
        raise DataError(
            f"{source.name} has other classes for training than for testing: "
            + (first_few(odd) if odd else "the same ones in another order")
        )
    return source


def _named(name: str, root: str | Path, split: str) -> Dataset[Any]:
    return ShapesDataset(split) if name == "shapes" else _cifar(name, root, train=split == "train")


def _cifar(name: str, root: str | Path, train: bool) -> Dataset[Any]:
    make: Callable[..., Dataset[Any]] = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        try:
            return make(str(root), train=train)
        except RuntimeError:  # not there, or not whole
            return make(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {str(Path(root).absolute())!r} and could not be downloaded ({error}): "
            "pass root= with the folder that holds it, or a folder with train/ and test/ as source"
        ) from error


def _split_folder(folder: Path, split: str) -> Path:
    for name in ("train",) if split == "train" else ("test", "val"):
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"{str(folder.absolute())!r} has no {split}/ folder: expected train/ and test/ (or val/), each with a folder "
        "per class; for other layouts pass the training images as source and the test images as test"
    )


def _folder(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{str(folder.absolute())!r} has no class folders with images: {error}") from error


def _open_images(images: str | Path | Dataset[Any] | None) -> Dataset[Any] | None:
    if isinstance(images, (str, Path)):
        if str(images) in NAMED_SOURCES:
            raise DataError(f"{str(images)!r} brings its own test images: pass it alone, without test=")
        folder: Dataset[Any] = _folder(Path(images))
        return folder
    return images


def _name(images: str | Path | Dataset[Any] | None) -> str:
    return Path(images).name if isinstance(images, (str, Path)) else type(images).__name__
