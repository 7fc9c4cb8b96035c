"""Accuracy, likelihood and calibration of every cell (`clean`, `fog/3`) of a stream that may mix the cells' images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from dynbn_lightning.corruptions.cells import ALL_CORRUPTIONS, SEVERITIES, Cell
from dynbn_lightning.errors import CorruptionError
from dynbn_lightning.metrics.outcomes import Outcomes, outcomes_of

NUM_CELLS = 1 + len(ALL_CORRUPTIONS) * len(SEVERITIES)
"""How many cells there are, clean included: `Cell.code` goes from 0 to `NUM_CELLS` - 1."""

NUM_BINS = 15
"""Into how many bins of equal width the confidences are put for the calibration error."""

UNIT = 2**20
"""Nats and probabilities are summed as whole multiples of 1 / `UNIT`, about a millionth."""

MAX_NLL = 10_000.0
"""The largest negative log likelihood that one image counts with, in nats: that of a label whose probability is 0.

Sums of 64 bits hold more than 800 million images at this maximum.
"""

# A table per cell: a row for each bin, one for confidences of exactly 1, which is the edge that no bin holds, and one
# for images without a confidence or a likelihood; a column for each of the sums.
_NO_NUMBER = NUM_BINS + 1
_ROWS = NUM_BINS + 2
_IMAGES, _CORRECT, _TOP5, _NLL, _CONFIDENCE = range(5)
_COLUMNS = 5


class CellScores(NamedTuple):
    """The scores of one cell, or their means over cells.

    Attributes:
        images: How many images were counted.
        accuracy: Top-1, 0 to 1.
        top5_accuracy: The part of the images whose label is among the five largest logits, 0 to 1.
        nll: The mean negative log likelihood of the labels in nats, each image's at most `MAX_NLL`; NaN if any image
            had none (NaN or infinite logits).
        calibration_error: The expected calibration error, 0 to 1; NaN if `nll` is.
    """

    images: int
    accuracy: float
    top5_accuracy: float
    nll: float
    calibration_error: float

    @property
    def error(self) -> float:
        """The part of the images that were classified wrongly, 0 to 1."""
        return 1 - self.accuracy


def count_outcomes(outcomes: Outcomes, cells: Tensor) -> Tensor:
    """Sum up the outcomes of a batch for each cell, in whole numbers; the sums of batches add up.

    Args:
        outcomes: What `outcomes_of` returns, N images.
        cells: `Cell.code` of each image, shape (N,), int64, from 0 to `NUM_CELLS` - 1.

    Returns:
        Shape (`NUM_CELLS`, columns), int64, on the outcomes' device; `scores_of` reads it. Whole numbers have one sum,
        whatever their order: the scores are the same to the last bit for any batches and any number of processes.

    Raises:
        ValueError: If the cells' shape or dtype does not fit.
        CorruptionError: If a code is of no cell (looked at on the CPU only: on CUDA it would cost a synchronisation).
    """
    _check_cells(cells, outcomes.correct)
    device = outcomes.correct.device
    has_no_number = outcomes.confidences.isnan() | outcomes.nll.isnan()
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float32, device=device)
    bins = torch.bucketize(outcomes.confidences, edges, right=True) - 1
    bins = bins.clamp(0, NUM_BINS).masked_fill(has_no_number, _NO_NUMBER)
    columns = [
        torch.ones_like(bins),
        outcomes.correct.long(),
        outcomes.top5.long(),
        _whole(outcomes.nll.clamp(max=MAX_NLL), has_no_number),
        _whole(outcomes.confidences, has_no_number),
    ]
    zeros = torch.zeros(NUM_CELLS * _ROWS, _COLUMNS, dtype=torch.int64, device=device)
    # Not bincount, which waits for the device to learn how many bins there are.
    tables = zeros.index_add(0, cells.to(device) * _ROWS + bins, torch.stack(columns, dim=1))
    return tables.view(NUM_CELLS, _ROWS * _COLUMNS)


def _check_cells(cells: Tensor, images: Tensor) -> None:
    if cells.shape != images.shape or cells.dtype != torch.int64:
        raise ValueError(
            f"cells must be int64 codes (Cell.code) of the labels' shape {tuple(images.shape)}, got "
            f"{cells.dtype} of shape {tuple(cells.shape)}"
        )
    if cells.device.type == "cpu" and cells.numel():
        least, largest = (int(code) for code in cells.aminmax())
        if least < 0 or largest >= NUM_CELLS:
            raise CorruptionError(f"cell codes must be from 0 to {NUM_CELLS - 1}, got {least} to {largest}")


def _whole(values: Tensor, has_no_number: Tensor) -> Tensor:
    """The nearest multiples of 1 / `UNIT`, int64; 0 for images that have no number."""
    # Exact but for the rounding: UNIT is a power of two.
    return (values.masked_fill(has_no_number, 0) * UNIT).round().long()


def scores_of(counts: Tensor) -> dict[str, CellScores]:
    """The scores of each cell that was seen.

    The calibration error is the expected calibration error of Guo et al. (2017), "On Calibration of Modern Neural
    Networks", section 2: the mean over images of the distance between accuracy and mean confidence in the image's
    bin. The 15 bins are closed below and open above, and a confidence of exactly 1 is in a bin of its own, as in
    torchmetrics' `MulticlassCalibrationError`, with whose defaults the numbers agree.

    Args:
        counts: Sums of what `count_outcomes` returns, shape (`NUM_CELLS`, columns), int64, on any device.

    Returns:
        Scores by the cell's name, `clean` first, then in the order of `ALL_CORRUPTIONS` and of severity.

    Raises:
        ValueError: If the counts have another shape or are no integers.
    """
    if counts.shape != (NUM_CELLS, _ROWS * _COLUMNS) or counts.dtype != torch.int64:
        raise ValueError(
            f"expected counts from count_outcomes, int64 of shape {(NUM_CELLS, _ROWS * _COLUMNS)}, got "
            f"{counts.dtype} of shape {tuple(counts.shape)}"
        )
    tables = counts.reshape(NUM_CELLS, _ROWS, _COLUMNS).tolist()
    scores = {code: _scores_of_cell(table) for code, table in enumerate(tables) if any(row[_IMAGES] for row in table)}
    return {Cell.from_code(code).name: its for code, its in scores.items()}


def _scores_of_cell(table: Sequence[Sequence[int]]) -> CellScores:
    images, correct, top5, nll, _ = (sum(column) for column in zip(*table, strict=True))
    all_have_numbers = table[_NO_NUMBER][_IMAGES] == 0
    gaps = sum(abs(row[_CORRECT] * UNIT - row[_CONFIDENCE]) for row in table[:_NO_NUMBER])
    return CellScores(
        images=images,
        accuracy=correct / images,
        top5_accuracy=top5 / images,
        nll=nll / (UNIT * images) if all_have_numbers else math.nan,
        calibration_error=gaps / (UNIT * images) if all_have_numbers else math.nan,
    )


def mean_over_corruptions(scores: Mapping[str, CellScores]) -> CellScores | None:
    """The mean of each score over all cells but `clean`, each cell counting alike, and the sum of their images.

    Args:
        scores: Scores by the cell's name.

    Returns:
        The means; None if there is no cell but `clean`.

    Raises:
        CorruptionError: If a name is of no cell.
    """
    corrupted = [its for name, its in scores.items() if not Cell.parse(name).is_clean]
    if not corrupted:
        return None
    images, *others = zip(*corrupted, strict=True)
    return CellScores(sum(images), *(fmean(values) for values in others))


def sum_over_processes(state: Tensor, group: Any = None) -> list[Tensor]:
    """The sum of a state over processes, in the form that torchmetrics' `dist_sync_fn` returns.

    torchmetrics' own gathers the shape and the state of every process behind a barrier; a sum needs one all-reduce.

    Args:
        state: A tensor of one shape on all processes; left as it is.
        group: The process group; None is all processes.

    Returns:
        The sum, alone in a list.
    """
    total = state.clone()
    distributed.all_reduce(total, op=distributed.ReduceOp.SUM, group=group)
    return [total]


class CellMetrics(Metric):
    """Accuracy, top-5 accuracy, NLL and calibration error of each cell that was seen, over batches and processes.

    The state is one table of whole numbers, of fixed size (153 KiB), so that batches may mix any cells, processes may
    have seen different ones, and the result does not depend on the order or the shares, to the last bit. Counting
    never waits for the device, and processes are summed up in one all-reduce, at `compute` only.

    Args:
        kwargs: What `torchmetrics.Metric` takes. A `dist_sync_fn` among them is used in place of the all-reduce.

    Examples:
        >>> import torch
        >>> from dynbn_lightning.corruptions.cells import Cell
        >>> metric = CellMetrics()
        >>> logits = torch.tensor([[0.0, 9.0, 0.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        >>> fog = Cell("fog", 3).code
        >>> metric.update(logits, torch.tensor([1, 2, 2]), torch.tensor([0, fog, fog]))
        >>> scores = metric.compute()
        >>> {name: (its.images, its.accuracy) for name, its in scores.items()}
        {'clean': (1, 1.0), 'fog/3': (2, 0.5)}
        >>> round(scores["fog/3"].nll, 3)
        1.408
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dist_sync_fn": sum_over_processes, **kwargs})
        zeros = torch.zeros(NUM_CELLS, _ROWS * _COLUMNS, dtype=torch.int64)
        self.add_state("counts", default=zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, cells: Tensor) -> None:
        """Count a batch; arguments and errors are those of `outcomes_of` and `count_outcomes`."""
        self.counts = self.counts + count_outcomes(outcomes_of(logits, labels), cells)

    def compute(self) -> dict[str, CellScores]:
        """The scores of each seen cell by name, as `scores_of` gives them, summed over the processes."""
        return scores_of(self.counts)
