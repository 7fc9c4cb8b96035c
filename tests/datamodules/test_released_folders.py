"""Readers of the layout of ImageNet-C: pixels and labels by name, and folders that differ from each other."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from released_sets import NAMES, chw, save, write_clean, write_folders
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import CIFAR10C, ImageNet3DCC, ImageNetC, ImageNetCBar, ReleasedSet, TinyImageNetC
from dynbn_lightning.errors import DataError, UnreadableImageError

SORTED = sorted(NAMES)


@pytest.mark.parametrize(
    ("reader", "folder", "corruptions"),
    [
        (ImageNetC, "ImageNet-C", ("fog", "spatter")),
        (TinyImageNetC, "Tiny-ImageNet-C", ("glass_blur",)),
        (ImageNet3DCC, "imagenet_3dcc", ("fog_3d", "h265_crf")),
        (ImageNetCBar, "cbar_download", ("sparkles",)),
        (ImageNetC, "", ("fog",)),
        (ImageNetC, "ImageNet-C/weather", ("fog",)),
    ],
)
def test_every_image_of_every_cell(
    tmp_path: Path, reader: type[ReleasedSet], folder: str, corruptions: tuple[str, ...]
) -> None:
    written = write_folders(tmp_path / folder, corruptions)
    released = reader(tmp_path, corruptions=corruptions)
    assert len(released) == 6
    assert released.classes == ["n01", "n02", "n03"]
    assert released.labels == [0, 0, 1, 1, 2, 2]
    for (cell, name), pixels in written.items():
        index = SORTED.index(name)
        assert torch.equal(released.image(index, cell), chw(pixels))
        path = released.file_of(index, cell)
        assert path is not None
        assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_suffixes_may_differ_and_other_files_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "ImageNet-C" / "fog"
    written = write_folders(folder.parent, ("fog",))
    save(folder / "2" / "n01" / "ILSVRC_10.BMP", written["fog/2", "n01/ILSVRC_10"])
    (folder / "2" / "n01" / "ILSVRC_10.png").unlink()
    (folder / "2" / "n01" / "notes.txt").write_text("no image")
    (folder / "2" / "n01" / ".ILSVRC_10.abcdefgh.png").write_text("unfinished")
    (folder / "2" / ".DS_Store").write_text("")
    released = ImageNetC(tmp_path)
    for index, name in enumerate(SORTED):
        assert torch.equal(released.image(index, "fog/2"), chw(written["fog/2", name]))
    shutil.copy(folder / "3" / "n01" / "ILSVRC_10.png", folder / "3" / "n01" / "ILSVRC_10.bmp")
    with pytest.raises(DataError, match=r"3/n01 has ILSVRC_10\.(png|bmp) and ILSVRC_10\.(png|bmp)"):
        released.image(0, "fog/3")


def test_cells_of_other_images_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ImageNet-C"
    write_folders(folder, ("fog", "snow", "frost"))
    for name in SORTED[:2]:
        (folder / "snow" / "4" / f"{name}.png").unlink()
    save(folder / "frost" / "1" / "n01" / "stranger.png", np.zeros((32, 32, 3), dtype=np.uint8))
    released = ImageNetC(tmp_path)
    released.layout.check([Cell("fog", 1), Cell("snow", 3), Cell("frost", 2)])
    lacks = r"snow/4 lacks 2 of the 6 images .*fog/1 has: n01/ILSVRC_10, n01/ILSVRC_20"
    with pytest.raises(DataError, match=lacks):
        released.layout.check([Cell("fog", 1), Cell("snow", 4)])
    with pytest.raises(DataError, match=lacks):
        released.image(5, "snow/4")
    with pytest.raises(DataError, match=r"frost/1 has 1 images that .* lacks: n01/stranger"):
        released.layout.check([Cell("frost", 1)])
    shutil.rmtree(folder / "fog" / "5")
    with pytest.raises(DataError, match=r"lacks gaussian_blur/1/, .*gaussian_blur/4/: .*download=True"):
        ImageNetC(tmp_path, corruptions=("fog", "gaussian_blur"))


def test_each_cell_is_listed_once_and_no_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog", "snow"))
    released = ImageNetC(tmp_path, corruptions=("fog", "snow"))
    listed: list[str] = []
    scandir = os.scandir

    def counting(path: Any) -> Any:
        listed.append(str(path))
        return scandir(path)

    looked_at: list[str] = []
    stat = os.stat

    def looking(path: Any, **options: Any) -> Any:
        looked_at.append(str(path))
        return stat(path, **options)

    cells = [cell for cell in released.cells if cell.severity in (1, 2)]
    monkeypatch.setattr("os.scandir", counting)
    monkeypatch.setattr("os.stat", looking)
    released.layout.check(cells)
    assert not [path for path in looked_at if path.endswith(".png")]
    for _ in range(3):
        released.layout.check(cells)
        for cell in cells:
            released.image(5, cell)
    assert len(listed) == len(set(listed)) == len(cells) * (1 + 3), "the folder of each cell, and its classes"


def test_subsets_by_name(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "ImageNet-C", ("fog",))
    released = ImageNetC(tmp_path, subset=["n02/ILSVRC_20.JPEG", "n01/ILSVRC_10"])
    assert released.labels == [1, 0]
    assert torch.equal(released.image(0, "fog/1"), chw(written["fog/1", "n02/ILSVRC_20"]))
    assert ImageNetC(tmp_path, subset=3).labels == [0, 1, 2]
    with pytest.raises(DataError, match=r"n02/ILSVRC_21\.JPEG', which ImageNet-C lacks: did you mean 'n02/ILSVRC_20'"):
        len(ImageNetC(tmp_path, subset=["n02/ILSVRC_21.JPEG"]))
    with pytest.raises(DataError, match="twice"):
        len(ImageNetC(tmp_path, subset=["n02/ILSVRC_20.JPEG", "n02/ILSVRC_20.png"]))


@pytest.mark.parametrize("nested", [False, True])
def test_clean_images_are_found_by_name(tmp_path: Path, nested: bool) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    names = [*NAMES, "n01/another", "n09/one"]
    clean = write_clean(tmp_path / "val", names)
    if nested:
        for class_folder in list((tmp_path / "val").iterdir()):
            class_folder.rename(tmp_path / "val" / "images")
            class_folder.mkdir()
            (tmp_path / "val" / "images").rename(class_folder / "images")
    released = ImageNetC(tmp_path, clean=tmp_path / "val", subset=[4, 0])
    assert torch.equal(released.image(0, "clean"), chw(clean[SORTED[4]]))
    assert torch.equal(released.image(1, "clean"), chw(clean[SORTED[0]]))
    path = released.file_of(1, "clean")
    assert path is not None
    assert path.endswith(".bmp")
    (tmp_path / "val" / SORTED[4].replace("/", "/images/" if nested else "/")).with_suffix(".bmp").unlink()
    again = ImageNetC(tmp_path, clean=tmp_path / "val", subset=[4, 0])
    with pytest.raises(DataError, match=rf"lacks 1 of 2 images: {SORTED[4]}"):
        again.image(1, "clean")
    with pytest.raises(DataError, match="no such folder"):
        ImageNetC(tmp_path, clean=tmp_path / "nothing").image(0, "clean")


def test_larger_clean_images_are_resized_and_cropped(tmp_path: Path) -> None:
    write_folders(tmp_path / "Tiny-ImageNet-C", ("fog",), size=56)
    clean = write_clean(tmp_path / "val", size=90)
    released = TinyImageNetC(tmp_path, clean=tmp_path / "val")
    expected = v2.functional.center_crop(v2.functional.resize(chw(clean[SORTED[3]]), [64], antialias=True), [56, 56])
    assert torch.equal(released.image(3, "clean"), expected)


def test_broken_files_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",), suffix=".JPEG", size=64)
    folder = tmp_path / "ImageNet-C" / "fog" / "2"
    whole = (folder / f"{SORTED[0]}.JPEG").read_bytes()
    (folder / f"{SORTED[0]}.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / f"{SORTED[1]}.JPEG").write_bytes(b"")
    released = ImageNetC(tmp_path)
    assert released.image(2, "fog/2").shape == (3, 64, 64)
    (folder / f"{SORTED[2]}.JPEG").unlink()
    for index in (0, 1, 2):
        with pytest.raises(UnreadableImageError, match=rf"image {index} .*fog/2.* {folder}/{SORTED[index]}\.JPEG"):
            released.image(index, "fog/2")
    assert released.image(0, "fog/1").shape == (3, 64, 64)


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_sets_that_dynbn_corrupt_wrote(tmp_path: Path, image_format: str) -> None:
    made, source = tmp_path / "made", tmp_path / "source"
    clean = write_clean(source)
    options: dict[str, Any] = {"layout": "imagenet", "image_format": image_format, "progress": False}
    write_corrupted_set(source, made, corruptions=("snow", "contrast"), severities=(3, 1), **options)
    released = ImageNetC(made, clean=source)
    assert (released.corruptions, released.severities) == (("snow", "contrast"), (3, 1))
    assert released.image_size == 32
    assert len(released.cells) == 1 + 4
    for cell in released.cells[1:]:
        for index, name in enumerate(SORTED):
            file = next((made / cell.name).glob(f"{name}.*"))
            assert torch.equal(released.image(index, cell), chw(np.asarray(Image.open(file))))
    assert torch.equal(released.image(2, "clean"), chw(clean[SORTED[2]]))
    (made / "dynbn_corrupt.json").write_text("{}")
    with pytest.raises(DataError, match=r"dynbn_corrupt\.json says nothing"):
        ImageNetC(made)


@pytest.mark.parametrize(
    ("transform", "names"),
    [
        (v1.Compose([v1.Resize(256), v1.CenterCrop(224)]), "Resize, CenterCrop"),
        (v2.Compose([v2.Identity(), v2.Compose([v2.RandomResizedCrop(224)])]), "RandomResizedCrop"),
        (v2.RandomApply([v2.RandomCrop(30)]), "RandomCrop"),
        (torch.nn.Sequential(v2.Identity(), v2.Resize(32)), "Resize"),
        (ImageClassification(crop_size=224, mean=(0.0,) * 3, std=(1.0,) * 3), "ImageClassification"),
        (lambda image: image.crop((0, 0, 200, 180)), "what makes 180 x 200 px of 224 x 224"),
    ],
)
def test_resizing_transforms_are_warned_about(tmp_path: Path, transform: Any, names: str) -> None:
    write_folders(tmp_path / "ImageNet-C", ("fog",))
    with pytest.warns(UserWarning, match=rf"has {names}, .* 224 px already") as warned:
        ImageNetC(tmp_path, transform=transform)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_transforms_get_pictures(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "ImageNet-C", ("fog",))
    clean = write_clean(tmp_path / "val")
    seen: list[type] = []

    def flip(image: Image.Image) -> Any:
        seen.append(type(image))
        return v1.ToTensor()(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        released = ImageNetC(tmp_path, transform=v1.Compose([flip]), clean=tmp_path / "val")
    assert torch.equal(released.image(1, "fog/1"), chw(written["fog/1", SORTED[1]]).flip(2))
    assert torch.equal(released.image(1, "clean"), chw(clean[SORTED[1]]).flip(2))
    assert seen == [Image.Image] * 3, "once more to try it"


def test_sets_can_be_sent(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "ImageNet-C", ("fog",))
    released = ImageNetC(tmp_path)
    len(released)
    assert torch.equal(pickle.loads(pickle.dumps(released)).image(5, "fog/3"), chw(written["fog/3", SORTED[5]]))


def test_the_wrong_layout(tmp_path: Path) -> None:
    write_folders(tmp_path, ("fog",))
    with pytest.raises(DataError, match="CIFAR-10-C is not in"):
        CIFAR10C(tmp_path)
    (tmp_path / "fog").rename(tmp_path / "fogg")
    with pytest.raises(DataError, match=r"ImageNet-C is not in .*expected folders CORRUPTION/SEVERITY/CLASS"):
        ImageNetC(tmp_path)
