"""Evidence across images: what the images of a batch or of a stream say together about the row they share."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dynbn_lightning.errors import DetectorError

Evidence = Literal["image", "batch", "stream"]
EVIDENCES: tuple[str, ...] = get_args(Evidence)

OUTLIERS = 0.05
"""The share of images that are taken to say nothing about the row, so that none can decide alone."""

CHANGES = 0.01
"""The probability that the row of a stream is drawn anew from one image to the next."""


def check_posteriors(posteriors: Tensor) -> Tensor:
    """Return posteriors over rows if they are of shape (N, K), N at least 1; else raise `DetectorError`."""
    if posteriors.dim() != 2 or len(posteriors) == 0:
        raise DetectorError(f"evidence is pooled from posteriors (N, rows), got {tuple(posteriors.shape)}")
    return posteriors


def pooled_posterior(posteriors: Tensor, outliers: float = OUTLIERS) -> Tensor:
    """The posterior of one row that all images of a batch share, from the posterior of each.

    Images are taken to be independent given the row and rows to be equally likely beforehand, so that the pooled
    posterior is the normalised product; each posterior is first mixed with a uniform one, for outliers. Right for
    batches of one corruption, wrong for mixed ones.

    Args:
        posteriors: shape (N, K), each image's own, summing to 1.
        outliers: share of the uniform posterior, above 0 and at most 1.

    Returns:
        Shape (K,), in the dtype of `posteriors`.
    """
    check_posteriors(posteriors)
    return _robust(posteriors, outliers).log().sum(dim=0).softmax(dim=0).to(posteriors)


class StreamMemory:
    """The posterior of the row of each image of a stream, given all images up to it: a decaying memory.

    The forward filter of a hidden Markov model (Rabiner 1989, "A Tutorial on Hidden Markov Models", section III): from
    one image to the next the row stays, or with probability `changes` is drawn anew, all equally likely. So old
    evidence decays, and a change is found after as many images as it takes to outweigh what came before. An image's
    posterior depends on the images before it, not on how they were cut into batches. Right for streams that keep to a
    row for dozens of images, wrong for mixed ones.

    Args:
        changes: probability that the row is drawn anew from image to image, above 0 and below 1.
        outliers: share of the uniform posterior that each image's is mixed with, above 0 and at most 1.

    Attributes:
        belief: the last image's posterior, (K,) float64; None before the first.

    Raises:
        DetectorError: if an argument is out of its range.
    """

    def __init__(self, changes: float = CHANGES, outliers: float = OUTLIERS) -> None:
        if not (0 < changes < 1 and 0 < outliers <= 1):
            raise DetectorError(
                f"changes={changes!r}, outliers={outliers!r}: expected probabilities above 0, and of changes below 1"
            )
        self.changes, self.outliers = changes, outliers
        self.belief: Tensor | None = None

    def update(self, posteriors: Tensor) -> Tensor:
        """Take the posteriors of the next images, (N, K), and return the filtered ones, (N, K) in the same dtype."""
        check_posteriors(posteriors)
        likelihoods = _robust(posteriors, self.outliers).cpu()  # a small step for each image: on a GPU all waiting
        belief = likelihoods.new_full(likelihoods.shape[1:], 1 / likelihoods.shape[1])
        belief = belief if self.belief is None else self.belief
        filtered = torch.empty_like(likelihoods)
        for position, likelihood in enumerate(likelihoods):
            belief = ((1 - self.changes) * belief + self.changes / len(belief)) * likelihood
            belief = belief / belief.sum()
            filtered[position] = belief
        self.belief = belief
        return filtered.to(posteriors)

    def clear(self) -> None:
        """Forget everything: a new stream begins."""
        self.belief = None


def _robust(posteriors: Tensor, outliers: float) -> Tensor:
    return (1 - outliers) * posteriors.double() + outliers / posteriors.shape[1]
