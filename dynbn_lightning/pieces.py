"""Running one method on one stream, so that an interruption costs little: what was done is kept, and gone on from."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dynbn_lightning.batchnorm.ranks import do_on_first_rank, gather_from_ranks
from dynbn_lightning.callbacks.example_images import ExampleImages
from dynbn_lightning.callbacks.protocol import hardware, settings_of
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.cost import StepCost
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.datamodules.streams import Stream
from dynbn_lightning.errors import DataError, ImageError, ReportError
from dynbn_lightning.fitting import bare_trainer, honest_interrupts
from dynbn_lightning.methods import METHODS, Tools, needs_of, uses_refined
from dynbn_lightning.modules import ClassifierModule
from dynbn_lightning.reporting import ImageRecords, Piece, ResultsFolder

KEEP_EVERY = 30.0
"""Seconds, at least, between two times that what was done is written down."""
KEEP_SHARE = 0.05
"""Of the time, at most, writing it down takes."""


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
    settings = settings_of_method(piece.method, tools)
    begun = folder.unfinished(piece)
    place = None if begun is None else _Place(**begun[1]) if begun[1] else None
    records = ImageRecords.of_nothing() if begun is None or place is None else begun[0]
    place = place or _Place()
    advance(place.batches)
    limited = "limit_test_batches" in trainer_options  # the limit would count anew
    carries = "stream" if limited else METHODS[piece.method].carries
    keeper = _Keeper(piece, folder, pending, records, place, advance, carries, settings)
    shown = data.showing(cast(Stream, piece.stream), piece.batch_size, (place.loader, place.batch))
    more = run_method(model, shown, piece.method, tools, [keeper], trainer_options)
    records = ImageRecords.together([records, keeper.records_of_all_ranks()]).unique()

    skipped_now = {one for its in gather_from_ranks(data.skipped_now) for one in its}

    def finish() -> dict[str, Any]:
        skipped = len(skipped_now) if limited else _skipped(data, records, piece, folder)
        said = {"skipped": skipped} if data.on_error == "skip" else {}
        return folder.finish(piece, records, {**more, **said, "settings": settings})

    return do_on_first_rank(finish)


def _skipped(data: CorruptionDataModule, records: ImageRecords, piece: Piece, folder: ResultsFolder) -> int:
    """How many images there are no records of because they can't be read; `ReportError` if others are missing."""
    codes, images = [cell.code for cell in data.cells], data.test_images
    seen = torch.zeros(max(codes) + 1, len(images), dtype=torch.bool)
    seen[records.cells.long(), records.indices] = True
    missing = (~seen[codes]).nonzero().tolist()
    for place, index in missing:
        if data.on_error == "raise" or images.can_be_read(index, codes[place]):
            raise ReportError(
                f"{piece}: {len(records)} of {len(images) * len(codes)} images were recorded; what was kept of it is "
                f"damaged: remove {folder.path} and begin anew"
            )
    return len(missing)


def settings_of_method(method: str, tools: Tools) -> dict[str, Any]:
    """What decides what a method does, by callback."""
    return {type(callback).__name__: settings_of(callback) for callback in METHODS[method].callbacks(tools)}


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
    cast_by_lightning = str(trainer.precision).endswith("-true") and trainer.precision != "32-true"
    module = ClassifierModule(copy.deepcopy(model) if cast_by_lightning else model)
    with honest_interrupts(trainer):
        trainer.test(module, datamodule=data, verbose=False)
    return {
        "needs": needs_of(method, tools),
        "hardware": hardware(trainer.strategy.root_device),
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
        carries: str,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        self._piece, self._folder, self._pending, self._advance = piece, folder, pending, advance
        self._records, self._begun_at, self._carries, self._settings = records, begun_at, carries, settings
        self._count = 0
        self._done = (begun_at, 0)  # one thing: an interrupt finds a place and the images up to it
        self._next_time = time.monotonic() + KEEP_EVERY
        self._examples: ExampleImages | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, and look for examples."""
        super().on_test_start(trainer, pl_module)
        if self._folder.path is not None:  # which the first process has alone
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
            self._look(batch[0], trainer)
        self._count += len(batch[0])
        if trainer.world_size > 1:
            return  # no place in the stream is that of all processes
        sizes = [int(size) for size in trainer.num_test_batches]
        loader_is_done = batch_idx + 1 == sizes[dataloader_idx]
        begun_at = self._begun_at
        batches = begun_at.batches + sum(sizes[:dataloader_idx]) + batch_idx + 1
        loader = begun_at.loader + dataloader_idx
        if loader_is_done and dataloader_idx + 1 < len(sizes) and self._carries != "stream":
            place = _Place(loader + 1, 0, batches)
        elif self._carries == "nothing" and not loader_is_done:
            place = _Place(loader, batch_idx + 1 + (begun_at.batch if dataloader_idx == 0 else 0), batches)
        else:
            return
        self._done = (place, self._count)
        if time.monotonic() >= self._next_time:
            self._keep(self._count, place)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write down what can be gone on from, or else what there is to show."""
        super().on_exception(trainer, pl_module, exception)
        place, count = self._done
        if place.batches:
            self._keep(count, place)
        elif self._count:
            self._keep(self._count, None)

    def _keep(self, count: int, place: _Place | None) -> None:
        began = time.monotonic()
        new = self.records().map(lambda column: column[:count])
        records = ImageRecords.together([self._records, new]).unique()
        try:
            about = {} if place is None else asdict(place)
            self._folder.keep(self._piece, records, about, {"settings": self._settings})
            self._folder.write(self._pending)
        except OSError as error:  # what is measured is worth more than a note of it, and so is what stopped it
            warnings.warn(f"what was done of {self._piece} could not be kept: {error}", stacklevel=2)
        self._next_time = time.monotonic() + max(KEEP_EVERY, (time.monotonic() - began) / KEEP_SHARE)

    def _look(self, images: Tensor, trainer: Trainer) -> None:
        try:
            assert self._examples is not None
            self._examples.look(images, trainer.datamodule.batch_info)  # type: ignore[attr-defined]
        except (OSError, ImageError, DataError) as error:
            self._examples = None
            warnings.warn(f"there will be no example images: {error}", stacklevel=2)
