"""Top-1 accuracy that needs no number of classes and counts in whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def top1_hits(predictions: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right.

    Args:
        predictions: Logits or probabilities, shape (N, K), of which the largest is the prediction, or predicted
            classes, shape (N,), integers.
        labels: True classes, shape (N,), integers.

    Returns:
        Shape (N,), bool.

    Raises:
        ValueError: If the shapes or dtypes do not fit each other.
    """
    if labels.ndim != 1 or predictions.shape[:1] != labels.shape:
        raise ValueError(
            "expected predictions of shape (N, K) or (N,) and labels of shape (N,), got shapes "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        )
    if predictions.ndim == 2:
        return predictions.argmax(dim=1) == labels
    if predictions.ndim != 1 or predictions.is_floating_point():
        raise ValueError(
            "predictions must be scores of shape (N, K) or integer classes of shape (N,), got "
            f"{predictions.dtype} of shape {tuple(predictions.shape)}"
        )
    return predictions == labels


class Top1Accuracy(Metric):
    """The part of the images that are classified rightly, over batches and processes.

    A mean metric would keep its sum in torch's default dtype, which Lightning sets to 16 bits under the true half
    precisions: the accuracy would be off by half a point. Whole numbers are exact in every precision.

    Examples:
        >>> import torch
        >>> accuracy = Top1Accuracy()
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> accuracy.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("correct", "total"):
            self.add_state(state, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count a batch; arguments and errors are those of `top1_hits`."""
        hits = top1_hits(predictions, labels)
        self.correct = self.correct + hits.sum()
        self.total = self.total + len(hits)

    def compute(self) -> Tensor:
        """The accuracy, a float32 scalar from 0 to 1; NaN if there was no image."""
        return self.correct.float() / self.total.float()
