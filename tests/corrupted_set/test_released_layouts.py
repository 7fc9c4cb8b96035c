"""What is written: the layouts of CIFAR-10-C and ImageNet-C, and the pixels that the datamodule makes on the fly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corrupted_set_helpers import CORRUPTIONS, SEVERITIES, contents, write_ice, write_images, write_set
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from dynbn_lightning import CorruptionDataModule, corrupt
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import CORRUPTIONS as ALL_CORRUPTIONS
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import ShapesDataset
from dynbn_lightning.datamodules.seeds import hashed_seed


def pixels_on_the_fly(data: CorruptionDataModule) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """(cell, image number) -> (H, W, 3), of the datamodule's test stream."""
    found = {}
    for batch in data.test_dataloader():
        images, _ = data.on_after_batch_transfer(batch, 0)
        assert data.batch_info is not None
        levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for image, index, name in zip(levels, data.batch_info.indices, data.batch_info.names, strict=True):
            found[name, index] = image
    return found


def test_cifar_layout_holds_each_severity_after_the_other(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in")
    made = write_set(source, tmp_path / "out", seed=3)
    assert (made.layout, made.images, made.written) == ("cifar", 6, 36)
    assert [cell.name for cell in made.cells][:3] == ["gaussian_noise/1", "gaussian_noise/5", "contrast/1"]
    names = {f"{corruption}.npy" for corruption in CORRUPTIONS}
    assert set(contents(tmp_path / "out")) == {"labels.npy", "dynbn_corrupt.json", *names}
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] * 2

    for corruption in CORRUPTIONS:
        images = np.load(tmp_path / "out" / f"{corruption}.npy")
        assert (images.dtype, images.shape) == (np.uint8, (12, 32, 32, 3))
        for block, severity in enumerate(SEVERITIES):
            for index, (image, _) in enumerate(ImageFolder(source)):
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
                seed = hashed_seed(3, "test", -1, index, Cell(corruption, severity).code)
                expected = corrupt(pixels, corruption, severity, "cifar", seeds=[seed])[0].permute(1, 2, 0)
                assert np.array_equal(images[6 * block + index], expected)


@pytest.mark.parametrize("layout", ["cifar", "imagenet"])
def test_every_corruption_is_what_the_datamodule_makes(layout: str, tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", count=2)
    options = {"preset": "tiny_imagenet", "seed": 7, "severities": (3,), "corruptions": ALL_CORRUPTIONS}
    image_format = "png" if layout == "imagenet" else None
    write_set(source, tmp_path / "out", layout=layout, image_format=image_format, **options)
    expected = pixels_on_the_fly(CorruptionDataModule(None, test=source, batch_size=5, **options))  # type: ignore[arg-type]
    files = [Path(path).relative_to(source) for path, _ in ImageFolder(source).samples]
    for corruption in ALL_CORRUPTIONS:
        for index, file in enumerate(files):
            if layout == "cifar":
                image = np.load(tmp_path / "out" / f"{corruption}.npy")[index]
            else:
                image = np.array(Image.open(tmp_path / "out" / corruption / "3" / file))
            assert np.array_equal(image, expected[f"{corruption}/3", index]), corruption


def test_frost_is_made_of_the_textures_that_are_given(tmp_path: Path) -> None:
    source, ice = write_images(tmp_path / "in"), write_ice(tmp_path / "ice")
    write_set(source, tmp_path / "generated", corruptions=("frost", "contrast"))
    write_set(source, tmp_path / "given", corruptions=("frost", "contrast"), frost_textures=ice)
    generated, given = (contents(tmp_path / name) for name in ("generated", "given"))
    assert generated["contrast.npy"] == given["contrast.npy"]
    assert generated["frost.npy"] != given["frost.npy"]
    image = torch.from_numpy(np.array(ImageFolder(source)[4][0])).permute(2, 0, 1)[None]
    seed = hashed_seed(0, "test", -1, 4, Cell("frost", 5).code)
    expected = corrupt(image, "frost", 5, seeds=[seed], frost_textures=ice)[0].permute(1, 2, 0)
    assert np.array_equal(np.load(tmp_path / "given" / "frost.npy")[6 + 4], expected)


def test_severities_lie_in_the_order_they_are_given_in(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in")
    write_set(source, tmp_path / "up")
    write_set(source, tmp_path / "down", severities=SEVERITIES[::-1])
    up, down = (np.load(tmp_path / name / "contrast.npy") for name in ("up", "down"))
    assert np.array_equal(up, np.concatenate([down[6:], down[:6]]))
    assert up[6:].std() < up[:6].std(), "severity 5 leaves less contrast than severity 1"


def test_batches_and_workers_change_nothing(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in")
    for layout in ("cifar", "imagenet"):
        write_set(source, tmp_path / layout / "a", layout=layout)
        write_set(source, tmp_path / layout / "b", layout=layout, batch_size=5, num_workers=1)
        assert contents(tmp_path / layout / "a") == contents(tmp_path / layout / "b")


def test_labels_beyond_a_byte_are_not_cut(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    write_set(TensorDataset(images, torch.tensor([0, 256, 999])), tmp_path / "out", corruptions=("contrast",))
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 256, 999] * 2


def test_imagenet_layout_is_read_by_image_folder(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", size=64)
    made = write_set(source, tmp_path / "out")
    assert made.layout == "imagenet"
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            folder = ImageFolder(tmp_path / "out" / corruption / str(severity))
            assert folder.classes == ["cat", "dog"]
            assert folder.targets == [0, 0, 0, 1, 1, 1]
            assert [Path(path).name for path, _ in folder.samples] == ["000.JPEG", "001.JPEG", "002.JPEG"] * 2
            assert all(image.size == (64, 64) for image, _ in folder)


def test_jpeg_is_the_png_at_the_quality_of_the_released_set(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", size=64)
    write_set(source, tmp_path / "png", image_format="png")
    write_set(source, tmp_path / "jpeg")
    for lossless in (tmp_path / "png").rglob("*.png"):
        Image.open(lossless).save(tmp_path / "expected.jpg", quality=85, optimize=True)
        lossy = tmp_path / "jpeg" / lossless.relative_to(tmp_path / "png").with_suffix(".JPEG")
        assert lossy.read_bytes() == (tmp_path / "expected.jpg").read_bytes()


@pytest.mark.parametrize(
    ("size", "options", "layout"),
    [
        (32, {}, "cifar"),
        (64, {}, "imagenet"),
        (32, {"preset": "imagenet"}, "imagenet"),
        (64, {"preset": "cifar"}, "cifar"),
        (64, {"image_size": 32}, "cifar"),
        (64, {"layout": "cifar"}, "cifar"),
    ],
)
def test_layout_auto_is_the_one_released_with_the_preset(
    size: int, options: dict[str, object], layout: str, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", size=size, count=1)
    made = write_set(source, tmp_path / "out", corruptions=("contrast",), **options)
    assert made.layout == layout
    if layout == "cifar":
        side = options.get("image_size", size)
        assert np.load(tmp_path / "out" / "contrast.npy").shape == (4, side, side, 3)


@pytest.mark.parametrize("split", ["test", "val"])
def test_of_a_folder_with_splits_the_test_images_are_corrupted(split: str, tmp_path: Path) -> None:
    write_images(tmp_path / "in" / "train", count=5)
    alone = write_images(tmp_path / "in" / split)
    write_set(tmp_path / "in", tmp_path / "a")
    made = write_set(alone, tmp_path / "b")
    assert made.images == 6
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "b").keys()
    for name in ("labels.npy", "gaussian_noise.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_class_folders_keep_the_labels_where_class_names_are_in_another_order(tmp_path: Path) -> None:
    shapes = ShapesDataset("test", size=12)
    write_set(shapes, tmp_path / "out", layout="imagenet", corruptions=("contrast",))
    folder = ImageFolder(tmp_path / "out" / "contrast" / "5")
    assert folder.classes[:3] == ["0_disk", "1_ring", "2_square"]
    assert sorted(folder.targets) == sorted(shapes.targets)
    assert {Path(path).name for path, _ in folder.samples} == {f"{index:02}.JPEG" for index in range(12)}


def test_images_of_no_class_names_are_numbered(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8)
    data = TensorDataset(images, torch.arange(11))
    write_set(data, tmp_path / "out", layout="imagenet", corruptions=("contrast",))
    folder = ImageFolder(tmp_path / "out" / "contrast" / "1")
    assert folder.classes == [f"{label:02}" for label in range(11)]
    assert folder.targets == list(range(11))


def test_a_cifar10_archive(cifar10_archive: Path, tmp_path: Path) -> None:
    made = write_set("cifar10", tmp_path / "out", root=cifar10_archive, severities=(1, 2, 3, 4, 5))
    assert made.images == 8
    images, labels = np.load(tmp_path / "out" / "contrast.npy"), np.load(tmp_path / "out" / "labels.npy")
    # as the readers of CIFAR-10-C take a severity out, with 8 where it has 10,000
    for severity in (1, 5):
        block = slice((severity - 1) * 8, severity * 8)
        assert images[block].shape == (8, 32, 32, 3)
        assert labels[block].tolist() == list(range(8))


def test_defaults_are_all_corruptions_at_all_severities(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", count=1, classes=("cat",))
    made = write_corrupted_set(source, tmp_path / "out", progress=False)
    assert len(made.cells) == made.written == 95
    assert len(list((tmp_path / "out").glob("*.npy"))) == 20
