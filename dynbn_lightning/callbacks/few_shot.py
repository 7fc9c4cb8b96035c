"""Few-shot batch normalisation as a callback: the statistics of a few test images, then frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from ..batchnorm import FirstImagesPolicy, StatisticsPolicy
from ..datamodules.batches import batch_info_of
from ..errors import ImageError
from .layerwise import Reset, StreamStatisticsCallback


class FewShotBNCallback(StreamStatisticsCallback):
    """The first few images of each cell replace the source statistics, which are then frozen; no labels are used.

    Benz et al. 2021, "Revisiting Batch Normalization for Improving Corruption Robustness", section 4: one batch of 32
    images of each corruption and severity goes through the network in training mode, with cumulative averaging from
    nothing, so that its statistics replace the source's in full. Here it is the first images of each dataloader: in the
    sequential stream of a `CorruptionDataModule`, whose order is drawn once by the seed, a loader is a cell, and they
    are the same images in every cell. They are predicted too, with the statistics they gave; in batches smaller than
    `images`, with those of the images up to then. A stream that mixes cells in one loader gives one set of statistics
    to all of them.

    Args:
        images: how many.
        reset: `"loader"`, the first images of each dataloader, or `"never"`, those of the first one for the whole run.
        skip: names of layers of the LightningModule, or of modules that hold some, which keep their own statistics.

    Attributes:
        used_images: of each dataloader, which images the statistics come from: (cell, number of the image) where a
            `CorruptionDataModule` tells them, else (None, place in the loader).

    Raises:
        MethodError: for fewer than one image, or another `reset`.
    """

    def __init__(self, images: int = 32, reset: Reset = "loader", skip: Sequence[str] = ()) -> None:
        super().__init__(reset, skip)
        FirstImagesPolicy(images)  # refuses here what it would refuse when evaluation starts
        self.images = images
        self.used_images: list[list[tuple[str | None, int]]] = []

    @property
    def method(self) -> str:
        """The method's name in reports."""
        return "few_shot"

    def make_policy(self, name: str, layer: nn.Module) -> FirstImagesPolicy:
        """The first images' statistics."""
        return FirstImagesPolicy(self.images)

    def policy_maker(self) -> Callable[[str, nn.Module], StatisticsPolicy]:
        """Makes the layers' policies for one run."""
        if not self._loaded:
            self.used_images = [[]]
        return super().policy_maker()

    def on_next_loader(self) -> None:
        """Take other images, if that is asked for."""
        super().on_next_loader()
        if self.reset == "loader":
            self.used_images.append([])

    def before_step(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Note which images the statistics come from."""
        used = self.used_images[-1]
        missing = self.images - len(used)
        if missing <= 0:
            return
        info = batch_info_of(trainer)
        found: list[tuple[str | None, int]] = []
        if info is not None:
            found += zip(info.names[:missing], info.indices, strict=False)
        else:
            with suppress(ImageError):  # batches of another form are no less normalised
                found = [(None, 0)] * min(missing, len(self.images_of(batch)))
        for its in self.exchange.objects(found):
            used += [(cell, len(used) + place if cell is None else index) for place, (cell, index) in enumerate(its)]
        del used[self.images :]

    def take_over(self, memory: Any) -> None:
        """Remember what another process does."""
        super().take_over(memory)
        self.used_images = [list(used) for used in memory["used_images"]]

    def state_dict(self) -> dict[str, Any]:
        """What each layer remembers, and of which images."""
        return {**super().state_dict(), "used_images": [list(used) for used in self.used_images]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next run go on from what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self.used_images = [[tuple(image) for image in used] for used in state_dict.get("used_images", ())] or [[]]
