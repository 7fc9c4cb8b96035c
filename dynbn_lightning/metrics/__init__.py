"""Metrics over corrupted images: scores per cell, corruption errors, and intervals for differences between methods."""

from dynbn_lightning.metrics.baselines import BASELINES, Baseline
from dynbn_lightning.metrics.bootstrap import Interval, PairedIntervals, paired_bootstrap
from dynbn_lightning.metrics.cell_metrics import (
    NUM_CELLS,
    CellMetrics,
    CellScores,
    count_outcomes,
    mean_over_corruptions,
    scores_of,
)
from dynbn_lightning.metrics.corruption_error import (
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)
from dynbn_lightning.metrics.outcomes import Outcomes, outcomes_of
from dynbn_lightning.metrics.top1_accuracy import Top1Accuracy, top1_hits

__all__ = [
    "BASELINES",
    "NUM_CELLS",
    "Baseline",
    "CellMetrics",
    "CellScores",
    "Interval",
    "Outcomes",
    "PairedIntervals",
    "Top1Accuracy",
    "corruption_errors",
    "count_outcomes",
    "mean_corruption_error",
    "mean_over_corruptions",
    "outcomes_of",
    "paired_bootstrap",
    "relative_corruption_errors",
    "relative_mean_corruption_error",
    "scores_of",
    "top1_hits",
]
