"""`ReleasedSet`: corrupted images as they were released, for tests on the very pixels that others report on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from ...corruptions import Cell, cells_of
from ...errors import DataError
from ..image_files import read
from ..images import to_pixels
from .clean import Clean, CleanImages, check_clean, open_clean
from .on_disk import SetOnDisk
from .one_cell import OneCell
from .resizing import check_transform, transformed, warn_of_size
from .subset import Subset, check_subset, chosen_images, described_subset, plain_subset

AnyCell = Cell | str


class ReleasedSet(SetOnDisk, Dataset[tuple[Tensor, int]]):
    """Corrupted images on disk, the same ones in every cell: image `i` is the same image, corrupted in other ways.

    Pass one as `test=` to a `CorruptionDataModule`. Alone, `its[i, "fog/3"]` is (uint8 pixels (3, H, W), label),
    `its.cell("fog/3")` a data set of these, and `len(its)` the number of images in each cell. Sets that `dynbn corrupt`
    wrote are read too, in as many severities as they have. Files are opened where they are read, so that loader
    processes have their own.

    Args:
        root: the folder that holds the set's folder, or that folder itself.
        download: fetch the official archives to `root` if files are missing; on several processes, one does it. Not
            yet when this is made but with `prepare`, or when images are first asked for.
        subset: how many images to take, spread evenly over the set's order, so that all classes are there; or a list of
            image numbers, or of `CLASS/NAME` file names, in the order to take them in. By default all.
        corruptions: those that must be there. By default the 15 of the benchmark, or for a set of other corruptions
            (or one that `dynbn corrupt` wrote) all of its own; a `CorruptionDataModule` may choose others.
        clean: the uncorrupted images, for the cell `clean`: a data set in the set's order, or a folder of class
            folders. Without them there is no clean cell.
        transform: applied to each image, a PIL image, clean ones too; tried on a grey one here. It gives an image in
            [0, 1], so Normalize is refused; resizing and cropping in it is warned about.
        classes: the names of the class folders in the order of the model's classes. By default they are sorted, among
            the 1,000 of ImageNet-1k where they are all of these and the set is ImageNet's; a model of fewer classes
            needs them named.

    Raises:
        DataError: if the set is not there and not to be downloaded, and for arguments that make no sense.
        CorruptionError: for unknown corruptions.
    """

    known_classes: ClassVar[tuple[str, ...] | None] = None
    """The names of its classes, where the files don't tell them."""
    class_count: ClassVar[int | None] = None
    """How many classes it has, where the files don't tell."""

    def __init__(
        self,
        root: str | Path = "data",
        *,
        download: bool = False,
        subset: Subset | None = None,
        corruptions: Sequence[str] | None = None,
        clean: Clean | None = None,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(root, download, classes)
        self.subset, self.transform, self._given_clean = plain_subset(subset), transform, clean
        check_subset(self.subset)
        check_clean(clean)
        if isinstance(corruptions, str) or (corruptions is not None and len(set(corruptions)) != len(corruptions)):
            raise DataError(f"corruptions={corruptions!r}: expected one or more different ones")
        self._asked_for = None if corruptions is None else tuple(map(self._checked_name, corruptions))
        check_transform(transform, self.nominal_size, self.title)
        if not download:
            self.check(self._asked_for or ())

    # What there is

    def __repr__(self) -> str:
        said = {"corruptions": self._asked_for, "subset": self.subset if isinstance(self.subset, int) else None}
        listed = f", subset=[{len(self.subset)} listed]" if isinstance(self.subset, Sequence) else ""
        options = "".join(f", {name}={value!r}" for name, value in said.items() if value is not None)
        return f"{type(self).__name__}({str(self.root)!r}{options}{listed})"

    @property
    def name(self) -> str:
        """The set's name; of a set that `dynbn corrupt` wrote, the name of the images that it corrupted."""
        written = self.layout.written if self.is_there else None
        return self.title if written is None else written.source

    @property
    def severities(self) -> tuple[int, ...]:
        """The severities that all its corruptions have."""
        return self.severities_of(self.corruptions)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """The corruptions that it has by default, see `corruptions=`."""
        if self._asked_for is not None:
            return self._asked_for
        written = self.layout.written if self.is_there else None
        return self.own_corruptions if written is None else written.corruptions

    @property
    def cells(self) -> list[Cell]:
        """`clean`, if there are clean images, and its corruptions at each severity: what is there, or will be."""
        cells = cells_of(self.corruptions, self.severities)
        if self.is_there and not self.download:
            cells = [cell for cell in cells if not self.layout.missing(cell)]
        return [*([Cell.clean()] if self.has_clean else []), *cells]

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, in the order of the labels; None where they are not known."""
        if self.known_classes is not None and self.layout.written is None:
            return list(self.known_classes)
        return self.layout.classes

    @cached_property
    def chosen(self) -> list[int]:
        """The number, in the whole set, of each image that is taken."""
        if not self.is_there:
            self.prepare()
        layout = self.layout
        if self.class_count is not None and layout.written is None:
            layout.check_labels(self.class_count)
        return chosen_images(self.subset, len(layout.labels), layout.names, self.title)

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image that is taken."""
        chosen = self.chosen
        return [self.layout.labels[number] for number in chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def image_size(self) -> int:
        """The shorter side of its first image, in pixels."""
        return self.layout.image_size

    def described(self) -> dict[str, Any]:
        """What a protocol says: which images, and that their pixels are not made here."""
        written = self.layout.written
        return {
            "source": self.name,
            "corrupted_by": "released" if written is None else written.how,
            "subset": described_subset(self.subset, len(self.layout.labels)),
            "clean": None if self._clean is None else self._clean.name,
            # Where a function lies in memory is of no run but this.
            **({} if self.transform is None else {"transform": re.sub(r" at 0x\w+", "", repr(self.transform))}),
        }

    # Its images

    def warn_of_other_size(self, image_size: int | None) -> None:
        """Warn if images would be resized and cropped to another size than theirs."""
        warn_of_size(image_size, self.image_size if self.is_there else self.nominal_size, self.title)

    def prepare(self, corruptions: Sequence[str] | None = None) -> None:
        """Download what is missing, if that was asked for.

        What else the same archives hold, and is not there, is put there too.

        Args:
            corruptions: those that are needed; by default the set's.

        Raises:
            DataError: if it can't be downloaded.
            OutputError: if it can't be written.
        """
        self.fetch(self.corruptions if corruptions is None else corruptions)

    @property
    def has_clean(self) -> bool:
        """Whether there are clean images."""
        if self._given_clean is not None:
            return True
        if self.is_there:
            return self._clean is not None
        try:
            return self._usual_clean() is not None
        except DataError:
            return False

    def _usual_clean(self) -> Dataset[Any] | None:
        """The clean images of the whole set where nobody gave any; None if there are none, `DataError` if damaged."""
        return None

    @cached_property
    def _clean(self) -> CleanImages | None:
        if self._given_clean is not None:
            return open_clean(self._given_clean, self.layout, self.chosen, self.image_size)
        try:
            usual = self._usual_clean()
            if usual is not None:
                return open_clean(usual, self.layout, self.chosen, self.image_size)
            why = f"{self.title} has none with it; pass clean=, a data set in its order or a folder of class folders"
        except DataError as error:
            why = str(error)
        warnings.warn(f"there will be no clean images: {why}", stacklevel=2)
        return None

    def open_clean(self) -> None:
        """Open the clean images, if there are any: once for all loader processes."""
        _ = self._clean

    def cell(self, cell: AnyCell) -> OneCell:
        """All images in one cell, such as `"fog/3"`, as a data set of (uint8 pixels (3, H, W), label).

        Raises:
            DataError: if there is no such cell.
        """
        cell = Cell.parse(cell) if isinstance(cell, str) else cell
        if not cell.is_clean:
            self.check((cell.corruption,), (cell.severity,))
            self.prepare((cell.corruption,))
        elif not self.has_clean:
            raise DataError(f"{self.title} has no clean images: pass them as clean=")
        return OneCell(self, cell)

    def __getitem__(self, place: Any) -> tuple[Tensor, int]:
        if not (isinstance(place, tuple) and len(place) == 2):
            raise DataError(
                f"{place!r} is no image of {self.title}, which are known by number and cell: its[0, 'fog/3'] is one, "
                "and its.cell('fog/3') a data set of all in a cell"
            )
        index, cell = place
        return self.image(index, cell), self.labels[index]

    def image(self, index: int, cell: AnyCell) -> Tensor:
        """An image in a cell, uint8 (3, H, W).

        Raises:
            UnreadableImageError: names the file, if it can't be read.
            DataError: if the set has no such image or cell.
        """
        cell = Cell.parse(cell) if isinstance(cell, str) else cell
        if not 0 <= index < len(self):
            raise DataError(f"{self.title} has no image {index}: expected 0 to {len(self) - 1}")
        if not cell.is_clean:
            number = self.chosen[index]
            path, what = self.layout.path(number, cell), f"image {index} of {self.title} in {cell.name}"
            pixels = to_pixels(read(lambda: self.layout.read(number, cell), what, path))
        elif self._clean is None:
            raise DataError(f"{self.title} has no clean images: pass them as clean=")
        else:
            pixels = self._clean[index]
        if self.transform is None:
            return pixels
        what = f"image {index} of {self.title} in {cell.name}"
        return transformed(self.transform, functional.to_pil_image(pixels), what)

    def file_of(self, index: int, cell: AnyCell) -> str | None:
        """The file of an image, for messages: its path, an array's with the row behind it; None if it is not known."""
        cell = Cell.parse(cell) if isinstance(cell, str) else cell
        if cell.is_clean:
            return None if self._clean is None else self._clean.path_of(index)
        return self.layout.path(self.chosen[index], cell)
