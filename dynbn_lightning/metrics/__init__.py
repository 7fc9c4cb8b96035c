"""Metrics over corrupted images: torchmetrics that know of cells, and intervals for differences between methods."""

from dynbn_lightning.metrics.bootstrap import Interval, PairedIntervals, paired_bootstrap
from dynbn_lightning.metrics.cell_accuracy import NUM_CELLS, CellAccuracy, count_by_cell, mean_over_corruptions
from dynbn_lightning.metrics.top1_accuracy import Top1Accuracy, top1_hits

__all__ = [
    "NUM_CELLS",
    "CellAccuracy",
    "Interval",
    "PairedIntervals",
    "Top1Accuracy",
    "count_by_cell",
    "mean_over_corruptions",
    "paired_bootstrap",
    "top1_hits",
]
