"""`CorruptionDataModule`: clean and corrupted batches of any image data, corrupted on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corruptions import CLEAN, Cell, cells_of
from ..errors import DataError
from ..models.normalization import Normalization
from .batch_shares import (
    check_enough_batches,
    limit_of,
    refuse_collectives_in_steps,
    share_of_process,
    share_of_trainer,
)
from .batches import BatchInfo, DrawnBatch, PixelBatch
from .drawn_cells import Part, cell_of_row, draw_pair, images_of_part, split_of
from .image_files import OnError
from .images import PixelDataset
from .made_batches import drawn_batch, images_of, in_cells, info_of, made_batch
from .opened_images import OpenedImages
from .options import check_corrupting, check_fractions, check_known, check_numbers, check_start, chosen_cells
from .provenance import made_images, read_images
from .released import ReleasedSet
from .row_loaders import Batches, RowLoaders
from .skipping import SkippedImage, SkippedImages
from .sources import check_source
from .streams import Pairs, Stream, loader_names, make_loader, pairs_of, stream_pairs

Task = Literal["detector", "classifier"]
Granularity = Literal["corruption", "cell"]


class CorruptionDataModule(LightningDataModule):
    """Clean and corrupted batches of any image data.

    - `fit` with `task="detector"`: (pixels in [0, 1], row number), every training image under a row drawn anew each
      epoch; with `task="classifier"`: (normalised clean images, labels), shifted and mirrored at random.
    - `test` and `validate`: (normalised images, labels) of the chosen cells and clean, in the order of `stream`; test
      images for testing, held-out training images for stand-alone validation. `predict`: the test images alone.
      A detector (any LightningModule whose `rows` are these) gets (pixels in [0, 1], row number) here too.
    - `row_loaders()`: the image batches that a bank is collected from.

    Corruption, quantisation to 8 bits and normalisation happen on the device, after the transfer. In testing and
    collecting, the pixels of an image depend on (seed, image number, cell) alone, in fitting on the epoch too: not on
    batch size, workers, order or rank (the draws are the same on every device, rounding may differ). While a batch is
    processed, `batch_info` holds each image's number and cell. Detector and bank see training images only, tests see
    test images only.

    Args:
        source: `"shapes"` (embedded), `"cifar10"`, `"cifar100"` (downloaded to `root` if missing), a folder with
            `train/` and `test/` or `val/` in the layout of torchvision's `ImageFolder`, or training images: a
            map-style data set of (image, label), or a folder of class folders.
        test: test images, where `source` doesn't bring its own: a data set or a folder of class folders. With
            `source=None` there is nothing to fit on. Or a released set, `CIFAR10C()` for instance: then tests read its
            images, nothing is corrupted, and `source` is for fitting and the bank alone.
        root: folder of torchvision's data sets.
        batch_size: images per batch.
        normalization: what the model was trained with: a name in `models.NORMALIZATIONS` (`"imagenet"`, `"cifar10"`,
            ...), a (mean, std) pair, or None for pixels in [0, 1].
        task: what `fit` trains, a `"detector"` or a `"classifier"`.
        stream: `"mixed"`, all cells and clean shuffled into one loader; `"sequential"`, a loader per cell (then a
            LightningModule's `test_step` needs the argument `dataloader_idx`); `"continual"`, the same batches in one
            loader; or `"correlated"`, a loader per cell with labels in runs. `stream_names` names the loaders.
        concentration: of the Dirichlet distribution that the correlated stream deals labels by; small ones make long
            runs.
        corruptions: names of corruptions; by default the 15 of the benchmark, or those of the released set.
        severities: from 1 to 5; by default all, or those of the released set.
        row_per: a row per `"corruption"`, over its severities, or per `"cell"`.
        preset: severity constants, `"imagenet"`, `"tiny_imagenet"`, `"cifar"`, or `"auto"` by image size.
        frost_textures: folder of photographs of ice for `frost`, such as the published ones; None takes generated ones.
        image_size: resize and crop images to this size; those that have it already are left alone.
        validation_fraction: part of the training images held out from fitting and from the bank.
        seed: of corruptions, splits and orders.
        num_workers: loader processes.
        on_error: what to do with images that can't be read: `"raise"` an error that names the file, or `"skip"` them;
            then a warning names each file once, `skipped` has them all, and results say how many there were.

    Raises:
        DataError: for sources, streams or normalisations that don't exist, before any work.
        CorruptionError: for unknown corruptions, severities or presets.
    """

    def __init__(
        self,
        # For YAML: jsonargparse takes subclasses of plain classes, no Dataset[Any], and reads and prints class paths
        # as text where another type comes first.
        source: Dataset | str | Path | None = "shapes",  # type: ignore[type-arg]
        test: Dataset | str | Path | None = None,  # type: ignore[type-arg]
        root: str | Path = "data",
        batch_size: int = 128,
        normalization: str | Normalization | Sequence[Sequence[float]] | None = None,
        task: Task = "detector",
        stream: Stream = "mixed",
        concentration: float = 0.1,
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        row_per: Granularity = "corruption",
        preset: str = "auto",
        frost_textures: str | Path | None = None,
        image_size: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__()
        check_source(source, test)
        check_known(task=(task, Task), stream=(stream, Stream))
        check_known(row_per=(row_per, Granularity), on_error=(on_error, OnError))
        check_numbers(batch_size=(batch_size, 1), num_workers=(num_workers, 0), image_size=(image_size, 1))
        corruptions, severities = chosen_cells(test, corruptions, severities, image_size)
        check_fractions(validation_fraction, concentration)
        check_corrupting(preset, frost_textures)
        self.source, self.test, self.root = source, test, root
        self.batch_size, self.num_workers = batch_size, num_workers
        self.normalization = Normalization.of(normalization)
        self.task, self.stream, self.concentration = task, stream, concentration
        self.corruptions, self.severities = tuple(corruptions), tuple(severities)
        self._cells = [Cell.clean(), *cells_of(self.corruptions, self.severities)]
        self.row_per, self.preset, self.frost_textures = row_per, preset, frost_textures
        self.image_size, self.validation_fraction, self.seed = image_size, validation_fraction, seed
        self.on_error, self._skipped = on_error, SkippedImages()
        self.batch_info, self._begin_at = cast("BatchInfo | None", None), (0, 0)
        self._batches: list[int] = []  # of each test loader, for all processes together

    # What there is

    def __str__(self) -> str:
        given = {"source": self.source, "test": self.test}
        said = [f"{name}={_in_words(images)}" for name, images in given.items()]
        said += [f"corruptions={self.corruptions}", f"severities={self.severities}", f"stream={self.stream!r}"]
        return f"{type(self).__name__}({', '.join(said)})"  # Lightning's would open all loaders, and so download

    __repr__ = __str__

    @property
    def cells(self) -> list[Cell]:
        """The cells that test images are shown in: clean, if there are clean images, and the chosen ones."""
        return self._images.cells if isinstance(self.test, ReleasedSet) else self._cells

    @property
    def skipped(self) -> list[SkippedImage]:
        """The images that could not be read and were left out: (cell name or None, number, file), each cell once."""
        return self._skipped.all()

    @property
    def skipped_now(self) -> list[SkippedImage]:
        """Those of the present run of the Trainer, or of the last one, on this process."""
        return self._skipped.now()

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows: `clean`, then `fog` and so on, or `fog/1` and so on."""
        if self.row_per == "cell":
            return tuple(cell.name for cell in self._cells)
        return (CLEAN, *self.corruptions)

    @property
    def stream_names(self) -> list[str]:
        """The names of the test loaders: a cell each, or the stream's where it has but one."""
        return loader_names(self.stream, self.cells)

    @cached_property
    def _images(self) -> OpenedImages:
        return OpenedImages(self)

    @property
    def train_images(self) -> PixelDataset:
        """All training images; detector, bank and classifier never see others."""
        return self._images.train

    @property
    def test_images(self) -> PixelDataset:
        """The test images."""
        return self._images.test

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        return split_of(len(self.train_images), self.validation_fraction, self.seed)

    def showing(
        self, stream: Stream | None = None, batch_size: int | None = None, begin_at: tuple[int, int] = (0, 0)
    ) -> CorruptionDataModule:
        """This datamodule with another stream or batch size, for going on with a test from a place in the stream.

        Args:
            stream: by default its own.
            batch_size: by default its own.
            begin_at: the number of the first loader, and how many batches of it to leave out.
        """
        shown = copy.copy(self)
        shown.stream, shown.batch_size = stream or self.stream, batch_size or self.batch_size
        shown._begin_at = begin_at
        return shown

    def provenance(self, *, tested: bool = False) -> dict[str, Any]:
        """What a bank, or of the `tested` images a report, says: source, preset, normalisation, severities, seed."""
        if isinstance(self.test, ReleasedSet) and (tested or self.source is None):
            return read_images(self, self.test)
        return made_images(self, self._images.training)

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Download a named torchvision data set or a released set that isn't there yet; one process does it."""
        self._images.prepare()

    def setup(self, stage: str) -> None:
        """Forget the last batch, which a run that was interrupted may have left."""
        self.batch_info = None
        self._skipped.begin()

    def teardown(self, stage: str) -> None:
        """Forget the last batch."""
        self.batch_info = None

    def on_exception(self, exception: BaseException) -> None:
        """Forget the last batch."""
        self.batch_info = None

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training images that are not held out."""
        pairs = pairs_of(self._split[0])
        return self._loader(self.train_images, [pairs], split="train", form=self.task, shuffle_seed=self.seed)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The held-out training images: for the task while fitting, in the stream's cells when validating alone."""
        held_out = self._split[1]
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            return self._loader(self.train_images, [pairs_of(held_out)], split="validation", form=self.task)
        return self._stream_loaders(self.train_images, held_out, split="validation", form="classifier")

    def test_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The test images in every cell, in the order of the stream."""
        return self._stream_loaders(self.test_images, range(len(self.test_images)), split="test", form="classifier")

    def predict_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """As for testing, without labels."""
        return self._stream_loaders(self.test_images, range(len(self.test_images)), split="test", form="predict")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Corrupt, quantise and normalise on the device, then let the LightningModule's own hook have the batch."""
        if isinstance(batch, PixelBatch):
            refuse_collectives_in_steps(self.trainer, self._batches)
            batch = self._finish(batch, epoch=self.trainer.current_epoch if self.trainer else 0)
            if self.trainer is not None:
                # Loaders yield 8-bit pixels, which the precision plugin left alone before the transfer.
                batch = self.trainer.precision_plugin.convert_input(batch)
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is not None and is_overridden("on_after_batch_transfer", module):
            # A datamodule that has this hook silences the module's.
            batch = module.on_after_batch_transfer(batch, dataloader_idx)
        return batch

    # What a bank is collected from

    def row_loaders(
        self, *, images_per_row: int | None = None, batch_size: int = 500, device: str | torch.device = "cpu"
    ) -> RowLoaders:
        """The image batches that each row of a bank is measured on: training images, none of them held out.

        Where `torch.distributed` runs, those of this process: `BNStatsBank.collect` merges what all have measured.

        Args:
            images_per_row: at most so many images for each row, the same ones for all rows; by default 2,000 for a row
                per corruption, 500 for a row per cell.
            batch_size: at most so many images at a time, spread evenly over the batches: each is normalised by its own
                moments while a row is measured, so large ones are better and a small rest would be worst.
            device: where to corrupt.

        Raises:
            DataError: if there are no training images, or one of the numbers is not positive.
        """
        if images_per_row is None:
            images_per_row = 500 if self.row_per == "cell" else 2000
        if images_per_row < 1 or batch_size < 1:
            raise DataError(f"images_per_row={images_per_row!r} and batch_size={batch_size!r} must be at least 1")
        indices = self._split[0][:images_per_row]
        count = -(-len(indices) // batch_size)
        batch_size = -(-len(indices) // count)
        share = share_of_process()

        def batches_of(row: str) -> Iterator[Tensor]:
            pairs = pairs_of(indices, [self._cell_of(row, index).code for index in indices])
            options: dict[str, Any] = {"split": "train", "form": "predict", "batch_size": batch_size, "share": share}
            for batch in self._loader(self.train_images, [pairs], **options):
                yield self._finish(batch._replace(pixels=batch.pixels.to(device)), epoch=-1)
            self.batch_info = None

        of_this = len(range(share[0], count, share[1]))
        batches = {row: Batches(lambda row=row: batches_of(row), of_this) for row in self.rows}  # type: ignore[misc]
        measured_on = {"images_per_row": images_per_row, "batch_size": batch_size}
        return RowLoaders(batches, {**self.provenance(), **measured_on})

    # What a bank is calibrated and refined on

    def drawn_batches(
        self,
        images: int,
        part: Part,
        *,
        clean: bool = True,
        batch_size: int = 64,
        start: int = 0,
        device: str | torch.device = "cpu",
    ) -> Batches[DrawnBatch]:
        """Batches of training images, each image and its cell drawn at random: the same ones in every iteration.

        Args:
            images: how many, all batches together; rounded up to whole batches.
            part: draw from the images that detector and bank are made from (`"fit"`), or from those held out: three
                quarters to choose by (`"choose"`) and one to check the choice on (`"check"`).
            clean: draw clean as often as each corruption, or not at all.
            batch_size: images per batch.
            start: how many of the first batches to leave out, which costs nothing; the others are as they were.
            device: where to corrupt.

        Raises:
            DataError: if there are no training images, one of the numbers is not positive, the part is unknown, or
                more batches are to be left out than there are.
        """
        check_known(part=(part, Part))
        check_numbers(images=(images, 1), batch_size=(batch_size, 1))
        indices = images_of_part(*self._split, part)
        count = -(-images // batch_size)
        check_start(start, count)
        rows = (CLEAN, *self.corruptions) if clean else self.corruptions
        draw = partial(draw_pair, indices=indices, rows=rows, severities=self.severities, seed=self.seed, part=part)

        def batches() -> Iterator[DrawnBatch]:
            drawn = [draw(position) for position in range(start * batch_size, count * batch_size)]
            pairs = pairs_of([index for index, _ in drawn], [code for _, code in drawn])
            options: dict[str, Any] = {"split": "train", "form": "classifier", "batch_size": batch_size}
            for number, batch in enumerate(self._loader(self.train_images, [pairs], **options), start):
                moved = batch._replace(pixels=batch.pixels.to(device), labels=batch.labels.to(device))
                yield drawn_batch(self, self._begun(moved, number), number)
            self.batch_info = None

        return Batches(batches, count - start)

    # How a batch is made

    def _loader(self, images: PixelDataset, parts: Sequence[Pairs], **options: Any) -> DataLoader[Any]:
        options = {"batch_size": self.batch_size, "num_workers": self.num_workers, **options}
        return make_loader(images, parts, **options)

    def _stream_loaders(
        self, images: PixelDataset, indices: Sequence[int], *, split: str, form: str
    ) -> DataLoader[Any] | list[DataLoader[Any]]:
        if form == "classifier" and self.trainer is not None:
            # A detector is tested on what it is trained on: pixels and rows.
            form = "detector" if getattr(self.trainer.lightning_module, "rows", None) == self.rows else form
        labels = [images.labels[index] for index in indices] if self.stream == "correlated" else ()
        first_loader, first_batch = self._begin_at
        cells = self.cells if split == "test" else self._cells
        of_loaders = stream_pairs(indices, labels, cells, self.stream, self.seed, self.concentration)[first_loader:]
        self._batches = [sum(-(-len(part) // self.batch_size) for part in parts) for parts in of_loaders]
        share = share_of_trainer(self.trainer)
        names = loader_names(self.stream, cells)[first_loader:]
        check_enough_batches(self._batches, names, share, limit_of(self.trainer))
        loaders = [
            self._loader(images, parts, split=split, form=form, first_batch=0 if number else first_batch, share=share)
            for number, parts in enumerate(of_loaders)
        ]
        return loaders[0] if self.stream in ("mixed", "continual") else loaders

    def _cell_of(self, row: str, index: int, epoch: int = -1) -> Cell:
        return cell_of_row(row, self.severities, seed=self.seed, index=index, epoch=epoch)

    def _finish(self, batch: PixelBatch, epoch: int) -> Any:
        return made_batch(self, self._begun(batch, epoch), epoch)

    def _begun(self, batch: PixelBatch, epoch: int) -> PixelBatch:
        self._skipped.note(batch, images_of(self, batch))
        batch = in_cells(self, batch, epoch)
        self.batch_info = info_of(self, batch)
        return batch


def _in_words(images: Any) -> str:
    return repr(images) if images is None or isinstance(images, (str, Path, ReleasedSet)) else type(images).__name__
