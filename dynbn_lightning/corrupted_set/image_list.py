"""What images a corrupted set is made of: their labels, the names that their files get, and a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.errors import DataError

_READ_FILES = 100
_DIGEST_BYTES = 16


class ImageList:
    """The labels, names and checksum of some images; those of a folder are known without decoding any.

    Args:
        images: in the order that they are numbered in.
    """

    def __init__(self, images: PixelDataset) -> None:
        self.images = images
        dataset: Any = images.dataset
        self._folder = dataset if isinstance(dataset, ImageFolder) and dataset.transforms is None else None
        self._classes = [str(name) for name in getattr(dataset, "classes", [])]

    @cached_property
    def labels(self) -> list[int]:
        """The label of each image."""
        if self._folder is not None:
            return [int(label) for label in self._folder.targets]
        return [self.images[index][1] for index in range(len(self.images))]

    def file_names(self) -> list[str]:
        """`CLASS/NAME` of each image, without a suffix.

        Sorted, the class folders are in the order of the labels, so that `ImageFolder` gives the same ones: where the
        names of the classes alone would not be, they begin with the label. Images without a name are numbered.

        Raises:
            DataError: if two images would get one name.
        """
        folders = self._class_folders()
        if self._folder is not None:
            names = [Path(path).stem for path, _ in self._folder.samples]
        else:
            names = [f"{index:0{len(str(len(self.images) - 1))}}" for index in range(len(self.images))]
        found: dict[str, int] = {}
        for index, (label, name) in enumerate(zip(self.labels, names, strict=True)):
            file = f"{folders[label]}/{name}"
            if file in found:
                raise DataError(f"images {found[file]} and {index} would both be {file}: rename one of them")
            found[file] = index
        return list(found)

    def _class_folders(self) -> dict[int, str]:
        labels = sorted(set(self.labels))
        width = len(str(labels[-1]))
        numbers = {label: f"{label:0{width}}" for label in labels}
        classes = self._classes
        if labels[0] < 0 or labels[-1] >= len(classes) or any("/" in name or "\\" in name for name in classes):
            return numbers
        if classes == sorted(set(classes)):
            return {label: classes[label] for label in labels}
        return {label: f"{numbers[label]}_{classes[label]}" for label in labels}

    @cached_property
    def checksum(self) -> str:
        """Differs when the images do: from all pixels and labels, or, for a folder, its `files_checksum`.

        Raises:
            DataError: if a file cannot be read.
        """
        if self._folder is not None:
            return files_checksum(Path(self._folder.root), [Path(path) for path, _ in self._folder.samples])
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for index in range(len(self.images)):
            pixels, label = self.images[index]
            digest.update(f"{tuple(pixels.shape)} {label}\n".encode())
            digest.update(pixels.numpy().tobytes())
        return digest.hexdigest()


def files_checksum(folder: Path, files: Sequence[Path]) -> str:
    """Differs when files in a folder do: from the names and sizes of all, and what is in a hundred, evenly spread.

    Raises:
        DataError: if one of them cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        for file in files:
            digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
        for file in files[:: -(-len(files) // _READ_FILES)]:
            digest.update(file.read_bytes())
    except OSError as error:
        raise DataError(f"a file cannot be read: {error}") from error
    return digest.hexdigest()
