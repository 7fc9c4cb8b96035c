"""The files behind images, and what is said of one that can't be read."""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from ..errors import DynBNError, UnreadableImageError

OnError = Literal["raise", "skip"]
T = TypeVar("T")

_NOT_THE_FILES_FAULT = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES),  # a disk, a network or rights: other files fail too
)


def file_of(dataset: Any, index: int) -> str | None:
    """The file of an item, from the `samples` that torchvision's folders have, through subsets; None if not known."""
    if isinstance(dataset, Subset):
        return file_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        return file_of(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or not 0 <= index < len(samples):
        return None
    sample = samples[index]
    path = sample[0] if isinstance(sample, tuple) and sample else sample
    return str(path) if isinstance(path, (str, Path)) else None


def read(get: Callable[[], T], what: str, path: str | None) -> T:
    """What `get` returns; where it fails, an error that names the file.

    Args:
        get: reads an image: PIL raises SyntaxError, struct.error and many more for broken files.
        what: the image in words, such as "item 3 of ImageFolder".
        path: its file, if it is known.

    Raises:
        UnreadableImageError: whatever `get` raises, save what isn't the file's fault: no memory, a lost disk, no
            rights, and errors that this package raised on purpose.
    """
    try:
        item = get()
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        if isinstance(image, Image.Image):
            image.load()  # PIL opens files without reading them
        return item
    except (MemoryError, DynBNError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILES_FAULT:
            raise
        where = "" if path is None else f" from {path}"
        raise UnreadableImageError(
            f"{what} cannot be read{where} ({type(error).__name__}: {error}): replace it, or leave such images out "
            'with CorruptionDataModule(on_error="skip")'
        ) from error
