"""The two layouts that CIFAR-10-C and ImageNet-C were released in, written so that every file is whole or not there."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynbn_lightning.errors import OutputError
from dynbn_lightning.files import unfinished_file, whole_file

Pixels = NDArray[np.uint8]
WriteImages = Callable[[int, Sequence[int], Pixels], None]
"""Takes a severity, the numbers of some images, and their pixels (N, H, W, 3)."""
Missing = Mapping[int, NDArray[np.bool_]]
"""For each severity, which images are not written yet."""

JPEG_QUALITY = 85
"""What ImageNet-C and Tiny-ImageNet-C were saved with."""
IMAGE_FORMATS = {"jpeg": ".JPEG", "png": ".png"}


class ReleasedLayout(ABC):
    """Where the images of a corrupted set lie, and which of them are there already.

    Args:
        folder: that holds the set.
        severities: in the order that they are written in.
    """

    def __init__(self, folder: Path, severities: Sequence[int]) -> None:
        self.folder = folder
        self.severities = tuple(severities)

    @abstractmethod
    def entries(self, corruptions: Sequence[str]) -> list[str]:
        """What the set holds, at the top of its folder."""

    @abstractmethod
    def prepare(self) -> None:
        """Write what belongs to no corruption."""

    @abstractmethod
    def missing(self, corruption: str) -> Missing:
        """For each severity, which images are not written yet; `OutputError` for files that are not of this set."""

    @abstractmethod
    def writing(self, corruption: str) -> AbstractContextManager[WriteImages]:
        """Gives the function that writes the missing images of a corruption, all of them in any order."""


class CifarLayout(ReleasedLayout):
    """`fog.npy`, uint8 (severities * N, H, W, 3), a severity after the other, and `labels.npy`, as long.

    Labels are uint8, as released, or int64 if there are more than 256 classes. A corruption is in one file, which
    appears when all its severities are written.

    Args:
        folder: that holds the set.
        severities: in the order of their blocks.
        labels: of the N images.
        image_size: their height and width.
    """

    def __init__(
        self, folder: Path, severities: Sequence[int], labels: Sequence[int], image_size: tuple[int, int]
    ) -> None:
        super().__init__(folder, severities)
        narrow = min(labels) >= 0 and max(labels) <= np.iinfo(np.uint8).max
        self.labels = np.tile(np.array(labels, dtype=np.uint8 if narrow else np.int64), len(self.severities))
        self.count, self.image_size = len(labels), image_size

    def entries(self, corruptions: Sequence[str]) -> list[str]:
        """`labels.npy` and a file per corruption."""
        return ["labels.npy", *(f"{corruption}.npy" for corruption in corruptions)]

    def prepare(self) -> None:
        """Write `labels.npy`; `OutputError` if there are other labels."""
        path = self.folder / "labels.npy"
        if not path.exists():
            with whole_file(path) as temporary:
                np.save(temporary, self.labels)
        elif not np.array_equal(_open_array(path, self.labels.shape, self.labels.dtype), self.labels):
            raise OutputError(f"{path} holds other labels than these images have: {_WHAT_TO_DO}")

    def missing(self, corruption: str) -> Missing:
        """All images if there is no file of the corruption, else none."""
        path = self.folder / f"{corruption}.npy"
        if there := path.exists():
            _open_array(path, self._shape, np.dtype(np.uint8))
        return {severity: np.full(self.count, not there) for severity in self.severities}

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self.labels), *self.image_size, 3)

    @contextmanager
    def writing(self, corruption: str) -> Iterator[WriteImages]:
        """Write into one file, which takes its name at the end."""
        # Not a memory map: on a full disk, writing to one kills the process where a write to a file raises an error.
        with whole_file(self.folder / f"{corruption}.npy") as temporary, temporary.open("wb") as file:
            header = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            first, image_bytes = file.tell(), int(np.prod(self._shape[1:]))

            def write(severity: int, indices: Sequence[int], pixels: Pixels) -> None:
                block = self.severities.index(severity) * self.count
                for index, image in zip(indices, pixels, strict=True):
                    file.seek(first + (block + index) * image_bytes)
                    file.write(image.tobytes())

            yield write


class ImageNetLayout(ReleasedLayout):
    """`fog/3/CLASS/NAME.JPEG`, a file per image.

    Args:
        folder: that holds the set.
        severities: that are written.
        files: `CLASS/NAME` of each image, without a suffix.
        image_format: `"jpeg"`, as released, or `"png"`.
    """

    def __init__(self, folder: Path, severities: Sequence[int], files: Sequence[str], image_format: str) -> None:
        super().__init__(folder, severities)
        self.image_format = image_format
        self.files = [name + IMAGE_FORMATS[image_format] for name in files]
        self.class_files: dict[str, set[str]] = {}
        for file in self.files:
            class_folder, _, name = file.partition("/")
            self.class_files.setdefault(class_folder, set()).add(name)

    def entries(self, corruptions: Sequence[str]) -> list[str]:
        """A folder per corruption."""
        return list(corruptions)

    def prepare(self) -> None:
        """Nothing."""

    def missing(self, corruption: str) -> Missing:
        """Those images whose files are not there; what was left of others is removed."""
        return {severity: self._missing(self.folder / corruption / str(severity)) for severity in self.severities}

    def _missing(self, folder: Path) -> NDArray[np.bool_]:
        there: set[str] = set()
        for name, files in self.class_files.items():
            try:
                found = os.listdir(folder / name)
            except FileNotFoundError:
                continue
            remove_unfinished(folder / name, found, files)
            there.update(f"{name}/{file}" for file in files.intersection(found))
        return np.array([file not in there for file in self.files])

    @contextmanager
    def writing(self, corruption: str) -> Iterator[WriteImages]:
        """Write each image into its file; they are encoded by several threads."""
        with ThreadPoolExecutor() as pool:

            def write(severity: int, indices: Sequence[int], pixels: Pixels) -> None:
                folder = self.folder / corruption / str(severity)
                for index, content in zip(indices, pool.map(self._encoded, pixels), strict=True):
                    with whole_file(folder / self.files[index]) as temporary:
                        temporary.write_bytes(content)

            yield write

    def _encoded(self, pixels: Pixels) -> bytes:
        content = io.BytesIO()
        if self.image_format == "jpeg":
            Image.fromarray(pixels).save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
        else:
            Image.fromarray(pixels).save(content, "PNG")
        return content.getvalue()


def count(missing: Missing) -> int:
    """How many images are missing, over all severities."""
    return sum(int(mask.sum()) for mask in missing.values())


def remove_unfinished(folder: Path, names: Iterable[str], wanted: Container[str]) -> None:
    """Remove those of the files `names` in `folder` that a killed run left where it was making `wanted` ones."""
    for name in names:
        if unfinished_file(name) in wanted:
            (folder / name).unlink(missing_ok=True)


_WHAT_TO_DO = "remove it, or choose another output folder"


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OutputError(f"{path} is not an array of this set ({error}): {_WHAT_TO_DO}") from error
    if array.shape != shape or array.dtype != dtype:
        raise OutputError(
            f"{path} holds {array.dtype} {array.shape}, and this set {dtype} {shape} there: {_WHAT_TO_DO}"
        )
    return array
