"""What is wrong with a transform: it resizes or crops images which have their size already, or gives no images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import DataError, DynBNError
from ..images import to_pixels

RESIZING = (
    *("Resize", "RandomResizedCrop", "CenterCrop", "RandomCrop", "FiveCrop", "TenCrop", "RandomResize", "Pad"),
    *("RandomShortestSize", "RandomIoUCrop", "RandomZoomOut", "ScaleJitter", "ImageClassification"),
    *("RandomResizedCropAndInterpolation", "ResizeKeepRatio", "CenterCropOrPad", "RandomCropOrPad"),
)
"""Names of transforms of torchvision, both versions, and timm that change the size or the cut of an image."""


def transformed(transform: Any, image: Image.Image, what: str) -> Tensor:
    """The pixels that a transform makes of an image.

    Raises:
        DataError: if it fails, or gives what is no image in [0, 1].
    """
    try:
        return to_pixels(transform(image))
    except (MemoryError, DynBNError):
        raise
    except Exception as error:
        raise DataError(
            f"transform= can't be used on {what} ({type(error).__name__}: {error}): it gets a PIL image and must give "
            "one, or a tensor of uint8 or of floats in [0, 1]; leave Normalize to the normalization= of the "
            "CorruptionDataModule"
        ) from error


def check_transform(transform: Any, image_size: int, name: str) -> None:
    """Try a transform, and warn once, by name, of what in it, however deep, resizes or crops.

    Args:
        transform: a transform of torchvision, either version, or any callable; None has nothing in it.
        image_size: the side that the images have already.
        name: of the set.

    Raises:
        DataError: if it can't be used.
    """
    if transform is None:
        return
    ramp = Image.linear_gradient("L").resize((image_size, image_size)).convert("RGB")  # all greys: what a range needs
    with torch.random.fork_rng(devices=[]):
        height, width = transformed(transform, ramp, f"a grey image of the size of {name}'s").shape[-2:]
    found = list(dict.fromkeys(type(one).__name__ for one in _parts(transform) if type(one).__name__ in RESIZING))
    if not found and (height, width) != (image_size, image_size):
        found = [f"what makes {height} x {width} px of {image_size} x {image_size}"]
    if found:
        warnings.warn(
            f"transform= has {', '.join(found)}, and the images of {name} are {image_size} px already: a second resize "
            "or crop changes the benchmark, and numbers on it compare with nobody's; leave it out",
            stacklevel=3,
        )


def warn_of_size(image_size: int | None, own_size: int, name: str) -> None:
    """Warn if images of a set would be made to have another size than their own; None leaves them alone."""
    if image_size not in (None, own_size):
        warnings.warn(
            f"image_size={image_size}, and the images of {name} are {own_size} px already: a second resize and crop "
            "changes the benchmark, and numbers on it compare with nobody's; leave it out",
            stacklevel=5,
        )


def _parts(transform: Any, depth: int = 0) -> Iterator[Any]:
    yield transform
    if depth > 20:
        return
    for name in ("transforms", "transform"):
        inside = getattr(transform, name, None)
        if isinstance(inside, Iterable) and not isinstance(inside, str):
            for one in inside:
                yield from _parts(one, depth + 1)
        elif inside is not None and not hasattr(inside, "__func__"):  # v2 transforms have a method of that name
            yield from _parts(inside, depth + 1)
    children = getattr(transform, "children", None)
    if callable(children) and not isinstance(getattr(transform, "transforms", None), Iterable):
        for one in children():
            yield from _parts(one, depth + 1)
