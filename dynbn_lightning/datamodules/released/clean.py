"""The uncorrupted images that a released set was made of, for the cell `clean`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, first_few
from ..images import PixelDataset
from .layout import Layout
from .listing import class_folders, list_images

Clean = str | Path | Dataset[Any]


class NamedFiles(Dataset[tuple[Image.Image, int]]):
    """Image files with their classes; `samples` as torchvision's folders have it."""

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples = list(samples)
        self.targets = [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        with Image.open(path) as image:
            return image.convert("RGB"), label


class CleanImages:
    """Clean images, in the order of the corrupted ones.

    Args:
        images: the same images as the set's, with their labels.
        labels: the class of each of the set's images.
        image_size: the side of the set's images: others are resized and cropped by `PixelDataset`'s rule.
        name: what to call them in results.
    """

    def __init__(self, images: Dataset[Any], labels: Sequence[int], image_size: int, name: str) -> None:
        self.name = name
        self._pixels, self._labels = PixelDataset(images, image_size, kept_bytes=0), labels

    def __getitem__(self, index: int) -> Tensor:
        pixels, label = self._pixels[index]
        if label != self._labels[index]:
            raise _other_class(index, label, self._labels[index])
        return pixels

    def path_of(self, index: int) -> str | None:
        """The file of an image, if it is known."""
        return self._pixels.path_of(index, None)


def check_clean(given: Clean | None) -> None:
    """Raise `DataError` for what can be no clean images, before any work."""
    if isinstance(given, (str, Path)):
        if not Path(given).is_dir():
            raise DataError(f"clean={str(given)!r}: there is no such folder")
    elif given is not None and not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise DataError(f"clean={type(given).__name__}: expected a map-style data set, or a folder of class folders")


def open_clean(given: Clean, layout: Layout, chosen: Sequence[int], image_size: int) -> CleanImages:
    """The clean images of those that are chosen of a set.

    Args:
        given: a data set, or a folder of class folders: in the order of the whole set, or with the same names where its
            images have names.
        layout: the set.
        chosen: the numbers of images in the whole set.
        image_size: the side of the set's images.

    Raises:
        DataError: names images that are missing; if there are more or fewer, or of other classes.
    """
    labels = [layout.labels[number] for number in chosen]
    name = Path(given).resolve().name if isinstance(given, (str, Path)) else type(given).__name__
    if isinstance(given, (str, Path)):
        if layout.names is not None:
            files = _by_name(Path(given), [layout.names[number] for number in chosen], labels)
            return CleanImages(files, labels, image_size, name)
        given = _by_order(Path(given))
    assert not isinstance(given, (str, Path))
    sized: Any = given
    if len(sized) != len(layout.labels):
        raise DataError(
            f"the clean images are {len(sized)}, and {layout.title} has {len(layout.labels)} in each cell: they must "
            "be the same images in the same order; pass them as clean="
        )
    targets = getattr(given, "targets", None)
    if targets is not None:
        for index, (label, expected) in enumerate(zip(targets, layout.labels, strict=True)):
            if int(label) != expected:
                raise _other_class(index, int(label), expected)
    whole = list(chosen) == list(range(len(layout.labels)))
    return CleanImages(given if whole else Subset(given, list(chosen)), labels, image_size, name)


def _other_class(index: int, label: int, expected: int) -> DataError:
    return DataError(
        f"clean image {index} is of class {label}, and corrupted image {index} of class {expected}: they must be the "
        "same images in the same order"
    )


def _by_order(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:
        hint = _hint(folder, ())
        raise DataError(f"clean={str(folder)!r} has no class folders with images: {error}{hint}") from error


def _hint(folder: Path, names: Sequence[str]) -> str:
    """Where the class folders seem to be, if not here."""
    inside = {name.partition("/")[0] for name in names}
    if inside & set(class_folders(folder)):
        return ""
    for name in class_folders(folder):
        if inside & set(class_folders(folder / name)):
            return f"; they are one folder further in: did you mean clean={str(folder / name)!r}?"
    flat = any(path.suffix.lower() in IMG_EXTENSIONS for path in folder.iterdir())
    return "; its images lie beside each other: move them into a folder for each class" if flat else ""


def _by_name(folder: Path, names: Sequence[str], labels: Sequence[int]) -> NamedFiles:
    """The images of a folder that have the names `CLASS/NAME`, whatever their suffix."""
    found = list_images(folder, inside="images")
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(
            f"clean={str(folder)!r} lacks {len(missing)} of {len(names)} images: {first_few(missing)}; expected "
            f"CLASS/NAME as in the corrupted set, with any suffix{_hint(folder, names)}"
        )
    nested = {name: (folder / name / "images").is_dir() for name in {name.partition("/")[0] for name in names}}
    samples = []
    for name, label in zip(names, labels, strict=True):
        class_name, _, stem = name.partition("/")
        place = folder / class_name / ("images" if nested[class_name] else "")
        samples.append((str(place / (stem + found[name])), label))
    return NamedFiles(samples)
