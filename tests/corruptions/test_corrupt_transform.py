"""`Corrupt` takes what torchvision's v2 transforms take, and does what `corrupt` does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sample_pictures import pictures
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dynbn_lightning.corruptions import Corrupt, corrupt
from dynbn_lightning.errors import CorruptionError, ImageError


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 32, 32), (1, 40, 30)])
def test_tensors_keep_their_shape_and_come_out_as_from_corrupt(shape: tuple[int, ...]) -> None:
    images = pictures(2, *shape[-3:])[: 1 if len(shape) == 3 else 2].view(shape)
    made = Corrupt("contrast", 4)(images)
    assert type(made) is Tensor
    assert torch.equal(made, corrupt(images.view(-1, *shape[-3:]), "contrast", 4).view(shape))


def test_pil_images_and_tv_tensors_stay_what_they_are() -> None:
    pixels = pictures(1, 3, 32, 32)[0]
    expected = corrupt(pixels.unsqueeze(0), "jpeg_compression", 5)[0]
    made = Corrupt("jpeg_compression", 5)(tv_tensors.Image(pixels))
    assert isinstance(made, tv_tensors.Image)
    assert torch.equal(made.as_subclass(Tensor), expected)
    for picture, mode in (
        (Image.fromarray(pixels.movedim(0, -1).numpy()), "RGB"),
        (Image.fromarray(pixels[0].numpy()), "L"),
    ):
        out = Corrupt("contrast", 5)(picture)
        assert isinstance(out, Image.Image)
        assert out.mode == mode
        assert np.asarray(out).shape == np.asarray(picture).shape
        assert not np.array_equal(np.asarray(out), np.asarray(picture))


def test_only_the_images_of_a_sample_change() -> None:
    boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(32, 32))
    sample = {"image": tv_tensors.Image(pictures(1, 3, 32, 32)[0]), "boxes": boxes, "label": 3, "id": torch.arange(3)}
    made = Corrupt("fog", 5)(sample)
    assert not torch.equal(made["image"], sample["image"])
    assert torch.equal(made["boxes"], boxes)
    assert made["label"] == 3
    assert torch.equal(made["id"], sample["id"])
    images, labels = Corrupt("fog", 5)(pictures(4, 3, 32, 32), torch.arange(4))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 3]


def test_cells_are_drawn_for_each_image_and_torchs_seed_reproduces_them() -> None:
    images = pictures(1, 3, 32, 32).expand(40, -1, -1, -1)
    transform = Corrupt(["clean", "contrast", "brightness"], [1, 5])
    torch.manual_seed(0)
    first = transform(images)
    assert 4 <= len(first.unique(dim=0)) <= 5, "clean, and two corruptions at two severities"
    torch.manual_seed(0)
    assert torch.equal(transform(images), first)
    assert not torch.equal(transform(images), first)
    noisy = Corrupt("gaussian_noise", 3)
    assert not torch.equal(noisy(images), noisy(images))


def test_it_composes() -> None:
    transform = v2.Compose([v2.CenterCrop(24), Corrupt(), v2.ToDtype(torch.float32, scale=True)])
    made = transform(pictures(3, 3, 32, 32))
    assert made.shape == (3, 3, 24, 24)
    assert made.dtype == torch.float32
    assert "preset=auto" in repr(transform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fogg",), "did you mean 'fog'"),
        (("fog", 6), "severity 6"),
        (("fog", 1, "cifar11"), "did you mean 'cifar'"),
        (([], 1), "at least one"),
        (("fog", []), "at least one"),
    ],
)
def test_wrong_choices_are_refused_at_once(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(CorruptionError, match=message):
        Corrupt(*arguments)  # type: ignore[arg-type]


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ImageError, match="2 dimensions"):
        Corrupt("fog", 1)(torch.rand(4, 4))
    with pytest.raises(ImageError, match="before normalisation"):
        Corrupt("fog", 1)(torch.rand(3, 8, 8) - 0.5)
    images = [tv_tensors.Image(pictures(count, 3, 8, 8)) for count in (1, 2)]
    with pytest.raises(ImageError, match=r"batches of \[1, 2\]"):
        Corrupt("fog", 1)(images)
