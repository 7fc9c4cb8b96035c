"""The numbers and figures of a report for the Trainer's loggers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from ..errors import DataError
from ..metrics import CellScores, mean_over_corruptions
from ..reporting import ImageRecords, Piece, methods_of
from ..reporting.figures import confusion_figure, severity_figure
from ..reporting.figures.severity import mean_by_severity

_NAMES = {"accuracy": "acc", "top5_accuracy": "top5", "nll": "nll", "calibration_error": "ece"}


def scalars_of(records: ImageRecords) -> dict[str, float]:
    """`fog/3/acc`, `/top5`, `/nll` and `/ece` of each cell, `mean/...` over the corrupted ones, `detection/acc`."""
    scores = records.scores()
    named: dict[str, CellScores | None] = {**scores, "mean": mean_over_corruptions(scores)}
    detection = records.detection_accuracy()
    return {
        **{
            f"{cell}/{name}": getattr(its, field)
            for cell, its in named.items()
            if its is not None
            for field, name in _NAMES.items()
        },
        **({} if detection is None else {"detection/acc": detection}),
    }


def log_scalars(trainer: Trainer, records: ImageRecords) -> None:
    """Give every logger of the Trainer the scalars."""
    scalars = scalars_of(records)
    for logger in trainer.loggers:
        logger.log_metrics(scalars, step=trainer.global_step)
        logger.save()


def log_figures(trainer: Trainer, results: Mapping[str, Any], piece: Piece, records: ImageRecords) -> None:
    """Give TensorBoard accuracy against severity, and the detector's confusion if there was one.

    Beside the piece stand the other methods that were tested like it, if they can be drawn.
    """
    if find_spec("matplotlib") is None:
        return
    methods = methods_of(results, piece.stream, piece.batch_size)
    drawable = {name: block for name, block in methods.items() if _has_curve(name, block)}
    run = {"stream": piece.stream, "batch_size": piece.batch_size, "methods": drawable}
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            continue
        if drawable:
            figure = severity_figure({**results, "runs": [run]}, piece.stream)
            logger.experiment.add_figure("severity", figure, global_step=trainer.global_step)
        if records.rows:
            figure = confusion_figure(records.confusion(), records.rows)
            logger.experiment.add_figure("confusion", figure, global_step=trainer.global_step)
        logger.save()


def _has_curve(method: str, block: Mapping[str, Any]) -> bool:
    try:
        return not block.get("unfinished") and bool(mean_by_severity(method, dict(block)))
    except DataError:  # only some of the cells were shown
        return False
