"""Released sets that are passed as folders or names: refused, with the reader to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datamodule_helpers import random_images
from released_sets import save, write_arrays, write_clean, write_folders

from dynbn_lightning import CorruptionDataModule
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.datamodules import CIFAR10C, ImageNet3DCC, ImageNetC, TinyImageNetC
from dynbn_lightning.errors import DataError


def said_of(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError, match="released set") as raised:
        CorruptionDataModule(**{"source": None, "test": folder, **options})
    return str(raised.value)


@pytest.mark.parametrize(
    ("folder", "corruptions", "reader"),
    [
        ("raw", ("fog", "contrast"), "ImageNetC"),
        ("ImageNet-C", ("fog",), "ImageNetC"),
        ("Tiny-ImageNet-C", ("fog", "spatter"), "TinyImageNetC"),
        ("raw", ("fog_3d",), "ImageNet3DCC"),
        ("raw", ("sparkles",), "ImageNetCBar"),
    ],
)
def test_folders_of_cells(tmp_path: Path, folder: str, corruptions: tuple[str, ...], reader: str) -> None:
    root = tmp_path / folder
    write_folders(root, corruptions, severities=(3, 5))
    read = f"CorruptionDataModule(test={reader}({str(root)!r})"
    assert said_of(root).endswith(f"{read})")
    one = corruptions[0]
    assert said_of(root / one / "3").endswith(f"{read}, corruptions=[{one!r}], severities=[3])")
    assert said_of(root / one).endswith(f"{read}, corruptions=[{one!r}])")
    assert read in said_of(root, source=str(root), test=None)
    assert read in said_of(root, source=root, test=random_images(4, 0))
    its: Any = {"ImageNetC": ImageNetC, "TinyImageNetC": TinyImageNetC, "ImageNet3DCC": ImageNet3DCC}.get(reader)
    assert its is None or len(CorruptionDataModule(None, test=its(str(root)), corruptions=corruptions).corruptions)


def test_folders_of_groups(tmp_path: Path) -> None:
    write_folders(tmp_path / "raw" / "weather", ("fog",))
    write_folders(tmp_path / "raw" / "blur", ("zoom_blur",))
    assert "test=ImageNetC(" in said_of(tmp_path / "raw")


def test_folders_of_arrays(tmp_path: Path) -> None:
    for folder, reader in {"CIFAR-10-C": "CIFAR10C", "CIFAR-100-C": "CIFAR100C", "mine": "CIFAR10C"}.items():
        write_arrays(tmp_path / folder)
        assert f"test={reader}({str(tmp_path / folder)!r})" in said_of(tmp_path / folder)


def test_sets_that_dynbn_corrupt_wrote(tmp_path: Path) -> None:
    write_corrupted_set("shapes", tmp_path / "made", corruptions=("fog",), severities=(1,), progress=False)
    assert "test=CIFAR10C(" in said_of(tmp_path / "made")
    assert CIFAR10C(tmp_path / "made").corruptions == ("fog",)


def test_photographs_of_the_weather_are_photographs(tmp_path: Path) -> None:
    write_clean(tmp_path / "weather", [f"{name}/{number}" for name in ("fog", "frost", "snow") for number in range(2)])
    assert len(CorruptionDataModule(None, test=tmp_path / "weather").test_images) == 6
    write_clean(tmp_path / "snow" / "2021", ["cat/1", "dog/1"])
    assert len(CorruptionDataModule(None, test=tmp_path / "snow" / "2021").test_images) == 2
    save(tmp_path / "other" / "0" / "0.png", np.zeros((32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "other" / "labels.npy", np.zeros(1))
    np.save(tmp_path / "other" / "logits.npy", np.zeros(1))
    assert len(CorruptionDataModule(None, test=tmp_path / "other").test_images) == 1


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("cifar10-c", "CIFAR10C"),
        ("CIFAR10C", "CIFAR10C"),
        ("cifar100_c", "CIFAR100C"),
        ("imagenet-c", "ImageNetC"),
        ("ImageNet-3DCC", "ImageNet3DCC"),
        ("tiny-imagenet-c", "TinyImageNetC"),
    ],
)
def test_names_of_sets(name: str, reader: str) -> None:
    for given in ({"source": None, "test": name}, {"source": name}):
        with pytest.raises(DataError, match=rf"CorruptionDataModule\(test={reader}\('data'\)\)$") as raised:
            CorruptionDataModule(**given)
        assert "did you mean" not in str(raised.value)
