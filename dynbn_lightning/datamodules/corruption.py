"""`CorruptionDataModule`: clean and corrupted batches of any image data, corrupted on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..corruptions import CLEAN, COMMON_CORRUPTIONS, SEVERITIES, Cell, cells_of, resolve_preset, texture_files
from ..errors import DataError, did_you_mean
from ..models.normalization import Normalization
from .batches import BatchInfo, DrawnBatch, PixelBatch, corrupt_pixels, shift_and_flip
from .drawn_cells import Part, cell_of_row, drawn_cell, images_of_part
from .images import PixelDataset
from .row_loaders import Batches, RowLoaders
from .seeds import hashed_random
from .sources import Source, check_source, open_source
from .streams import STREAMS, Stream, make_loader, stream_pairs

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
            `source=None` there is nothing to fit on.
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
        corruptions: names of corruptions; by default the 15 of the benchmark.
        severities: from 1 to 5.
        row_per: a row per `"corruption"`, over its severities, or per `"cell"`.
        preset: severity constants, `"imagenet"`, `"tiny_imagenet"`, `"cifar"`, or `"auto"` by image size.
        frost_textures: folder of photographs of ice for `frost`, such as the published ones; None takes generated ones.
        image_size: resize and crop images to this size; those that have it already are left alone.
        validation_fraction: part of the training images held out from fitting and from the bank.
        seed: of corruptions, splits and orders.
        num_workers: loader processes.

    Raises:
        DataError: for sources, streams or normalisations that don't exist, before any work.
        CorruptionError: for unknown corruptions, severities or presets.
    """

    def __init__(
        self,
        source: str | Path | Dataset[Any] | None = "shapes",
        test: str | Path | Dataset[Any] | None = None,
        root: str | Path = "data",
        batch_size: int = 128,
        normalization: str | Normalization | Sequence[Sequence[float]] | None = None,
        task: Task = "detector",
        stream: Stream = "mixed",
        concentration: float = 0.1,
        corruptions: Sequence[str] = COMMON_CORRUPTIONS,
        severities: Sequence[int] = SEVERITIES,
        row_per: Granularity = "corruption",
        preset: str = "auto",
        frost_textures: str | Path | None = None,
        image_size: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_source(source, test)
        for name, value, known in (
            ("task", task, get_args(Task)),
            ("stream", stream, STREAMS),
            ("row_per", row_per, get_args(Granularity)),
        ):
            if value not in known:
                raise DataError(f"{name}={value!r}: {did_you_mean(str(value), known)}")
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("image_size", 1 if image_size is None else image_size, 1),
        ):
            if number < least:
                raise DataError(f"{name}={number!r}: expected a whole number of at least {least}")
        for name, values in (("corruptions", corruptions), ("severities", severities)):
            if isinstance(values, str) or not values or len(set(values)) != len(values):
                raise DataError(f"{name}={values!r}: expected one or more different ones")
        if not 0 < validation_fraction < 1:
            raise DataError(f"validation_fraction={validation_fraction!r} is not between 0 and 1")
        self.source, self.test, self.root = source, test, root
        self.batch_size, self.num_workers = batch_size, num_workers
        self.normalization = Normalization.of(normalization)
        if not 0 < concentration < float("inf"):
            raise DataError(f"concentration={concentration!r}: expected a number above 0")
        self.task, self.stream, self.concentration = task, stream, concentration
        self.corruptions, self.severities = tuple(corruptions), tuple(severities)
        self.cells = [Cell.clean(), *cells_of(self.corruptions, self.severities)]
        self.row_per, self.preset = row_per, preset
        self.image_size, self.validation_fraction, self.seed = image_size, validation_fraction, seed
        resolve_preset(preset, 32, 32)  # an unknown preset is refused here
        self.frost_textures = frost_textures
        if frost_textures is not None:
            texture_files(frost_textures)  # and a folder without photographs
        self.batch_info: BatchInfo | None = None
        self._begin_at = (0, 0)

    # What there is

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows: `clean`, then `fog` and so on, or `fog/1` and so on."""
        if self.row_per == "cell":
            return tuple(cell.name for cell in self.cells)
        return (CLEAN, *self.corruptions)

    @property
    def stream_names(self) -> list[str]:
        """The names of the test loaders: a cell each, or the stream's where it has but one."""
        return [self.stream] if self.stream in ("mixed", "continual") else [cell.name for cell in self.cells]

    @cached_property
    def _source(self) -> Source:
        return open_source(self.source, self.test, self.root)

    @cached_property
    def train_images(self) -> PixelDataset:
        """All training images; detector, bank and classifier never see others."""
        if self._source.train is None:
            raise DataError("there are no training images: pass them as source=")
        return PixelDataset(self._source.train, self.image_size)

    @cached_property
    def test_images(self) -> PixelDataset:
        """The test images."""
        if self._source.test is None:
            raise DataError("there are no test images: pass them as test=")
        return PixelDataset(self._source.test, self.image_size)

    @cached_property
    def _split(self) -> tuple[list[int], list[int]]:
        count = len(self.train_images)
        held_out = round(count * self.validation_fraction)
        if not 0 < held_out < count:
            raise DataError(f"{count} training images are too few to hold {self.validation_fraction:.0%} out")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()
        return order[held_out:], order[:held_out]

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

    def provenance(self) -> dict[str, Any]:
        """What a bank or a report should say about this data: source, preset, normalisation, severities, seed."""
        images = self.test_images if self._source.train is None else self.train_images
        height, width = images[0][0].shape[-2:]
        return {
            "source": self._source.name,
            "preset": resolve_preset(self.preset, height, width),
            "frost_textures": "generated" if self.frost_textures is None else str(self.frost_textures),
            "normalization": self.normalization.to_dict(),
            "severities": list(self.severities),
            "image_size": [height, width],
            "seed": self.seed,
            "validation_fraction": self.validation_fraction,
        }

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Download a named torchvision data set that isn't there yet; on several processes, one does it."""
        _ = self._source

    def setup(self, stage: str) -> None:
        """Forget the last batch, which a run that was interrupted may have left."""
        self.batch_info = None

    teardown = setup

    def on_exception(self, exception: BaseException) -> None:
        """Forget the last batch."""
        self.batch_info = None

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of the training images that are not held out."""
        pairs = [(index, None) for index in self._split[0]]
        return self._loader(self.train_images, [pairs], split="train", form=self.task, shuffle_seed=self.seed)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The held-out training images: for the task while fitting, in the stream's cells when validating alone."""
        held_out = self._split[1]
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            pairs = [(index, None) for index in held_out]
            return self._loader(self.train_images, [pairs], split="validation", form=self.task)
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

        def batches_of(row: str) -> Iterator[Tensor]:
            pairs = [(index, self._cell_of(row, index).code) for index in indices]
            for batch in self._loader(self.train_images, [pairs], split="train", form="predict", batch_size=batch_size):
                yield self._finish(batch._replace(pixels=batch.pixels.to(device)), epoch=-1)
            self.batch_info = None

        batches = {row: Batches(lambda row=row: batches_of(row), count) for row in self.rows}  # type: ignore[misc]
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
        if part not in get_args(Part):
            raise DataError(f"part={part!r}: {did_you_mean(str(part), get_args(Part))}")
        if images < 1 or batch_size < 1:
            raise DataError(f"images={images!r} and batch_size={batch_size!r} must be at least 1")
        indices = images_of_part(*self._split, part)
        if not indices:
            raise DataError(f"{len(self._split[1])} held-out training images are too few: raise validation_fraction")
        count = -(-images // batch_size)
        if not 0 <= start <= count:
            raise DataError(f"start={start!r}: expected a number of batches to leave out, from 0 to all {count}")
        corruptions = (CLEAN, *self.corruptions) if clean else self.corruptions

        def draw(position: int) -> tuple[int, int]:
            random = hashed_random("drawn", self.seed, part, position)
            index = random.choice(indices)
            return index, self._cell_of(random.choice(corruptions), index, position).code

        def batches() -> Iterator[DrawnBatch]:
            pairs = [draw(position) for position in range(start * batch_size, count * batch_size)]
            options: dict[str, Any] = {"split": "train", "form": "classifier", "batch_size": batch_size}
            for number, batch in enumerate(self._loader(self.train_images, [pairs], **options), start):
                batch = batch._replace(pixels=batch.pixels.to(device), labels=batch.labels.to(device))
                corrupted = self._corrupted(batch, epoch=number)
                rows = torch.tensor([self._row_of(Cell.from_code(code)) for code in batch.cells], device=device)
                yield DrawnBatch(
                    self.normalization.apply(corrupted.float() / 255),
                    self.normalization.apply(batch.pixels.float() / 255),
                    batch.labels,
                    rows,
                    batch.indices,
                )
            self.batch_info = None

        return Batches(batches, count - start)

    # How a batch is made

    def _loader(
        self, images: PixelDataset, parts: Sequence[Sequence[tuple[int, int | None]]], **options: Any
    ) -> DataLoader[Any]:
        return make_loader(images, parts, **{"batch_size": self.batch_size, "num_workers": self.num_workers, **options})

    def _stream_loaders(
        self, images: PixelDataset, indices: Sequence[int], *, split: str, form: str
    ) -> DataLoader[Any] | list[DataLoader[Any]]:
        if form == "classifier" and self.trainer is not None:
            # A detector is tested on what it is trained on: pixels and rows.
            form = "detector" if getattr(self.trainer.lightning_module, "rows", None) == self.rows else form
        labels = [images.labels[index] for index in indices] if self.stream == "correlated" else [0] * len(indices)
        first_loader, first_batch = self._begin_at
        of_loaders = stream_pairs(labels, self.cells, self.stream, self.seed, self.concentration)[first_loader:]
        loaders = [
            self._loader(
                images,
                [[(indices[place], code) for place, code in part] for part in parts],
                split=split,
                form=form,
                first_batch=0 if number else first_batch,
            )
            for number, parts in enumerate(of_loaders)
        ]
        return loaders[0] if self.stream in ("mixed", "continual") else loaders

    def _cell_of(self, row: str, index: int, epoch: int = -1) -> Cell:
        return cell_of_row(row, self.severities, seed=self.seed, index=index, epoch=epoch)

    def _draw_cell(self, index: int, epoch: int) -> Cell:
        return drawn_cell(self.corruptions, self.severities, seed=self.seed, index=index, epoch=epoch)

    def _row_of(self, cell: Cell) -> int:
        return self.rows.index(cell.name if self.row_per == "cell" else cell.corruption)

    def _finish(self, batch: PixelBatch, epoch: int) -> Any:
        if batch.form == "classifier" and batch.cells is None:
            clean = batch._replace(cells=(0,) * len(batch.indices))
            if batch.split == "train":
                pixels = shift_and_flip(clean.pixels, clean.indices, seed=self.seed, epoch=epoch)
                clean = clean._replace(pixels=pixels)
            return self._normalized(clean), batch.labels
        if batch.form == "detector":
            epoch = epoch if batch.split == "train" else -1
            if batch.cells is None:
                cells = [self._draw_cell(index, epoch) for index in batch.indices]
                batch = batch._replace(cells=tuple(cell.code for cell in cells))
            pixels = self._corrupted(batch, epoch)
            rows = [self._row_of(Cell.from_code(code)) for code in batch.cells or ()]
            return pixels.float() / 255, torch.tensor(rows, device=pixels.device)
        images = self._normalized(batch)
        return images if batch.form == "predict" else (images, batch.labels)

    def _corrupted(self, batch: PixelBatch, epoch: int) -> Tensor:
        assert batch.cells is not None
        codes, device = batch.cells, batch.pixels.device
        names = tuple(Cell.from_code(code).name for code in codes)
        self.batch_info = BatchInfo(batch.indices, torch.tensor(codes, device=device), names)
        # Held-out images are training images by number, so their draws must not follow the split's name.
        split = "test" if batch.split == "test" else "train"
        return corrupt_pixels(
            batch.pixels,
            codes,
            batch.indices,
            seed=self.seed,
            split=split,
            preset=self.preset,
            epoch=epoch,
            frost_textures=self.frost_textures,
        )

    def _normalized(self, batch: PixelBatch) -> Tensor:
        return self.normalization.apply(self._corrupted(batch, epoch=-1).float() / 255)
