"""What calibrating and refining a bank have in common: parameters of its rows, tuned through the frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.batches import DrawnBatch
from dynbn_lightning.errors import BankError, DataError, did_you_mean
from dynbn_lightning.progress import progress_bar

Criterion = Literal["consistency", "labels"]
"""Agreement with the network's own prediction for the clean image, or cross-entropy with the true class."""


def check_bank_and_data(model: nn.Module, bank: BNStatsBank, data: CorruptionDataModule, criterion: str) -> None:
    """Refuse a bank of another model, or data by whose split other images would be held out.

    Raises:
        BankError: if the bank is of another model, or has other rows than the data.
        DataError: if the bank was collected from other data, or the criterion is unknown.
    """
    if criterion not in get_args(Criterion):
        raise DataError(f"criterion={criterion!r}: {did_you_mean(criterion, get_args(Criterion))}")
    bank.check_model(model)
    if bank.rows != data.rows:
        raise BankError(
            f"the bank has {len(bank)} rows, the data has {len(data.rows)} and not the same ones: give the data the "
            "corruptions, severities and row_per that the bank was collected with"
        )
    here = data.provenance()
    for what in here:
        if what in bank.provenance and bank.provenance[what] != here[what]:
            raise DataError(
                f"the bank was collected with {what} {bank.provenance[what]!r}, this data has {here[what]!r}: then "
                "other images would be held out, or they would look different"
            )


class CleanPredictions:
    """A network's log-probabilities for clean images, each image predicted once.

    Args:
        model: the network, in evaluation mode; called while nothing is routed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[int, Tensor] = {}

    def __call__(self, batch: DrawnBatch) -> Tensor:
        """Log-probabilities, (N, classes)."""
        new = {index: position for position, index in enumerate(batch.indices) if index not in self._known}
        if new:
            with torch.no_grad():
                predicted = self._model(batch.clean[list(new.values())]).float().log_softmax(dim=1)
            self._known.update(zip(new, predicted, strict=True))
        return torch.stack([self._known[index] for index in batch.indices])


def disagreement(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy with classes (N,), or mean KL divergence from log-probabilities (N, classes)."""
    if target.dim() == 1:
        return F.cross_entropy(logits.float(), target)
    return F.kl_div(logits.float().log_softmax(dim=1), target, reduction="batchmean", log_target=True)


def tune(
    parameters: Sequence[Tensor],
    loss_of: Callable[[DrawnBatch], Tensor],
    batches: Iterable[DrawnBatch],
    *,
    learning_rate: float,
    description: str,
    progress: bool,
) -> list[float]:
    """Minimise the loss of batches by Adam under a cosine; nothing but `parameters` gets gradients.

    Returns:
        The loss of every batch, as it was before the step.
    """
    steps = len(batches)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    with progress_bar(shown=progress) as bar, torch.enable_grad():
        for batch in bar.track(batches, total=steps, description=description):
            loss = loss_of(batch)
            # Not `backward`, which would leave gradients in the user's model.
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    return losses


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode inside the block, each module as it was afterwards; gives its device."""
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    finally:
        for module, training in modes:
            module.training = training


def protocol_of(data: CorruptionDataModule, criterion: str, images: int) -> dict[str, Any]:
    """What must be said beside a choice: which images it looked at, and by which criterion."""
    return {"criterion": criterion, "images": images, **data.provenance()}
