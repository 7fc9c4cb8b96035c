"""What all methods share: patch the model when evaluation starts, give it back when it ends, whatever happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.layer_sync import _BatchNormXd
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from ..batchnorm import Exchange, Patch, PatchedLayer, register
from ..errors import ImageError, RoutingError
from .failure_watch import FailureWatch, begin_watch, end_watch, stop_watch, watch_of
from .rounds import Rounds, begin_rounds
from .sharded_models import refuse_sharded_models


class PatchedBatchNormXd(PatchedLayer, _BatchNormXd):
    """Stands in for the layer that Lightning leaves when it takes SyncBatchNorm back."""


register(_BatchNormXd, PatchedBatchNormXd)


class Detection(NamedTuple):
    """What a method detected in the images of a batch."""

    rows: tuple[str, ...]
    """The names of the rows it could detect."""
    detected: Tensor
    """The most probable row of each image, (N,) int64."""
    confidences: Tensor
    """The probability of that row, (N,)."""


class BatchNormCallback(Callback, ABC):
    """A method that works by patching BatchNorm layers while testing, predicting and validating.

    A method says how to patch, in `patch`, and what to do before and after each step, in `before_step` and
    `after_step`. The model is given back bit for bit at the end, when a step raises, and on an interrupt; should
    another callback's `on_exception` raise before this one's is called, `undo()` does it, as does the next run, a fit
    too.

    Attributes:
        in_fit: whether validation inside `fit` is patched too, which is asked for by setting it to True; each
            validation begins anew. A bank is refused there once the weights that it was collected on have changed.
    """

    in_fit = False

    def __init__(self) -> None:
        self.exchange = Exchange()
        self._patch: Patch | None = None
        self._loader = 0
        self._detection: Detection | None = None
        self._watch: FailureWatch | None = None
        self._rounds: Rounds | None = None

    @property
    def method(self) -> str:
        """The method's name in reports, which is that of `evaluate` where it has one."""
        return type(self).__name__

    @property
    def detection(self) -> Detection | None:
        """What was detected in the images of the present batch; None by a method that detects nothing."""
        return self._detection

    @abstractmethod
    def patch(self, trainer: Trainer, pl_module: LightningModule) -> Patch:
        """The patch to apply, from now to the end of the run; misuse is reported here, before any step."""

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Called before each step with the batch that the step will get, on the device."""

    def after_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Called after each step with the batch that the step got."""

    def on_next_loader(self) -> None:
        """Called before the first step on another dataloader than the last step's."""

    @property
    def remembers(self) -> bool:
        """Whether what is done to an image depends on earlier batches, so that processes share what they learn."""
        return False

    def memory(self) -> Any:
        """What is remembered of earlier batches, on the CPU."""

    def take_over(self, memory: Any) -> None:
        """Remember what another process does, as its `memory` tells."""

    def images_of(self, batch: Any) -> Tensor:
        """The images (N, C, H, W) of a batch, for batches of an unusual form to override."""
        return images_of(batch)

    def after_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called once after the last step; may log."""

    def undo(self) -> None:
        """Give the model its own layers back; does nothing if it has them."""
        if self._patch is not None:
            self._patch.undo()
            self._patch = None
        self._detection = self._watch = self._rounds = None
        self.exchange.leave()

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and (trainer.sanity_checking or not self.in_fit):
            return
        others = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, BatchNormCallback) and callback is not self and callback._patch is not None
        ]
        if (step := step_with_loader(trainer, pl_module)) is not None:
            raise RoutingError(
                f"{type(self).__name__} has to see each batch before the step does, but {type(pl_module).__name__}."
                f"{step} takes them from dataloader_iter itself: write it as {step}(self, batch, batch_idx)"
            )
        refuse_sharded_models(trainer, type(self).__name__)
        self._loader = 0
        self._watch = begin_watch(trainer, self) if trainer.state.fn == TrainerFn.FITTING else watch_of(trainer)
        self.exchange.guard = nullcontext if self._watch is None else self._watch.collective
        try:
            self._patch = self.patch(trainer, pl_module)
            self._patch.apply()
        except RoutingError as error:
            if not others:
                raise
            raise RoutingError(
                f"{type(self).__name__} cannot patch layers that {' and '.join(others)} has patched in this run: give "
                "the Trainer one method at a time, keep their layers apart with skip=, or combine two with base="
            ) from error
        if self._watch is not None and self.remembers:
            self._rounds = begin_rounds(self._name_in(trainer), trainer, self._watch)

    def _name_in(self, trainer: Trainer) -> str:
        """The same on all processes, though one of them has other callbacks besides, such as a progress bar."""
        ours = [one for one in trainer.callbacks if isinstance(one, BatchNormCallback)]  # type: ignore[attr-defined]
        return f"{type(self).__name__} {ours.index(self)}"

    def _enter_round(self, trainer: Trainer, loader: int) -> None:
        assert self._rounds is not None
        size, some_were_away = self._rounds.enter(loader)
        self.exchange.begin_round(trainer.global_rank, size, self._rounds.group(size))
        if some_were_away:
            self.take_over(self.exchange.of_first(self.memory))

    def _end_rounds(self, trainer: Trainer) -> None:
        """Wait until all processes are through with their steps, and let all remember the same."""
        if self._watch is None:
            return
        self._watch.meet(f"{self._name_in(trainer)} end", trainer.world_size)
        self._watch.all_are_through()
        if self._rounds is not None:
            if self._rounds.last_size < trainer.world_size:
                self.exchange.begin_round(trainer.global_rank, trainer.world_size)
                self.take_over(self.exchange.of_first(self.memory))
            self.exchange.leave()
            self._rounds.end()
            self._rounds = None

    def _before(self, trainer: Trainer, pl_module: LightningModule, batch: Any, loader: int) -> None:
        if self._patch is None:
            return
        if self._watch is not None:
            self._watch.check()
        if loader != self._loader:
            self._loader = loader
            self.on_next_loader()
        if self._rounds is not None:
            self._enter_round(trainer, loader)
        self.before_step(trainer, pl_module, batch)

    def _after(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._patch is not None:
            self._end_rounds(trainer)
            self.after_epoch(trainer, pl_module)

    def _finish(self, trainer: Trainer) -> None:
        end_watch(trainer, self)
        self.undo()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back what a run that ended without our `on_exception` left patched, before a fit too."""
        self.undo()
        # Here, where no process can have failed yet without all of them knowing; a base is not the Trainer's.
        if stage != "fit" and any(one is self for one in trainer.callbacks):  # type: ignore[attr-defined]
            begin_watch(trainer, self)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Patch."""
        self._start(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Patch, unless the validation is part of a fit."""
        self._start(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Patch."""
        self._start(trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Prepare the step."""
        self._before(trainer, pl_module, batch, dataloader_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Prepare the step."""
        self._before(trainer, pl_module, batch, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Prepare the step."""
        self._before(trainer, pl_module, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let the method learn from the step."""
        if self._patch is not None:
            self.after_step(trainer, pl_module, batch)

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the method log."""
        self._after(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the method log."""
        self._after(trainer, pl_module)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the other processes."""
        if self._patch is not None:
            self._end_rounds(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self._finish(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the model back, and tell the other processes."""
        self.undo()
        stop_watch(trainer, exception)


def step_with_loader(trainer: Trainer, pl_module: LightningModule) -> str | None:
    """The step of this run, by name, if it takes its batches from `dataloader_iter` itself; None for all others."""
    step = "test_step" if trainer.testing else "predict_step" if trainer.predicting else "validation_step"
    return step if is_param_in_hook_signature(getattr(pl_module, step), "dataloader_iter", explicit=True) else None


_IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs")


def images_of(batch: Any) -> Tensor:
    """The images (N, C, H, W) of a batch: itself, the first of a tuple, or under a usual key of a dict.

    Raises:
        ImageError: if there are none, or a tuple has several that could be; override the callback's `images_of` for
            batches of another form.
    """
    images = batch
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in _IMAGE_KEYS if key in batch), None)
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if not (isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point() and images.numel()):
        found = f"{type(images).__name__}" + (
            f" of shape {tuple(images.shape)} and {images.dtype}" if isinstance(images, Tensor) else ""
        )
        raise ImageError(
            f"no images found in the batch ({found}): expected a floating tensor (N, C, H, W) of one or more images, "
            f"a tuple that begins with one, or a dict with one of {', '.join(_IMAGE_KEYS)}; for other batches "
            "override the callback's images_of"
        )
    others = batch[1:] if isinstance(batch, (tuple, list)) else ()
    if any(isinstance(other, Tensor) and other.shape == images.shape for other in others):
        raise ImageError(
            f"several tensors of shape {tuple(images.shape)} in the batch, so it can't be seen which one holds the "
            "images that the model gets: override the callback's images_of"
        )
    return images
