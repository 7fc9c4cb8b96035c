"""Whether the labels of a test are of the classes that a model tells apart: said before any work is lost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import DataError


def number_of_classes(dataset: Any) -> int | None:
    """How many classes a data set says that its labels are of; None where it doesn't say so of these labels."""
    names = getattr(dataset, "classes", None)
    if not isinstance(names, (list, tuple)) or not names or getattr(dataset, "target_transform", None) is not None:
        return None
    return len(names)


def check_classes(info: Any, labels: Tensor, num_logits: int, *, first: bool) -> None:
    """Raise `DataError` if the labels of a batch are not of the classes that the logits are of.

    Labels are looked at on the host, where the datamodule knows them, so that no batch waits for the device; a model
    that gives its images other labels than the datamodule did is believed, as long as these fit its logits.

    Args:
        info: the datamodule's `BatchInfo`; where it is None or knows no labels, there is nothing to look at.
        labels: those that the logits are compared with, (N,).
        num_logits: for how many classes there are logits.
        first: whether this is the first batch of a run, where the number of classes is looked at too.
    """
    if not (known := getattr(info, "labels", ())):
        return
    if min(known) < 0 or max(known) >= num_logits:
        for index, label in zip(info.indices, labels.tolist(), strict=True):
            if not 0 <= label < num_logits:
                says = "" if info.classes is None else f", the data has {info.classes} classes"
                raise DataError(
                    f"image {index} has label {label}, which is of no class: the model gives logits for {num_logits} "
                    f"classes, 0 to {num_logits - 1}{says}; give the model and the data the same classes"
                )
    if first and info.classes not in (None, num_logits) and labels.tolist() == list(known):
        raise DataError(
            f"the data has {info.classes} classes, but the model gives logits for {num_logits}: give the model and the "
            "data the same classes; where the labels are the model's all the same, wrap the data set in one that has "
            "no attribute `classes`"
        )
