"""Top-1 accuracy of every cell (`clean`, `fog/3`) of a stream in which the images of all cells may be mixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dynbn_lightning.corruptions.cells import CORRUPTIONS, SEVERITIES, Cell
from dynbn_lightning.errors import CorruptionError
from dynbn_lightning.metrics.top1_accuracy import top1_hits

NUM_CELLS = 1 + len(CORRUPTIONS) * len(SEVERITIES)
"""How many cells there are, clean included: `Cell.code` goes from 0 to `NUM_CELLS` - 1."""


def count_by_cell(predictions: Tensor, labels: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Count, for each of the cells, the images that were classified rightly, and all images.

    Args:
        predictions: Scores, shape (N, K), or classes, shape (N,), as `top1_hits` takes them.
        labels: True classes, shape (N,), integers.
        cells: `Cell.code` of each image, shape (N,), int64, from 0 to `NUM_CELLS` - 1.

    Returns:
        The numbers of right predictions and of images, both of shape (`NUM_CELLS`,), int64, on the labels' device.

    Raises:
        ValueError: If the shapes or dtypes do not fit each other.
        CorruptionError: If a code is of no cell (looked at on the CPU only: on CUDA it would cost a synchronisation).
    """
    hits = top1_hits(predictions, labels)
    _check_cells(cells, labels)
    cells = cells.to(labels.device)
    zeros = torch.zeros(NUM_CELLS, dtype=torch.int64, device=labels.device)
    # Not bincount, which waits for the device to learn how many bins there are.
    return zeros.index_add(0, cells, hits.long()), zeros.index_add(0, cells, torch.ones_like(cells))


def _check_cells(cells: Tensor, labels: Tensor) -> None:
    if cells.shape != labels.shape or cells.dtype != torch.int64:
        raise ValueError(
            f"cells must be int64 codes (Cell.code) of the labels' shape {tuple(labels.shape)}, got "
            f"{cells.dtype} of shape {tuple(cells.shape)}"
        )
    if cells.device.type == "cpu" and cells.numel():
        least, largest = (int(code) for code in cells.aminmax())
        if least < 0 or largest >= NUM_CELLS:
            raise CorruptionError(f"cell codes must be from 0 to {NUM_CELLS - 1}, got {least} to {largest}")


class CellAccuracy(Metric):
    """Top-1 accuracy of each cell that was seen, over batches and processes.

    The state is two counts per cell, of fixed size, so that batches may mix any cells and processes may have seen
    different ones. Counting never waits for the device.

    Example:
        >>> import torch
        >>> from dynbn_lightning.corruptions.cells import Cell
        >>> accuracy = CellAccuracy()
        >>> fog = Cell("fog", 3).code
        >>> accuracy.update(torch.tensor([1, 2, 2]), torch.tensor([1, 2, 0]), torch.tensor([0, fog, fog]))
        >>> accuracy.compute()
        {'clean': tensor(1.), 'fog/3': tensor(0.5000)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("correct", "total"):
            self.add_state(state, default=torch.zeros(NUM_CELLS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, cells: Tensor) -> None:
        """Count a batch; arguments and errors are those of `count_by_cell`."""
        correct, total = count_by_cell(predictions, labels, cells)
        self.correct = self.correct + correct
        self.total = self.total + total

    def compute(self) -> dict[str, Tensor]:
        """The accuracy of each seen cell (float32 scalar, 0 to 1) by name, `clean` first, then as in `CORRUPTIONS`."""
        seen = torch.nonzero(self.total).flatten().tolist()
        return {Cell.from_code(code).name: self.correct[code].float() / self.total[code].float() for code in seen}


def mean_over_corruptions(accuracies: dict[str, Tensor]) -> Tensor | None:
    """The mean of the accuracies (scalars, by cell name) over all cells but `clean`; None if there are no others."""
    corrupted = [accuracy for name, accuracy in accuracies.items() if not Cell.parse(name).is_clean]
    return torch.stack(corrupted).mean() if corrupted else None
