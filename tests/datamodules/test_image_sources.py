"""Where the images come from: data sets of every kind, folders, CIFAR archives, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodule_helpers import Recorder, random_images, run_test, trainer
from PIL import Image
from torch.utils.data import Dataset

from dynbn_lightning import CorruptionDataModule
from dynbn_lightning.errors import DataError


class OneItem(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return self.item


def test_items_of_every_kind_become_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(array).permute(2, 0, 1)
    for image in (Image.fromarray(array), array, pixels, pixels.float() / 255, pixels.double() / 255):
        data = CorruptionDataModule(OneItem((image, 1)), test=OneItem((image, 1)))
        got, label = data.train_images[0]
        assert torch.equal(got, pixels)
        assert label == 1


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.randn(3, 32, 32), 0), r"item 0 .*not within \[0, 1\].*normalization="),
        ((torch.full((3, 32, 32), float("nan")), 0), "nan"),
        ((torch.zeros(32, 32, dtype=torch.uint8), 0), "shape"),
        ((torch.zeros(3, 32, 32, dtype=torch.int64), 0), "int64"),
        (("image.png", 0), "str"),
        (torch.zeros(3, 32, 32), "item 0"),
    ],
)
def test_bad_items_are_named(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CorruptionDataModule(OneItem(item), test=OneItem(item)).train_images[0]


def write_folder(folder: Path, size: int = 32, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (size, size + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def test_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", size=40)
    data = CorruptionDataModule(tmp_path / "set", corruptions=("fog",), severities=(3,), image_size=32)
    module = Recorder()
    trainer().test(module, datamodule=data, verbose=False)
    images = module.images("test")
    assert len(images) == 24
    assert {tuple(image.shape) for image in images.values()} == {(3, 32, 32)}
    unsized = CorruptionDataModule(tmp_path / "set", corruptions=("fog",), severities=(3,))
    with pytest.raises(DataError, match="image_size="):
        trainer().test(Recorder(), datamodule=unsized, verbose=False)


def test_missing_and_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data folder .*shapes"):
        CorruptionDataModule(tmp_path / "nothing")
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        CorruptionDataModule("cifar-10")
    with pytest.raises(DataError, match="no train/ folder"):
        CorruptionDataModule(tmp_path)
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "val" / "cat").rename(tmp_path / "set" / "val" / "cow")
    data = CorruptionDataModule(tmp_path / "set")
    with pytest.raises(DataError, match=r"other classes.*cat, cow"):
        _ = data.test_images
    twice = CorruptionDataModule(tmp_path / "set" / "train", test=tmp_path / "set" / "val")
    with pytest.raises(DataError, match=r"other classes.*cat, cow"):
        _ = twice.test_images
    with pytest.raises(DataError, match="no training images"):
        _ = CorruptionDataModule(None, test=random_images(4, 0)).train_images


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_when_it_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def no_network(self: Any) -> None:
        asked.append((type(self).__name__, str(self.root)))
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", no_network)
    data = CorruptionDataModule(name, root=tmp_path / "nowhere")
    for use in (data.prepare_data, data.row_loaders, data.test_dataloader):
        with pytest.raises(DataError, match=rf"{name} is not in .*nowhere.*no route to host.*root="):
            use()
    assert asked == [(name.upper(), str(tmp_path / "nowhere"))] * 3


def test_a_broken_image_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "train" / "cat" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="item 3 of ImageFolder"):
        CorruptionDataModule(tmp_path / "set").train_images[3]


def test_cifar_in_torchvisions_layout(cifar10_archive: Path) -> None:
    data = CorruptionDataModule(
        "cifar10", root=cifar10_archive, corruptions=("contrast",), severities=(1,), batch_size=4
    )
    data.prepare_data()
    assert len(data.train_images) == 40
    assert len(run_test(data).images("test")) == 2 * 8
