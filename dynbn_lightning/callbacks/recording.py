"""Keeping a record of each image that is tested, whatever LightningModule tests it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..batchnorm.ranks import gather_from_ranks
from ..datamodules.batches import batch_info_of, knows_cells
from ..datamodules.classes import check_classes
from ..errors import ReportError
from ..metrics import outcomes_of
from ..reporting import ImageRecords
from .base import BatchNormCallback, step_with_loader
from .failure_watch import FailureWatch, begin_watch, end_watch, stop_watch, watch_of

_ON_DEVICE = 256
"""The records of so many batches stay on the device before they are moved together, for each move waits for it."""

_LABEL_KEYS = ("label", "labels", "y", "target", "targets")
_STEPS = ("test_step", "validation_step")


class RecordingCallback(Callback):
    """Keeps what the model made of each image while testing or validating, and what was detected in it.

    Logits are those that the step returned, as `outputs["logits"]`, or else those that the LightningModule's `forward`
    returned in the step; a step that logs and returns nothing will do. Each image's number and cell come from the
    `CorruptionDataModule`. Steps that are part of a fit are left alone.

    Raises:
        ReportError: when a test begins, if nothing tells the images' cells; at the first batch, if there are no
            logits or labels to be seen.
    """

    def __init__(self) -> None:
        self._on_device: list[ImageRecords] = []
        self._on_host: list[ImageRecords] = []
        self._returned: list[Any] = []
        self._hook: RemovableHandle | None = None
        self._watch: FailureWatch | None = None
        self._number = 0

    def logits_of(self, outputs: Any) -> Tensor:
        """The logits (N, K) of a step: to override where a model gives them in another form.

        Args:
            outputs: what the step returned, or else what `forward` did.

        Raises:
            ReportError: if there are none.
        """
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
        if (
            isinstance(logits, Tensor)
            and logits.is_floating_point()
            and logits.dim() == 2
            and logits.shape[1] > 1  # one column is a regression, or the one logit of two classes
        ):
            return logits
        found = type(logits).__name__
        if isinstance(logits, Tensor):
            found = f"a tensor of shape {tuple(logits.shape)} and {logits.dtype}"
        raise ReportError(
            f"no logits to be seen ({found}): return a dict with 'logits', floating, (N, 2 or more classes), from the "
            f"step, let the LightningModule's forward return them, or override {type(self).__name__}.logits_of"
        )

    def labels_of(self, batch: Any) -> Tensor:
        """The labels (N,) of a batch: the second of a tuple, or under a usual key of a dict; to override for others.

        Raises:
            ReportError: if there are none.
        """
        labels = None
        if isinstance(batch, Mapping):
            labels = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            labels = batch[1]
        if not (isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()):
            raise ReportError(
                "no labels found in the batch: expected whole numbers (N,), the second of a tuple or under one of "
                f"{', '.join(_LABEL_KEYS)} in a dict; for other batches override {type(self).__name__}.labels_of"
            )
        return labels

    def records(self) -> ImageRecords:
        """The records of the images that this process has seen, in their order, on the CPU."""
        self._move()
        self._on_host = [ImageRecords.together(self._on_host)]
        return self._on_host[0]

    def _move(self) -> None:
        if self._on_device:
            self._on_host.append(ImageRecords.together(self._on_device).map(Tensor.cpu))
            self._on_device = []

    def records_of_all_ranks(self) -> ImageRecords:
        """The records of all processes, each image once in each cell, in order; every process must ask.

        Raises:
            RankError: if another process has failed.
        """
        self._meet("records")
        if self._watch is not None:
            self._watch.all_are_through()
        with nullcontext() if self._watch is None else self._watch.collective():
            return ImageRecords.together(gather_from_ranks(self.records())).unique()

    def _meet(self, place: str) -> None:
        """Wait for all processes; `RankError` if one of them has failed."""
        if self._watch is not None:
            self._watch.meet(f"{type(self).__name__} {self._number} {place}", self._watch.size)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()
        self._on_device, self._on_host = [], []
        if trainer.state.fn == TrainerFn.FITTING:
            return
        if not knows_cells(trainer):
            raise self._no_cells()
        self._watch = watch_of(trainer)
        ours = [one for one in trainer.callbacks if isinstance(one, RecordingCallback)]  # type: ignore[attr-defined]
        self._number = ours.index(self)
        if (step := step_with_loader(trainer, pl_module)) is not None:
            raise ReportError(
                f"{type(self).__name__} has to see each batch, but {type(pl_module).__name__}.{step} takes them from "
                f"dataloader_iter itself: write it as {step}(self, batch, batch_idx)"
            )
        self._hook = pl_module.register_forward_hook(self._note_forward)

    def _no_cells(self) -> ReportError:
        return ReportError(
            f"{type(self).__name__} can't see which image in which cell each one is: that comes from a "
            "CorruptionDataModule, given to the Trainer as datamodule="
        )

    def _note_forward(self, module: Any, inputs: Any, returned: Any) -> None:
        if module._current_fx_name in _STEPS:  # not what other callbacks ask of it
            self._returned.append(returned)

    def _end(self) -> None:
        self._returned.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self._watch = None

    @torch.no_grad()
    def _record(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> ImageRecords | None:
        if self._hook is None:
            return None
        if self._watch is not None:
            self._watch.check()
        returned = list(self._returned)
        self._returned.clear()
        if isinstance(outputs, Mapping) and "logits" in outputs:
            returned = [outputs]
        if len(returned) != 1:
            raise ReportError(
                f"{type(pl_module).__name__}.forward was called {len(returned)} times in a step, and the step returned "
                "no dict with 'logits', so what it predicted can't be seen: return {'logits': logits} from it"
            )
        logits, labels, info = self.logits_of(returned[0]), self.labels_of(batch), batch_info_of(trainer)
        if info is None:  # the Trainer keeps the datamodule of an earlier run, though dataloaders= were given
            raise self._no_cells()
        if not len(info.indices) == len(labels) == len(logits):
            raise ReportError(
                f"the batch has {len(labels)} labels and the step gave logits of {len(logits)} images, but the "
                f"datamodule knows numbers and cells of {len(info.indices)}: they must be of the same images"
            )
        detections = [
            callback.detection
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, BatchNormCallback) and callback.detection is not None
        ]
        seen: dict[str, Any] = {}
        if detections:
            seen = {
                "rows": detections[0].rows,
                "detected": detections[0].detected,
                "detection_confidences": detections[0].confidences,
            }
        check_classes(info, labels, logits.shape[1], first=not (self._on_device or self._on_host))
        labels = labels.to(logits.device)
        records = ImageRecords.of_batch(
            outcomes_of(logits, labels), indices=info.indices, cells=info.cells, labels=labels, **seen
        )
        self._on_device.append(records)
        if len(self._on_device) >= _ON_DEVICE:
            self._move()
        return records

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no longer, where a run ended without our `on_exception`."""
        self._end()
        if stage != "fit":
            begin_watch(trainer, self)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, unless the validation is part of a fit."""
        self._begin(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the records of a batch."""
        self._record(trainer, pl_module, outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the records of a batch."""
        self._record(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no longer."""
        self._end()
        end_watch(trainer, self)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no longer."""
        self._end()
        end_watch(trainer, self)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look no longer, and tell the other processes."""
        self._end()
        stop_watch(trainer, exception)
