"""`write_corrupted_set`: what `dynbn corrupt` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

import dynbn_lightning
from dynbn_lightning.corrupted_set.batches import CorruptedBatches
from dynbn_lightning.corrupted_set.image_list import ImageList, files_checksum
from dynbn_lightning.corrupted_set.layouts import (
    IMAGE_FORMATS,
    CifarLayout,
    ImageNetLayout,
    Missing,
    ReleasedLayout,
    count,
    remove_unfinished,
)
from dynbn_lightning.corrupted_set.manifest import Manifest
from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES, Cell, cells_of, corrupt, resolve_preset
from dynbn_lightning.corruptions.cells import check_corruption
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.datamodules.sources import NAMED_SOURCES, open_test_images
from dynbn_lightning.errors import DataError, OutputError, did_you_mean, first_few
from dynbn_lightning.files import check_output_folder, only_writer, os_errors_named
from dynbn_lightning.progress import progress_bar

MANIFEST = "dynbn_corrupt.json"
LAYOUTS = ("auto", "cifar", "imagenet")


@dataclass(frozen=True)
class CorruptedSet:
    """What lies in a folder after `write_corrupted_set`.

    Attributes:
        folder: that holds the set.
        layout: `"cifar"` or `"imagenet"`.
        cells: that each image is there in.
        images: how many there are in each cell.
        written: how many were written now, over all cells; the others were there already.
    """

    folder: Path
    layout: str
    cells: tuple[Cell, ...]
    images: int
    written: int


def write_corrupted_set(
    source: str | Path | Dataset[Any],
    output: str | Path,
    *,
    root: str | Path = "data",
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    preset: str = "auto",
    layout: str = "auto",
    image_format: str | None = None,
    image_size: int | None = None,
    frost_textures: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> CorruptedSet:
    """Write corrupted test images in a layout that CIFAR-10-C or ImageNet-C was released in, for tools that read these.

    - `cifar`: `fog.npy`, uint8 (severities * N, H, W, 3), all images at the first severity, then all at the next, and
      `labels.npy`, uint8, as long. Many readers take blocks of 10,000 images for granted.
    - `imagenet`: `fog/3/CLASS/NAME.JPEG`, which torchvision's `ImageFolder` reads, a severity at a time.

    The pixels are those that a `CorruptionDataModule` of the same test images, seed and preset makes in its test
    streams on the same device, bit for bit in the `cifar` layout and as PNG. As JPEG they are compressed after the
    corruption, at quality 85: so were those of ImageNet-C and Tiny-ImageNet-C, and numbers reported on these sets
    include it. Hence it is the default, and PNG is there to compare with images that are corrupted on the fly.

    Interrupted in whatever way, the same call goes on: a file is there when it is whole, and only then. What was asked
    is written to `output/dynbn_corrupt.json` first, and a call that asks for anything else there is refused, save that
    corruptions may be added. One process at a time may write to a folder.

    Args:
        source: test images: `"shapes"`, `"cifar10"`, `"cifar100"`, a folder with `test/` or `val/` in the layout of
            torchvision's `ImageFolder`, a folder of class folders, or a map-style data set of (image, label).
        output: folder to write to.
        root: folder of torchvision's data sets.
        corruptions: names; by default all 19.
        severities: from 1 to 5, in the order of the blocks of the `cifar` layout.
        preset: severity constants, `"imagenet"`, `"tiny_imagenet"`, `"cifar"`, or `"auto"` by image size.
        layout: `"cifar"`, `"imagenet"`, or `"auto"`: the one that was released with the preset, so `cifar` with the
            preset `cifar` and `imagenet` with the two others (Tiny-ImageNet-C is in folders too).
        image_format: `"jpeg"` (if not given) or `"png"`, in the `imagenet` layout only.
        image_size: resize and crop images to this size; without it, they must be of one size.
        frost_textures: folder of photographs of ice for `frost`, such as the published ones, which can't be shipped;
            None takes generated ones, as a `CorruptionDataModule` does.
        seed: of the corruptions.
        batch_size: images per batch; what is written does not depend on it.
        num_workers: loader processes.
        device: where to corrupt.
        progress: show a progress bar.

    Raises:
        DataError: for sources, layouts or formats that don't exist, and images that can't be read, have other than
            three channels or differ in size; before anything is written.
        CorruptionError: for unknown corruptions, severities or presets, and frost textures that cannot be used.
        OutputError: if `output` cannot be written to, lies in the source folder, holds another corrupted set or files
            that this one would overwrite, or if another process is writing there.
    """
    output = Path(output)
    cells = tuple(cells_of(corruptions, severities))
    for corruption in corruptions:
        check_corruption(corruption)
    resolve_preset(preset, 32, 32)  # an unknown preset is refused here
    _check_choices(corruptions, severities, layout, image_format)
    for name, number, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("image_size", 1 if image_size is None else image_size, 1),
    ):
        if number < least:
            raise DataError(f"{name}={number!r}: expected a whole number of at least {least}")
    _check_folders(source, output)

    opened = open_test_images(source, root)
    images = PixelDataset(cast("Dataset[Any]", opened.test), image_size)
    height, width = _rgb_size(images[0][0], 0)
    preset = resolve_preset(preset, height, width)
    if layout == "auto":
        layout = "cifar" if preset == "cifar" else "imagenet"
    if layout == "imagenet":
        image_format = image_format or "jpeg"
    elif image_format is not None:
        raise DataError(f"image_format={image_format!r} is for the imagenet layout: the cifar layout has arrays")
    listed = ImageList(images)
    files: ReleasedLayout
    if image_format is None:
        files = CifarLayout(output, severities, listed.labels, (height, width))
    else:
        files = ImageNetLayout(output, severities, listed.file_names(), image_format)
    manifest = Manifest(
        output / MANIFEST,
        {
            "source": opened.name,
            "images": len(images),
            "checksum": listed.checksum,
            "image_size": [height, width],
            "preset": preset,
            "severities": list(severities),
            "seed": seed,
            "layout": layout,
            "image_format": image_format,
            "frost_textures": frost_textures and _checksum_of_ice(frost_textures, images[0][0], preset),
            "version": dynbn_lightning.__version__,
        },
    )
    batches = CorruptedBatches(images, preset, seed, frost_textures, batch_size, num_workers, torch.device(device))
    with os_errors_named(output), only_writer(output):
        if manifest.is_there():
            manifest.check()
        else:
            _check_nothing_is_there(output, files.entries(corruptions))
            with progress_bar(shown=progress) as bar:
                for batch in bar.track(batches.plain(range(len(images))), description="reading every image once"):
                    _check_same_size(batch, (height, width))
            manifest.write()
        remove_unfinished(output, os.listdir(output), {MANIFEST, *files.entries(corruptions)})
        files.prepare()
        missing = {corruption: files.missing(corruption) for corruption in corruptions}
        for corruption, wanted in missing.items():
            manifest.note(corruption, whole=count(wanted) == 0)
        written = sum(count(wanted) for wanted in missing.values())
        if written:
            with progress_bar(shown=progress) as bar:
                total = len(cells) * len(images)
                task = bar.add_task("corrupting", total=total, completed=total - written)

                def advance(cell: Cell, number: int) -> None:
                    bar.update(task, description=cell.name, advance=number)

                _write_missing(files, batches, missing, manifest, advance)
    return CorruptedSet(output, layout, cells, len(images), written)


def _write_missing(
    files: ReleasedLayout,
    batches: CorruptedBatches,
    missing: dict[str, Missing],
    manifest: Manifest,
    advance: Callable[[Cell, int], None],
) -> None:
    for corruption, wanted in missing.items():
        if not manifest.is_whole(corruption):
            with files.writing(corruption) as write:
                for cell, indices, pixels in batches.corrupted(corruption, wanted):
                    write(cell.severity, indices, pixels)
                    advance(cell, len(indices))
            manifest.note(corruption, whole=True)


def _checksum_of_ice(frost_textures: str | Path, image: Tensor, preset: str) -> str:
    corrupt(image[None], "frost", 1, preset, seeds=[0], frost_textures=frost_textures)  # refuses useless ones
    folder = Path(frost_textures)
    return files_checksum(folder, [file for file in sorted(folder.iterdir()) if file.is_file()])


def _check_choices(
    corruptions: Sequence[str], severities: Sequence[int], layout: str, image_format: str | None
) -> None:
    for name, values in (("corruptions", corruptions), ("severities", severities)):
        if isinstance(values, str) or not values or len(set(values)) != len(values):
            raise DataError(f"{name}={values!r}: expected one or more different ones")
    for name, value, known in (("layout", layout, LAYOUTS), ("image_format", image_format or "jpeg", IMAGE_FORMATS)):
        if value not in known:
            raise DataError(f"{name}={value!r}: {did_you_mean(value, known)}")


def _check_folders(source: str | Path | Dataset[Any], output: Path) -> None:
    check_output_folder(output)
    if isinstance(source, (str, Path)) and str(source) not in NAMED_SOURCES:
        inside = Path(source).resolve()
        if output.resolve().is_relative_to(inside):
            raise OutputError(f"{output} lies in the source folder {inside}: choose an output folder beside it")


def _check_nothing_is_there(output: Path, entries: Sequence[str]) -> None:
    there = [name for name in entries if (output / name).exists()]
    if there:
        raise OutputError(
            f"{output} holds {first_few(there)}, but no {MANIFEST} that says how that was made: "
            "choose another output folder"
        )


def _rgb_size(image: Tensor, index: int) -> tuple[int, int]:
    channels, height, width = image.shape
    if channels != 3:
        raise DataError(f"image {index} has {channels} channel(s): the released layouts hold RGB images")
    return height, width


def _check_same_size(batch: Any, size: tuple[int, int]) -> None:
    found = _rgb_size(batch.pixels[0], batch.indices[0])  # the loader has compared it with the rest of its batch
    if found != size:
        raise DataError(
            f"image {batch.indices[0]} is {found[0]} x {found[1]}, image 0 is {size[0]} x {size[1]}: pass image_size= "
            "to resize and crop them all to one size"
        )
