"""What `corrupt` accepts: images and seeds are checked here, with errors that say what to do."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from dynbn_lightning.corruptions.cells import CLEAN, Cell, check_corruption, check_severity
from dynbn_lightning.errors import CorruptionError, ImageError

_LARGEST_SEED = 2**64


def check_images(images: Tensor) -> Tensor:
    """Return `images` if they are a batch (N, C, H, W) of pixels, else raise `ImageError`."""
    if not isinstance(images, Tensor):
        raise ImageError(
            f"images are a {type(images).__name__}, not a torch.Tensor: convert them to a tensor (N, C, H, W) first"
        )
    _check_shape(tuple(images.shape))
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ImageError(f"images are {images.dtype}: expected floats in [0, 1] or torch.uint8; convert them first")
    _check_range(images)
    return images


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        advice = "add a batch dimension with unsqueeze(0)" if len(shape) == 3 else "reshape them first"
        raise ImageError(f"images have {len(shape)} dimensions, {shape}: expected four, (N, C, H, W); {advice}")
    if shape[0] == 0:
        raise ImageError(f"the batch is empty, {shape}: expected at least one image; skip empty batches")
    if shape[1] not in (1, 3):
        advice = "; channels come first: permute(0, 3, 1, 2)" if shape[3] in (1, 3) else ""
        raise ImageError(f"images have {shape[1]} channels, {shape}: expected 1 or 3, as (N, C, H, W){advice}")
    if shape[2] == 0 or shape[3] == 0:
        raise ImageError(f"images have no pixels, {shape}: expected a height and a width of at least 1")


def _check_range(images: Tensor) -> None:
    lowest, highest = (bound.item() for bound in torch.aminmax(images.detach()))
    if lowest >= 0.0 and highest <= 1.0:
        return
    if not bool(torch.isfinite(images).all()):
        raise ImageError("images hold NaN or infinity: expected numbers in [0, 1]; look where they come from")
    raise ImageError(
        f"images lie in [{lowest:.4g}, {highest:.4g}]: expected [0, 1]; pass pixels before normalisation, "
        "and 0 to 255 as torch.uint8"
    )


def check_cells(name: str | Sequence[str], severity: int | Sequence[int] | Tensor, count: int) -> list[Cell]:
    """The cell of each of `count` images; `CorruptionError` if there is no such cell, or not one for each image."""
    if isinstance(severity, Tensor):
        severity = severity.tolist()
    if isinstance(name, str) and not isinstance(severity, Sequence):
        return [Cell(check_corruption(name), check_severity(severity))] * count
    names = [name] * count if isinstance(name, str) else list(name)
    severities = list(severity) if isinstance(severity, Sequence) else [severity] * count
    for what, given in (("names", names), ("severities", severities)):
        if len(given) != count:
            raise CorruptionError(
                f"{len(given)} {what} for {count} images: expected one for each image, or one for all"
            )
    if not isinstance(severity, Sequence):
        severities = [0 if name == CLEAN else severity for name in names]
    # Not a set, whose order differs from process to process: the first misfit is named.
    cells = {pair: Cell(*pair) for pair in dict.fromkeys(zip(names, severities, strict=True))}
    for cell in cells.values():
        if not cell.is_clean:
            check_corruption(cell.corruption)
    return [cells[pair] for pair in zip(names, severities, strict=True)]


def check_seeds(
    seeds: Sequence[int] | Tensor | None, count: int, generator: torch.Generator | None
) -> list[int] | None:
    """One whole number per image, or None if there are no seeds; `CorruptionError` if they do not fit."""
    if seeds is None:
        return None
    if generator is not None:
        raise CorruptionError("both generator and seeds were given: seeds replace the generator; pass only one of them")
    try:
        numbers = [operator.index(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]
    except TypeError:
        raise CorruptionError(f"seeds are {seeds!r}: expected a sequence of whole numbers, one per image") from None
    if len(numbers) != count:
        raise CorruptionError(f"{len(numbers)} seeds for {count} images: expected one seed per image")
    return [number % _LARGEST_SEED for number in numbers]
