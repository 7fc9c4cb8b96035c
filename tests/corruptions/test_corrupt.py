"""What `corrupt` and `quantize` accept, return and refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sample_pictures import RANDOM, pictures

import dynbn_lightning.corruptions as corruptions
from dynbn_lightning.corruptions import CORRUPTIONS, PRESETS, SEVERITIES, corrupt, quantize
from dynbn_lightning.errors import CorruptionError, ImageError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def test_the_public_names() -> None:
    assert set(corruptions.__all__) == {
        "ALL_CORRUPTIONS",
        "CLEAN",
        "COMMON_CORRUPTIONS",
        "CORRUPTIONS",
        "Cell",
        "Corrupt",
        "EXTRA_CORRUPTIONS",
        "PRESETS",
        "RELEASED_CORRUPTIONS",
        "SEVERITIES",
        "cells_of",
        "corrupt",
        "quantize",
        "resolve_preset",
        "texture_files",
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_dtype_device_and_range_are_kept(name: str, dtype: torch.dtype, device: str) -> None:
    levels = pictures(2, 3, 20, 28).to(device)
    images = levels if dtype == torch.uint8 else (levels.double() / 255).to(dtype)
    made = corrupt(images, name, 4, seeds=[1, 2])
    assert made.shape == images.shape
    assert made.dtype == dtype
    assert made.device == images.device
    assert made.is_contiguous()
    assert not made.requires_grad
    if dtype != torch.uint8:
        assert made.min() >= 0
        assert made.max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_cell_changes_images_and_leaves_its_input_alone(name: str, severity: int) -> None:
    images = pictures(2, 3, 32, 32)
    floats = images.float() / 255
    before = floats.clone()
    from_levels = corrupt(images, name, severity, seeds=[3, 4])
    from_floats = corrupt(floats, name, severity, seeds=[3, 4])
    assert torch.equal(floats, before)
    assert not torch.equal(from_levels, images)
    assert torch.equal(from_floats, from_levels.float() / 255), "floats and uint8 agree to the bit"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_floats_lie_on_the_256_levels_unless_asked_not_to(name: str, dtype: torch.dtype) -> None:
    images = (pictures(2, 3, 32, 32).double() / 255).to(dtype)
    levels = torch.arange(256, dtype=dtype) / 255
    assert torch.isin(corrupt(images, name, 3, seeds=[1, 2]), levels).all()
    raw = corrupt(images, name, 3, seeds=[1, 2], quantize=False)
    if name == "shot_noise":  # which counts anew
        photons = PRESETS["cifar"].constants(name, 3)[0]
        assert torch.allclose((raw * photons).round(), raw * photons, atol=1e-3)
        return
    lost = (raw - corrupt(images, name, 3, seeds=[1, 2])) * 255
    assert lost.min() > -0.001, "truncated and not rounded"
    assert lost.max() < 1.001


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 2, 5), (1, 3, 7, 50), (1, 1, 90, 33), (1, 3, 300, 21)])
@pytest.mark.parametrize("preset", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_works(name: str, preset: str, shape: tuple[int, int, int, int]) -> None:
    made = corrupt(torch.rand(shape), name, 5, preset)
    assert made.shape == shape
    assert made.isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_flat_images_give_numbers(name: str, value: float) -> None:
    assert corrupt(torch.full((2, 3, 32, 32), value), name, 5).isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_generator_makes_it_reproducible(name: str) -> None:
    images = pictures(4, 3, 32, 32)
    first, second = (corrupt(images, name, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(9)
    unseeded = corrupt(images, name, 3)
    torch.manual_seed(9)
    assert torch.equal(corrupt(images, name, 3), unseeded)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_random_ones_differ_between_images_of_a_batch_and_the_others_do_not(name: str) -> None:
    images = pictures(1, 3, 32, 32).expand(6, -1, -1, -1)
    for made in (corrupt(images, name, 5, seeds=range(6)), corrupt(images, name, 5)):
        assert (len(made.unique(dim=0)) > 1) == (name in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_deterministic_corruptions_draw_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    corrupt(pictures(1, 3, 32, 32), name, 5, generator=generator)
    assert torch.equal(before, generator.get_state()) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_noncontiguous_and_gradient_tracking_images_work(name: str) -> None:
    images = torch.rand(2, 32, 40, 3, requires_grad=True).movedim(-1, 1)
    made = corrupt(images, name, 2, seeds=[1, 2])
    assert not made.requires_grad
    assert made.is_contiguous()
    assert torch.equal(made, corrupt(images.detach().contiguous(), name, 2, seeds=[1, 2]))
    last = pictures(2, 3, 32, 40).to(memory_format=torch.channels_last)
    for some in (last, last[:1], last[..., ::2], pictures(1, 3, 32, 40).expand(2, -1, -1, -1)):
        expected = corrupt(some.contiguous(), name, 5, seeds=range(len(some)))
        assert torch.equal(corrupt(some, name, 5, seeds=range(len(some))), expected)


def test_it_works_in_inference_mode_and_after_it() -> None:
    images = pictures(2, 3, 40, 40)
    with torch.inference_mode():
        inside = {name: corrupt(images, name, 2, seeds=[0, 1]).clone() for name in CORRUPTIONS}
    for name, made in inside.items():
        assert torch.equal(corrupt(images, name, 2, seeds=[0, 1]), made)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_autocast_and_the_default_dtype_change_nothing(name: str) -> None:
    images = pictures(2, 3, 32, 32).float() / 255
    expected = corrupt(images, name, 2, seeds=[0, 1], quantize=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(corrupt(images, name, 2, seeds=[0, 1], quantize=False), expected)
    torch.set_default_dtype(torch.float64)
    try:
        made = corrupt(images, name, 2, seeds=[0, 1], quantize=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([[0.0]], "not a torch.Tensor"),
        (torch.rand(3, 32, 32), r"unsqueeze\(0\)"),
        (torch.rand(32, 32), "2 dimensions"),
        (torch.rand(1, 1, 3, 32, 32), "5 dimensions"),
        (torch.rand(0, 3, 32, 32), "empty"),
        (torch.rand(2, 3, 0, 32), "no pixels"),
        (torch.rand(2, 4, 32, 32), "4 channels"),
        (torch.rand(2, 32, 32, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.full((1, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 3, 8, 8), float("inf")), "infinity"),
        (torch.rand(1, 3, 8, 8) - 0.5, "before normalisation"),
        (torch.rand(1, 3, 8, 8) * 255, "torch.uint8"),
        (torch.ones(1, 3, 8, 8, dtype=torch.int64), "torch.int64"),
        (torch.ones(1, 3, 8, 8, dtype=torch.bool), "torch.bool"),
        (torch.ones(1, 3, 8, 8, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_wrong_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        corrupt(images, "fog", 3)
    with pytest.raises(ImageError, match=message):
        quantize(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fogg"}, "did you mean 'fog'"),
        ({"name": "clean"}, "unknown corruption"),
        ({"severity": 0}, "severity 0"),
        ({"severity": 6}, "severity 6"),
        ({"severity": 2.5}, "severity 2.5"),
        ({"severity": True}, "severity True"),
        ({"preset": "cifar100"}, "did you mean 'cifar'"),
        ({"seeds": [1]}, "1 seeds for 2 images"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 images"),
        ({"seeds": [1.5, 2]}, "whole numbers"),
        ({"seeds": torch.rand(2)}, "whole numbers"),
        ({"seeds": 3}, "whole numbers"),
        ({"seeds": [1, 2], "generator": torch.Generator()}, "only one"),
    ],
)
@pytest.mark.parametrize("name", ["fog", "contrast"])
def test_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptionError, match=message):
        corrupt(torch.rand(2, 3, 32, 32), **{"name": name, "severity": 3, **arguments})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantize_truncates_and_keeps_whole_levels(dtype: torch.dtype) -> None:
    levels = torch.arange(256).view(1, 1, 16, 16)
    whole = (levels.double() / 255).to(dtype)
    assert torch.equal(quantize(whole), whole)
    assert torch.equal(quantize((whole + 0.9 / 255).clamp(max=1.0)), whole)
    one_lower = (levels.sub(1).clamp(min=0).double() / 255).to(dtype)
    assert torch.equal(quantize((whole - 0.1 / 255).clamp(min=0.0)), one_lower)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantize_rounds_half_precisions_only_once(dtype: torch.dtype) -> None:
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(quantize(images), quantize(images.float()).to(dtype))


def test_quantize_copies_uint8() -> None:
    images = pictures(1, 3, 8, 8)
    copied = quantize(images)
    assert torch.equal(copied, images)
    assert copied.data_ptr() != images.data_ptr()
