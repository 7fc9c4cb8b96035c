"""Whether a detector or classifier that is 80 % sure is right 80 times of 100."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from dynbn_lightning.errors import DataError
from dynbn_lightning.reporting.figures.canvas import (
    BLUE,
    FAINT,
    SMALL_SIZE,
    TEXT,
    TEXT_SIZE,
    VERMILLION,
    new_figure,
    plain_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL_WIDTH = 6.4


def reliability_figure(
    confidences: Tensor,
    correct: Tensor,
    bins: int = 15,
    *,
    what: str = "detected row",
    caption: str = "",
    width: float = USUAL_WIDTH,
) -> Figure:
    """Draw how often a classifier is right against how sure it is (Guo et al. 2017), and how many images that is.

    A point per bin stands at the mean confidence and the accuracy of its images, joined to the diagonal, where both
    are equal: the mean length of these lines, weighted by images, is the expected calibration error.

    Args:
        confidences: The probability of each image's predicted class, from 0 to 1, shape (N,).
        correct: Whether that class was right, bool or 0 and 1, shape (N,).
        bins: Into how many bins of equal width confidences are sorted.
        what: What the confidences are of.
        caption: What it was measured on.
        width: Of the figure, in inches.

    Returns:
        A figure with two axes: the diagram and below it the numbers of images; the error is in its title.

    Raises:
        DataError: If the shapes differ or are not (N,), N at least 1, or values or `bins` are out of range.
        DynBNError: If matplotlib is not installed.
    """
    confidences, correct = _checked(confidences, correct, bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    places = torch.bucketize(confidences, edges, right=True) - 1
    counts = torch.bincount(places, minlength=bins)
    filled = counts > 0
    accuracy = (torch.bincount(places, correct.double(), bins)[filled] / counts[filled]).tolist()
    confidence = (torch.bincount(places, confidences, bins)[filled] / counts[filled]).tolist()
    error = float(binary_calibration_error(confidences, correct, n_bins=bins, norm="l1"))

    title = f"Reliability of the confidence in the {what}: expected calibration error {error:.3f}"
    figure = new_figure(title, caption, height=1.03 * width, width=width)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--", label="as right as sure")
    upper.vlines(confidence, accuracy, confidence, color=VERMILLION, linewidth=1.8, label="gap")
    upper.plot(confidence, accuracy, "o", color=BLUE, markersize=6, label="images of a bin")
    upper.legend(loc="upper left", frameon=False, fontsize=TEXT_SIZE, labelcolor=TEXT)
    upper.set_ylim(-0.02, 1.02)
    upper.set_ylabel("share of images that it is right for", size=TEXT_SIZE, color=TEXT)
    begins = edges[:-1].tolist()
    lower.bar(begins, counts.tolist(), width=1 / bins, align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    for begin, count in zip(begins, counts.tolist(), strict=True):
        if count:
            lower.annotate(
                _short(count),
                (begin + 0.5 / bins, count),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                size=SMALL_SIZE * min(1.0, width / USUAL_WIDTH),
                color=TEXT,
            )
    lower.set_ylabel("images", size=TEXT_SIZE, color=TEXT)
    lower.set_xlabel(f"confidence: probability of the {what}", size=TEXT_SIZE, color=TEXT)
    lower.set_xlim(-0.02, 1.02)
    lower.margins(y=0.15)
    lower.set_yticks([])
    for axes in (upper, lower):
        plain_axes(axes)
    return figure


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _checked(confidences: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    if confidences.ndim != 1 or confidences.shape != correct.shape or len(confidences) == 0:
        raise DataError(
            "expected confidences and correct of one shape (N,), at least one image, got "
            f"{tuple(confidences.shape)} and {tuple(correct.shape)}"
        )
    if bins < 1:
        raise DataError(f"bins={bins!r}: expected at least 1")
    confidences, correct = confidences.detach().cpu().double(), correct.detach().cpu()
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise DataError("confidences must be probabilities, from 0 to 1")
    if not ((correct == 0) | (correct == 1)).all():
        raise DataError("correct must be bool, or 0 and 1")
    # torchmetrics gives a confidence of exactly 1, which a softmax in float32 reaches, a bin of its own.
    return confidences.clamp(max=1 - torch.finfo(torch.float64).eps), correct.long()
