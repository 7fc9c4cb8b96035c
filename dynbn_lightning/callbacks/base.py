"""What all methods share: patch the model when evaluation starts, give it back when it ends, whatever happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.layer_sync import _BatchNormXd
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from ..batchnorm import Patch, PatchedLayer, register
from ..errors import ImageError, RoutingError


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
    too. Validation inside `fit` is left alone.
    """

    def __init__(self) -> None:
        self._patch: Patch | None = None
        self._loader = 0
        self._detection: Detection | None = None

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
        self._detection = None

    def _start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            return
        others = [
            type(callback).__name__
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, BatchNormCallback) and callback is not self and callback._patch is not None
        ]
        self._loader = 0
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

    def _before(self, trainer: Trainer, pl_module: LightningModule, batch: Any, loader: int) -> None:
        if self._patch is None:
            return
        if loader != self._loader:
            self._loader = loader
            self.on_next_loader()
        self.before_step(trainer, pl_module, batch)

    def _after(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._patch is not None:
            self.after_epoch(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give back what a run that ended without our `on_exception` left patched, before a fit too."""
        self.undo()

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

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self.undo()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self.undo()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model back."""
        self.undo()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the model back."""
        self.undo()


_IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs")


def images_of(batch: Any) -> Tensor:
    """The images (N, C, H, W) of a batch: itself, the first of a tuple, or under a usual key of a dict.

    Raises:
        ImageError: if there are none; override the callback's `images_of` for batches of another form.
    """
    images = batch
    if isinstance(batch, dict):
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
    return images
