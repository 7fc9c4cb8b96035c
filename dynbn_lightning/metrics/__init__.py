"""Metrics over corrupted images: torchmetrics that know of cells."""

from dynbn_lightning.metrics.cell_accuracy import NUM_CELLS, CellAccuracy, count_by_cell, mean_over_corruptions
from dynbn_lightning.metrics.top1_accuracy import Top1Accuracy, top1_hits

__all__ = ["NUM_CELLS", "CellAccuracy", "Top1Accuracy", "count_by_cell", "mean_over_corruptions", "top1_hits"]
