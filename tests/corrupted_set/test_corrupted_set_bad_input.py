"""What is refused, with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from corrupted_set_helpers import contents, write_ice, write_images, write_set
from PIL import Image
from torch.utils.data import TensorDataset

from dynbn_lightning.errors import CorruptionError, DataError, DynBNError, OutputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"corruptions": ("frog",)}, CorruptionError, "did you mean 'fog'"),
        ({"corruptions": ()}, DataError, "one or more different"),
        ({"corruptions": ("fog", "fog")}, DataError, "one or more different"),
        ({"severities": (0,)}, CorruptionError, "severity 0"),
        ({"severities": (5, 5)}, DataError, "one or more different"),
        ({"preset": "cifa"}, CorruptionError, "did you mean 'cifar'"),
        ({"layout": "cifr"}, DataError, "did you mean 'cifar'"),
        ({"image_format": "jpg"}, DataError, "did you mean 'jpeg'"),
        ({"image_format": "png"}, DataError, "for the imagenet layout"),
        ({"batch_size": 0}, DataError, "batch_size=0"),
        ({"num_workers": -1}, DataError, "num_workers=-1"),
        ({"image_size": 0}, DataError, "image_size=0"),
        ({"source": "cifar11"}, DataError, "did you mean 'cifar10'"),
    ],
)
def test_options(options: dict[str, Any], error: type[DynBNError], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        write_set(options.pop("source", source), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"severities": (5, 1)}, r"severities \[1, 5\] there, \[5, 1\] now"),
        ({"preset": "tiny_imagenet"}, "preset 'cifar' there, 'tiny_imagenet' now"),
        ({"layout": "imagenet"}, "layout 'cifar' there, 'imagenet' now; image_format None there, 'jpeg' now"),
        ({"image_size": 16}, r"image_size \[32, 32\] there, \[16, 16\] now"),
    ],
)
def test_another_set_in_one_folder(options: dict[str, Any], message: str, source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    options = {"layout": "cifar", **options}
    with pytest.raises(OutputError, match=rf"another corrupted set, of 'in': {message}; choose another output folder"):
        write_set(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == before


def test_other_images_in_one_folder(source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "out")
    image = source / "cat" / "000.png"
    Image.open(image).rotate(90).save(image)
    with pytest.raises(OutputError, match=r"another corrupted set.*checksum"):
        write_set(source, tmp_path / "out")
    image.rename(source / "cat" / "009.png")
    with pytest.raises(OutputError, match=r"another corrupted set.*checksum"):
        write_set(source, tmp_path / "out")


def test_other_pixels_or_labels_of_a_data_set(tmp_path: Path) -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4)
    write_set(TensorDataset(images, labels), tmp_path / "out")
    for other in (TensorDataset(images + 1, labels), TensorDataset(images, labels.flip(0))):
        with pytest.raises(OutputError, match=r"another corrupted set.*checksum"):
            write_set(other, tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 2, "asked": {}, "whole": []}'])
def test_a_manifest_of_something_else(content: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dynbn_corrupt.json").write_text(content)
    with pytest.raises(OutputError, match=r"dynbn_corrupt.json says nothing of a corrupted set"):
        write_set(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "name"), [("cifar", "labels.npy"), ("cifar", "contrast.npy"), ("imagenet", "contrast")]
)
def test_files_that_no_run_wrote(layout: str, name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(OutputError, match=f"holds {name}, but no dynbn_corrupt.json"):
        write_set(source, tmp_path / "out", layout=layout)
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_other_files_in_the_folder_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bank.safetensors").write_text("mine")
    write_set(source, tmp_path / "out")
    assert (tmp_path / "out" / "bank.safetensors").read_text() == "mine"


@pytest.mark.parametrize("inside", [".", "cat", "out/deep", "../in/out"])
def test_an_output_in_the_source(inside: str, source: Path) -> None:
    before = contents(source)
    with pytest.raises(OutputError, match="lies in the source folder"):
        write_set(source, source / inside)
    assert contents(source) == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "image 0 has 1 channel"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "empty"),
    ],
)
def test_images_that_no_layout_holds(images: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_set(TensorDataset(images, torch.arange(len(images))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_images_of_several_sizes(batch_size: int, source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 32)).save(source / "dog" / "001.png")
    with pytest.raises(DataError, match=r"image 4 .*pass image_size="):
        write_set(source, tmp_path / "out", batch_size=batch_size)
    assert not (tmp_path / "out").exists()
    assert write_set(source, tmp_path / "out", image_size=32).images == 6


def test_an_image_that_cannot_be_read(source: Path, tmp_path: Path) -> None:
    (source / "dog" / "002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="item 5"):
        write_set(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(source: Path, tmp_path: Path) -> None:
    (source / "dog" / "003.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"a file cannot be read.*003\.png"):
        write_set(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grey_files_become_rgb_and_folders_without_images_are_named(source: Path, tmp_path: Path) -> None:
    Image.new("L", (32, 32), 99).save(source / "dog" / "001.png")
    assert write_set(source, tmp_path / "out").images == 6
    (tmp_path / "nothing" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="has no class folders with images"):
        write_set(tmp_path / "nothing", tmp_path / "other")


def test_a_folder_with_training_images_only(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "train")
    with pytest.raises(DataError, match="no test/ folder"):
        write_set(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")


def test_frost_textures_that_cannot_be_used(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match="no frost textures at nowhere"):
        write_set(source, tmp_path / "out", frost_textures="nowhere")
    write_ice(tmp_path / "ice", size=100)  # a fifth of it is smaller than the images
    with pytest.raises(CorruptionError, match="pass larger textures"):
        write_set(source, tmp_path / "out", frost_textures=tmp_path / "ice")
    assert not (tmp_path / "out").exists()


def test_other_frost_textures_in_one_folder(source: Path, tmp_path: Path) -> None:
    write_set(source, tmp_path / "out", frost_textures=write_ice(tmp_path / "ice"))
    for other in (None, write_ice(tmp_path / "snow", level=255)):
        with pytest.raises(OutputError, match="another corrupted set, of 'in': frost_textures"):
            write_set(source, tmp_path / "out", frost_textures=other)


def test_two_images_of_one_name(source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(source / "cat" / "001.jpg")
    with pytest.raises(DataError, match=r"images 1 and 2 would both be cat/001: rename"):
        write_set(source, tmp_path / "out", layout="imagenet")
    assert not (tmp_path / "out").exists()
