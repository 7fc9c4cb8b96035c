"""Running one method on one stream, so that an interruption costs little: what was done is kept, and gone on from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dynbn_lightning.callbacks.example_images import ExampleImages
from dynbn_lightning.callbacks.protocol import settings_of
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.cost import StepCost
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.streams import Stream
from dynbn_lightning.fitting import bare_trainer, honest_interrupts
from dynbn_lightning.methods import METHODS, Tools, needs_of, uses_refined
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.reporting import ImageRecords, Piece, ResultsFolder

KEEP_EVERY = 30.0
"""Seconds between two times that what was done is written down."""


def run_piece(
    model: torch.nn.Module,
    data: CorruptionDataModule,
    piece: Piece,
    tools: Tools,
    folder: ResultsFolder,
    pending: Sequence[Piece],
    advance: Callable[[int], None],
    trainer_options: dict[str, Any],
) -> dict[str, Any]:
    """Test a model by a method, going on from where an interrupted run of the same came to.

    What carries nothing from batch to batch goes on at the next batch, what begins anew with each loader at the next
    loader, and what remembers the whole stream begins from its beginning.

    Args:
        model: the classifier.
        data: its test images are shown.
        piece: which method, on which stream, with which batch size.
        tools: for the method.
        folder: where the results gather.
        pending: the pieces that are not finished, this one among them: what is missing if this run is interrupted.
        advance: called with the number of batches done, at once for those that an earlier run did.
        trainer_options: for the Trainer.

    Returns:
        The piece's block of results.
    """
    begun = folder.unfinished(piece)
    place = None if begun is None else _Place(**begun[1]) if begun[1] else None
    records = ImageRecords.of_nothing() if begun is None or place is None else begun[0]
    place = place or _Place()
    advance(place.batches)
    keeper = _Keeper(piece, folder, pending, records, place, advance)
    shown = data.showing(cast(Stream, piece.stream), piece.batch_size, (place.loader, place.batch))
    more = run_method(model, shown, piece.method, tools, [keeper], trainer_options)
    return folder.finish(piece, ImageRecords.together([records, keeper.records()]).unique(), more)


def run_method(
    model: torch.nn.Module,
    data: CorruptionDataModule,
    method: str,
    tools: Tools,
    observers: Sequence[Callback],
    trainer_options: dict[str, Any],
) -> dict[str, Any]:
    """Test a model by a method; observers see each step when it is over. Returns what the run cost and needed."""
    cost, used = StepCost(), METHODS[method].callbacks(tools)
    options = {"inference_mode": not METHODS[method].gradients, **trainer_options}
    callbacks = [cost.first, *used, cost.last, *observers]
    trainer = bare_trainer(callbacks=callbacks, enable_progress_bar=False, **options)
    with honest_interrupts(trainer):
        trainer.test(ClassifierModule(model), datamodule=data, verbose=False)
    return {
        "needs": needs_of(method, tools),
        "settings": {type(callback).__name__: settings_of(callback) for callback in used},
        **{key: value for callback in used if (value := vars(callback).get(key := "used_images"))},
        "ms_per_image": cost.ms_per_image,
        "memory_mib": None if cost.mib is None else round(cost.mib, 1),
        **({"refined": True} if uses_refined(method, tools.bank) else {}),
    }


@dataclass(frozen=True)
class _Place:
    """A place in a stream: the number of a loader, how many batches of it are done, and how many of all."""

    loader: int = 0
    batch: int = 0
    batches: int = 0


class _Keeper(RecordingCallback):
    """Keeps the records of a piece; from time to time and on an interrupt writes them down with where to go on."""

    def __init__(
        self,
        piece: Piece,
        folder: ResultsFolder,
        pending: Sequence[Piece],
        records: ImageRecords,
        begun_at: _Place,
        advance: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._piece, self._folder, self._pending, self._advance = piece, folder, pending, advance
        self._records, self._begun_at = records, begun_at
        self._carries = METHODS[piece.method].carries
        self._place = begun_at
        self._count = self._count_at_place = 0
        self._next_time = time.monotonic() + KEEP_EVERY
        self._examples: ExampleImages | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, and look for examples."""
        super().on_test_start(trainer, pl_module)
        if self._folder.path is not None:
            self._examples = ExampleImages(self._folder.path, trainer.datamodule)  # type: ignore[attr-defined]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the records of a batch, and note where to go on behind it."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._advance(1)
        if self._examples is not None:
            self._examples.look(batch[0], trainer.datamodule.batch_info)  # type: ignore[attr-defined]
        self._count += len(batch[0])
        sizes = [int(size) for size in trainer.num_test_batches]
        loader_is_done = batch_idx + 1 == sizes[dataloader_idx]
        begun_at = self._begun_at
        batches = begun_at.batches + sum(sizes[:dataloader_idx]) + batch_idx + 1
        loader = begun_at.loader + dataloader_idx
        if loader_is_done and dataloader_idx + 1 < len(sizes) and self._carries != "stream":
            self._place = _Place(loader + 1, 0, batches)
        elif self._carries == "nothing" and not loader_is_done:
            self._place = _Place(loader, batch_idx + 1 + (begun_at.batch if dataloader_idx == 0 else 0), batches)
        else:
            return
        self._count_at_place = self._count
        if time.monotonic() >= self._next_time:
            self._keep(self._count_at_place, self._place)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down what can be gone on from, or else what there is to show."""
        super().on_exception(trainer, pl_module, exception)
        if self._place.batches:
            self._keep(self._count_at_place, self._place)
        elif self._count:
            self._keep(self._count, None)

    def _keep(self, count: int, place: _Place | None) -> None:
        new = self.records().map(lambda column: column[:count])
        records = ImageRecords.together([self._records, new]).unique()
        self._folder.keep(self._piece, records, {} if place is None else asdict(place))
        self._folder.write(self._pending)
        self._next_time = time.monotonic() + KEEP_EVERY
