"""Which images of a released set are taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...errors import DataError, did_you_mean

Subset = int | Sequence[int] | Sequence[str]


def plain_subset(subset: Any) -> Subset | None:
    """The same choice in plain numbers and lists, where it came in those of numpy or torch."""
    if hasattr(subset, "tolist"):
        subset = subset.tolist()
    if isinstance(subset, (list, tuple)):
        subset = [one.item() if isinstance(one, np.generic) else one for one in subset]
    return cast("Subset | None", subset)


def check_subset(subset: Subset | None) -> None:
    """Raise `DataError` for what can be no choice of images, whatever images there are."""
    if subset is None:
        return
    if isinstance(subset, (str, bool)) or not isinstance(subset, (int, Sequence)):
        raise DataError(f"subset={subset!r}: expected how many images, or a list of their numbers or CLASS/NAME names")
    if isinstance(subset, int):
        if subset < 1:
            raise DataError(f"subset={subset}: expected at least 1 image")
        return
    if not subset:
        raise DataError("subset= is empty: expected at least one image")
    kinds = {type(one) for one in subset}
    if len(kinds) > 1 or not kinds <= {int, str}:
        raise DataError("subset= has other things than whole numbers, or than names CLASS/NAME: pass one of the two")
    if len(set(subset)) != len(subset):
        raise DataError("subset= has some images twice: expected each once")


def chosen_images(subset: Subset | None, count: int, names: Sequence[str] | None, title: str) -> list[int]:
    """The numbers of the images that are taken, in the order that they are taken in.

    Args:
        subset: how many, spread evenly over the order of the set, so that all classes are there; or the numbers, or the
            names, of images; None takes all.
        count: how many images the set has.
        names: `CLASS/NAME` of each, without a suffix; None where images have no names.
        title: of the set.

    Raises:
        DataError: for more images than there are, and for unknown ones.
    """
    if subset is None:
        return list(range(count))
    if isinstance(subset, int):
        if subset > count:
            raise DataError(f"subset={subset}: {title} has only {count} images")
        return [place * count // subset for place in range(subset)]
    if isinstance(subset[0], str):
        return _of_names([str(one) for one in subset], names, title)
    numbers = [int(one) for one in subset]
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong:
        raise DataError(f"subset= has image {wrong[0]}: {title} has images 0 to {count - 1}")
    return numbers


def without_suffix(name: str) -> str:
    """`CLASS/NAME` without the suffix of an image file, if it has one."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMG_EXTENSIONS else str(path)


def described_subset(subset: Subset | None, count: int) -> Any:
    """What a protocol says: `"all"`, or how many of how many."""
    if subset is None:
        return "all"
    if isinstance(subset, int):
        return f"{subset} of {count} images, spread evenly"
    return f"{len(subset)} of {count} images, listed"


def _of_names(wanted: Sequence[str], names: Sequence[str] | None, title: str) -> list[int]:
    if names is None:
        raise DataError(f"subset= has names, and the images of {title} have none: pass their numbers")
    places = {name: place for place, name in enumerate(names)}
    numbers = [places.get(without_suffix(one), -1) for one in wanted]
    if -1 in numbers:
        unknown = wanted[numbers.index(-1)]
        inside = [name for name in names if name.partition("/")[0] == unknown.partition("/")[0]]
        raise DataError(f"subset= has {unknown!r}, which {title} lacks: {did_you_mean(unknown, inside or names[:5])}")
    if len(set(numbers)) != len(numbers):
        raise DataError("subset= has some images twice: expected each once")
    return numbers
