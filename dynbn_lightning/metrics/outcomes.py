"""What became of each image: prediction, top-1, top-5, confidence and negative log likelihood, from one look at it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynbn_lightning.errors import DataError

TOP = 5
"""Among how many of the largest logits the label must be for `Outcomes.top5`."""


class Outcomes(NamedTuple):
    """What became of each image of a batch; all of shape (N,), on the logits' device.

    Attributes:
        predictions: The class with the largest logit, int64; where logits tie or are NaN, what `Tensor.argmax` says.
        correct: Whether the prediction is the label, bool.
        top5: Whether the label is among the five largest logits, bool: fewer than five logits are strictly greater
            than the label's, so that ties count for the label, and with five classes or fewer every image counts.
        confidences: The softmax probability of the prediction, 0 to 1, float32.
        nll: The negative log likelihood of the label in nats, 0 to infinity, float32.
    """

    predictions: Tensor
    correct: Tensor
    top5: Tensor
    confidences: Tensor
    nll: Tensor


def outcomes_of(logits: Tensor, labels: Tensor) -> Outcomes:
    """What became of each image of a batch, without a gradient and, on CUDA, without waiting for the device.

    Classes are compared on the logits as they came; probabilities are taken in float32, whatever the logits' dtype.

    An image with a NaN among its logits is right if `argmax` says so, is never among the top five, and has a
    confidence and an NLL of NaN. So has one with a logit of plus infinity, whose probabilities are not defined either.

    Args:
        logits: Shape (N, K) with at least one class, floating point of any dtype.
        labels: True classes, shape (N,), integers from 0 to K - 1.

    Returns:
        The outcomes, tensors of shape (N,).

    Raises:
        ValueError: If the shapes or dtypes do not fit each other.
        DataError: If a label is of no class (looked at on the CPU only: elsewhere it would cost a synchronisation,
            and such an image counts as wrong, not among the top five, with an NLL of NaN).

    Examples:
        >>> import torch
        >>> outcomes = outcomes_of(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([1, 1]))
        >>> outcomes.predictions.tolist(), outcomes.correct.tolist(), outcomes.top5.tolist()
        ([1, 0], [True, False], [True, True])
        >>> [round(nll, 3) for nll in outcomes.nll.tolist()]
        [0.127, 0.693]
    """
    _check_shapes(logits, labels)
    _check_labels(labels, logits.shape[1])
    logits, labels = logits.detach(), labels.long()
    has_class = (labels >= 0) & (labels < logits.shape[1])
    # Clamped, since a label of no class would end the whole process in an assertion on the device.
    of_label = labels.clamp(0, logits.shape[1] - 1).unsqueeze(1)
    predictions = logits.argmax(dim=1)
    greater = (logits > logits.gather(1, of_label)).sum(dim=1)
    # Not the exponential of log_softmax, which rounds twice: confidences such as 1/5 lie on the edge of a bin.
    probabilities = logits.softmax(dim=1, dtype=torch.float32)
    log_probabilities = logits.log_softmax(dim=1, dtype=torch.float32)
    return Outcomes(
        predictions=predictions,
        correct=predictions == labels,
        top5=(greater < TOP) & has_class & ~logits.isnan().any(dim=1),
        confidences=probabilities.gather(1, predictions.unsqueeze(1)).squeeze(1),
        # abs and not minus, which makes -0.0 of a likelihood of 1.
        nll=log_probabilities.gather(1, of_label).squeeze(1).abs().masked_fill(~has_class, torch.nan),
    )


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(
            f"expected logits of shape (N, K), floating point, K at least 1, got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected labels of shape ({len(logits)},), one for each row of the logits, got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected labels that are integer classes, got {labels.dtype}")


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.device.type != "cpu" or not labels.numel():
        return
    least, largest = (int(label) for label in labels.aminmax())
    if least < 0 or largest >= classes:
        raise DataError(
            f"label {least if least < 0 else largest} is of no class: the logits have {classes} classes, so labels "
            f"must be from 0 to {classes - 1}; give the model and the data the same classes"
        )
