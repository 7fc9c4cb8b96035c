"""How sure a difference between two methods is: paired bootstrap intervals over the images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.errors import DataError

DRAWS_AT_ONCE = 2**22
"""How many images are drawn at a time: bounds the memory, whatever the number of resamples."""


@dataclass(frozen=True)
class Interval:
    """A difference and the bounds of its interval, float64 tensors of one shape on the CPU.

    Attributes:
        difference: what was measured.
        lower: the bound below.
        upper: the bound above.
    """

    difference: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class PairedIntervals:
    """What `paired_bootstrap` returns.

    Attributes:
        cells: of each cell, shape (cells,).
        mean: of the mean over the cells, scalars.
    """

    cells: Interval
    mean: Interval


def paired_bootstrap(
    first: Tensor, second: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> PairedIntervals:
    """How much more often one method is right than another on the same images, with percentile intervals.

    What is resampled is the image, with all its cells and runs: a hard image is hard in every cell, so its results
    stand or fall together, and five runs on 500 images are no 2500 images. The mean over runs is taken first, so the
    intervals are about other images, not about other seeds.

    Percentile intervals are from Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13; drawing
    the same images for both methods is from Koehn (2004), "Statistical Significance Tests for Machine Translation
    Evaluation".

    Args:
        first: Whether the first method was right, bool or numbers, shape (runs, images, cells), (images, cells) or
            (images,).
        second: The same of the second method, for the same runs, images and cells.
        resamples: How often the images are drawn anew, with replacement; at least 1.
        level: The coverage of each interval by itself, between 0 and 1.
        seed: Of the draws; the global random numbers are left alone.

    Returns:
        The mean of `first - second` and its bounds, of each cell and of the mean over all cells given (leave `clean`
        out for the usual mean over corruptions). Shapes (cells,), (1,) for input of shape (images,), and scalars.

    Raises:
        DataError: If the shapes differ or are not one of these, if there is no run or no cell or fewer than two
            images, if a value is not finite, or if `resamples` or `level` is out of its range.

    Examples:
        >>> import torch
        >>> right = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
        >>> same = paired_bootstrap(right, right)
        >>> float(same.mean.lower), float(same.mean.upper)
        (0.0, 0.0)
    """
    if resamples < 1:
        raise DataError(f"resamples={resamples!r}: expected at least 1")
    if not 0 < level < 1:
        raise DataError(f"level={level!r} is not between 0 and 1")
    by_image = _differences(first, second)
    resampled = torch.cat(
        [counts.double() @ by_image / len(by_image) for counts in _image_counts(len(by_image), resamples, seed)]
    )
    return PairedIntervals(
        cells=_interval(by_image.mean(dim=0), resampled, level),
        mean=_interval(by_image.mean(), resampled.mean(dim=1), level),
    )


def _differences(first: Tensor, second: Tensor) -> Tensor:
    """The mean over runs of `first - second`, shape (images, cells), float64."""
    if first.shape != second.shape:
        raise DataError(
            "a paired comparison needs two results of one shape, for the same runs, images and cells, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    if first.ndim not in (1, 2, 3):
        raise DataError(
            f"expected results of shape (runs, images, cells), (images, cells) or (images,), got {tuple(first.shape)}"
        )
    differences = first.detach().cpu().double() - second.detach().cpu().double()
    if differences.ndim == 1:
        differences = differences.unsqueeze(1)
    if differences.ndim == 2:
        differences = differences.unsqueeze(0)
    runs, images, cells = differences.shape
    if images < 2 or runs < 1 or cells < 1:
        raise DataError(f"an interval needs a run, a cell and two images at least, got shape {tuple(first.shape)}")
    if not differences.isfinite().all():
        raise DataError("results must be finite numbers, got NaN or infinity among them")
    return differences.mean(dim=0)


@lru_cache(maxsize=1)  # a report takes many intervals over the same images, and the draws are most of the work
def _image_counts(images: int, resamples: int, seed: int) -> list[Tensor]:
    """How often each image is drawn in each resample, in parts of (some resamples, images), int16."""
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWS_AT_ONCE // images)
    parts = []
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        drawn = torch.randint(images, (count, images), generator=generator)
        places = drawn + images * torch.arange(count).unsqueeze(1)
        counts = torch.bincount(places.flatten(), minlength=count * images).reshape(count, images)
        parts.append(counts.short())
    return parts


def forget_draws() -> None:
    """Free the draws that are kept for the next intervals over as many images: 200 MB for 50,000 of them."""
    _image_counts.cache_clear()


def _interval(difference: Tensor, resampled: Tensor, level: float) -> Interval:
    # Not torch.quantile, which refuses more than 16 million numbers.
    bounds = np.quantile(resampled.numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0)
    lower, upper = torch.from_numpy(np.asarray(bounds))
    return Interval(difference, lower, upper)
