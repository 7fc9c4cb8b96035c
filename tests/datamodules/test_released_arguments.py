"""What readers of released sets are given: transforms, subsets, clean images, folders of another set."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodule_helpers import run_test, trainer
from released_sets import NAMES, chw, labels_of, save, write_arrays, write_clean, write_folders
from torch.utils.data import DataLoader
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from dynbn_lightning import ClassifierModule, CorruptionDataModule
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import CIFAR10C, CIFAR100C, ImageNet3DCC, ImageNetC, ImageNetCBar, TinyImageNetC
from dynbn_lightning.errors import DataError
from dynbn_lightning.models import cifar_resnet8

SORTED = sorted(NAMES)
WNIDS = ("n01443537", "n01629819", "n15075141")
"""Goldfish, European fire salamander, toilet tissue: classes 1, 25 and 999 of ImageNet-1k."""
NORMALIZED = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (NORMALIZED, r"not within \[0, 1\].*leave Normalize to the normalization= of"),
        (ResNet18_Weights.DEFAULT.transforms(), "leave Normalize to the normalization="),
        (lambda image: np.asarray(image, dtype=np.float64), "ValueError.*uint8"),
        (lambda image: None, "TypeError.*PIL image"),
        (lambda image: image.nothing, "AttributeError.*nothing"),
    ],
)
def test_transforms_that_give_no_images_are_refused(tmp_path: Path, transform: Any, message: str) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    with pytest.raises(DataError, match=rf"transform= can't be used on a grey image of .*ImageNet-C's .*{message}"):
        ImageNetC(tmp_path, transform=transform)


def test_a_transform_that_fails_on_some_image_names_it(tmp_path: Path) -> None:
    write_folders(tmp_path / "Tiny-ImageNet-C", ("fog",), size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        released = TinyImageNetC(tmp_path, transform=lambda image: image if image.size == (64, 64) else image.nothing)
    with pytest.raises(DataError, match=r"transform= can't be used on image 2 of Tiny-ImageNet-C in fog/3 .*nothing"):
        released.image(2, "fog/3")


def test_trying_a_transform_draws_nothing(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    CIFAR10C(tmp_path, transform=v2.ColorJitter(0.5))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        (np.int64(4), [0, 2, 5, 7]),
        (np.array([9, 0, 3]), [9, 0, 3]),
        ([np.int32(9), 0, np.uint8(3)], [9, 0, 3]),
        (torch.tensor([9, 0]), [9, 0]),
    ],
)
def test_subsets_of_numpy(tmp_path: Path, subset: Any, expected: list[int]) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=10)
    assert CIFAR10C(tmp_path, subset=subset).chosen == expected


def test_subsets_of_numpy_that_are_none(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=10)
    for subset in (np.array([0.5, 1.0]), np.zeros(10, dtype=bool), np.zeros((2, 2), dtype=int)):
        with pytest.raises(DataError, match="subset="):
            CIFAR10C(tmp_path, subset=subset)  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", [ImageNetC, ImageNet3DCC, ImageNetCBar])
def test_some_classes_of_imagenet_have_the_labels_of_all(tmp_path: Path, reader: Any) -> None:
    corruption = reader.own_corruptions[-1]
    names = [f"{wnid}/ILSVRC_{number}" for wnid in WNIDS for number in (1, 2)]
    written = write_folders(tmp_path, (corruption,), names=names, severities=(5,))
    released = reader(tmp_path, corruptions=(corruption,))
    assert released.labels == [1, 1, 25, 25, 999, 999]
    assert released.classes is not None
    assert len(released.classes) == 1000
    assert [released.classes[label] for label in released.labels[::2]] == list(WNIDS)
    assert torch.equal(released.image(4, f"{corruption}/5"), chw(written[f"{corruption}/5", names[4]]))
    clean = write_clean(tmp_path / "val", names)
    released = reader(tmp_path, corruptions=(corruption,), clean=tmp_path / "val")
    assert torch.equal(released.image(5, "clean"), chw(clean[names[5]]))


def test_models_of_a_thousand_classes_take_them(tmp_path: Path) -> None:
    write_folders(tmp_path, ("fog",), names=[f"{wnid}/ILSVRC_1" for wnid in WNIDS], severities=(5,))
    data = CorruptionDataModule(None, test=ImageNetC(tmp_path), corruptions=("fog",))
    models = [cifar_resnet8(num_classes=count, width=4).eval() for count in (1000, 3)]
    trainer().test(ClassifierModule(models[0]), datamodule=data, verbose=False)
    with pytest.raises(DataError, match="the data has 1000 classes"):
        trainer().test(ClassifierModule(models[1]), datamodule=data, verbose=False)


def test_the_classes_may_be_named(tmp_path: Path) -> None:
    write_folders(tmp_path, ("fog",), names=[f"{wnid}/ILSVRC_1" for wnid in WNIDS], severities=(5,))
    order = (WNIDS[2], "n00000001", WNIDS[0], WNIDS[1])
    released = ImageNetC(tmp_path, corruptions=("fog",), classes=order)
    assert released.labels == [2, 3, 0]
    assert released.classes == list(order)
    with pytest.raises(DataError, match=f"classes= lacks {WNIDS[0]}: ImageNet-C"):
        len(ImageNetC(tmp_path, corruptions=("fog",), classes=WNIDS[1:]))
    for wrong in ("n01443537", [WNIDS[0], WNIDS[0]]):
        with pytest.raises(DataError, match=r"classes=.*expected the names of different classes"):
            ImageNetC(tmp_path, classes=wrong)
    write_arrays(tmp_path / "CIFAR-10-C")
    with pytest.raises(DataError, match=r"labels\.npy: classes= is for sets of class folders"):
        CIFAR10C(tmp_path, classes=["airplane"])


def test_other_classes_are_numbered_as_they_are_there(tmp_path: Path) -> None:
    wnids = [f"{wnid}/ILSVRC_1" for wnid in WNIDS]
    for number, (reader, folder, names) in enumerate(
        [
            (ImageNetC, "ImageNet-C", [*wnids, "n00000001/ILSVRC_1"]),
            (ImageNetC, "ImageNet-C", ["cat/ILSVRC_1", *wnids]),
            (TinyImageNetC, "Tiny-ImageNet-C", wnids),
        ]
    ):
        write_folders(tmp_path / str(number) / folder, ("fog",), names=names, severities=(1,))
        released = reader(tmp_path / str(number), corruptions=("fog",))
        assert released.labels == list(range(len(names)))
    write_clean(tmp_path / "source", wnids)
    options: dict[str, Any] = {"corruptions": ("fog",), "severities": (1,), "layout": "imagenet", "progress": False}
    write_corrupted_set(tmp_path / "source", tmp_path / "made", **options)
    assert ImageNetC(tmp_path / "made").labels == [0, 1, 2], "as those of the images that were corrupted"


@pytest.mark.parametrize(
    ("reader", "folder", "count", "message"),
    [
        (CIFAR100C, "CIFAR-100-C", 10, "labels of 10 classes, and CIFAR-100-C has 100"),
        (CIFAR10C, "CIFAR-10-C", 9, "labels of 9 classes, and CIFAR-10-C has 10"),
        (CIFAR10C, "CIFAR-10-C", 100, "labels from 0 to 99: CIFAR-10-C has 0 to 9"),
    ],
)
def test_a_whole_set_of_another_number_of_classes(
    tmp_path: Path, reader: Any, folder: str, count: int, message: str
) -> None:
    write_arrays(tmp_path / folder)
    np.save(tmp_path / folder / "labels.npy", np.tile(np.arange(10_000) % count, 5))
    with pytest.raises(DataError, match=message):
        len(reader(tmp_path))
    right = 100 if reader is CIFAR100C else 10
    np.save(tmp_path / folder / "labels.npy", np.tile(np.arange(10_000) % right, 5))
    assert len(reader(tmp_path)) == 10_000


def test_a_cell_is_a_plain_data_set(tmp_path: Path) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C")["fog"]
    released = CIFAR10C(tmp_path, subset=[7, 2, 5], corruptions=("fog",))
    cell = released.cell("fog/3")
    assert cell.targets == labels_of(12)[[7, 2, 5]].tolist()
    assert cell.classes == released.classes
    assert [label for _, label in cell] == cell.targets  # a plain loop, which ends
    ((images, labels),) = DataLoader(cell, batch_size=3, num_workers=1)
    assert torch.equal(images, torch.stack([chw(written[2 * 12 + number]) for number in (7, 2, 5)]))
    assert labels.tolist() == cell.targets
    assert torch.equal(cell[-1][0], images[2])
    assert repr(cell) == f"{released!r}.cell('fog/3')"
    for wrong, message in {"clean": "no clean images: pass them", "snow/1": r"lacks snow\.npy"}.items():
        with pytest.raises(DataError, match=message):
            released.cell(wrong)
    for place in (0, slice(3)):
        with pytest.raises(DataError, match=r"is no image of CIFAR-10-C.*its\.cell\('fog/3'\)"):
            released[place]


def test_clean_folders_that_are_not_the_right_ones(tmp_path: Path) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    write_clean(tmp_path / "imagenet" / "val")
    high = ImageNetC(tmp_path, clean=tmp_path / "imagenet")
    with pytest.raises(DataError, match=rf"lacks 6 of 6 .*did you mean clean='{tmp_path}/imagenet/val'\?"):
        high.image(0, "clean")
    for file in list((tmp_path / "imagenet").rglob("*.bmp")):
        shutil.move(file, tmp_path / "imagenet" / "val" / f"{file.parent.name}_{file.name}")
    for name in ("n01", "n02", "n03"):
        shutil.rmtree(tmp_path / "imagenet" / "val" / name)
    flat = ImageNetC(tmp_path, clean=tmp_path / "imagenet" / "val")
    with pytest.raises(DataError, match="lie beside each other: move them into a folder for each class"):
        flat.image(0, "clean")
    write_arrays(tmp_path / "CIFAR-10-C")
    save(tmp_path / "flat" / "0.png", np.zeros((32, 32, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="lie beside each other"):
        CIFAR10C(tmp_path, clean=tmp_path / "flat").image(0, "clean")
    for wrong, message in {str(tmp_path / "nothing"): "there is no such folder", 3: "clean=int: expected"}.items():
        with pytest.raises(DataError, match=message):
            CIFAR10C(tmp_path, clean=wrong)  # type: ignore[arg-type]


def test_arrays_without_labels(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    (tmp_path / "CIFAR-10-C" / "labels.npy").unlink()
    with pytest.raises(DataError, match=r"CIFAR-10-C' has fog\.npy, but no labels\.npy"):
        CIFAR10C(tmp_path)


def test_clean_images_are_not_kept(tmp_path: Path) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    write_clean(tmp_path / "val")
    released = ImageNetC(tmp_path, clean=tmp_path / "val")
    before = released.image(0, "clean")
    save(tmp_path / "val" / f"{SORTED[0]}.bmp", np.zeros((32, 32, 3), dtype=np.uint8))
    assert before.sum() > 0
    assert released.image(0, "clean").sum() == 0


def test_a_set_of_one_severity(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "ImageNet-C", ("fog", "snow"), severities=(5,))
    released = ImageNetC(tmp_path, corruptions=("snow", "fog"))
    assert released.severities == (5,)
    data = CorruptionDataModule(None, test=released, batch_size=4)
    assert data.cells == [Cell("snow", 5), Cell("fog", 5)]
    images = run_test(data).images("test")
    assert torch.equal((images["fog/5", 3] * 255).round().byte(), chw(written["fog/5", SORTED[3]]))
    with pytest.raises(DataError, match="lacks snow/4/, fog/4/"):
        CorruptionDataModule(None, test=copy.copy(released), severities=(4, 5))
