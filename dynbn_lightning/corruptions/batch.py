"""`corrupt`: a batch of images corrupted, one corruption and severity for all or one for each, checked and seeded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dynbn_lightning.corruptions import blur, digital, hsv, noise, weather
from dynbn_lightning.corruptions.cells import CLEAN, Cell
from dynbn_lightning.corruptions.checks import check_cells, check_images, check_seeds
from dynbn_lightning.corruptions.presets import PRESETS, Preset, resolve_preset
from dynbn_lightning.corruptions.quantization import lie_on_levels, to_floats, to_uint8, truncate_to_uint8
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.spatter import spatter
from dynbn_lightning.corruptions.textures import Textures, load_textures

DETERMINISTIC: Mapping[str, Callable[..., Tensor]] = {
    "defocus_blur": blur.defocus_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "brightness": hsv.brightness,
    "contrast": digital.contrast,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "saturate": hsv.saturate,
}
"""The corruptions that depend on the image alone, as functions of images and severity constants."""

RANDOM: Mapping[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "elastic_transform": digital.elastic_transform,
    "spatter": spatter,
}
"""The others, as functions of images, `Draws` and severity constants."""


@torch.no_grad()
def corrupt(
    images: Tensor,
    name: str | Sequence[str],
    severity: int | Sequence[int] | Tensor,
    preset: str = "auto",
    generator: torch.Generator | None = None,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    quantize: bool = True,
    frost_textures: str | os.PathLike[str] | None = None,
) -> Tensor:
    """Corrupt a batch of images as the benchmark does (Hendrycks and Dietterich, ICLR 2019).

    Args:
        images: Images (N, C, H, W) with one channel or three, floating in [0, 1] or uint8; pixels, so before any
            normalisation of a model's input. They are not modified.
        name: One of the 19 `CORRUPTIONS`, or a name for each image, `"clean"` among them for images to leave alone.
        severity: 1 to 5, or a severity for each image; that of clean images is 0.
        preset: The severity constants to use, `"imagenet"`, `"tiny_imagenet"`, `"cifar"`, or `"auto"`: by image size,
            see `resolve_preset`.
        generator: Where random numbers come from; `None` is torch's global generator of the images' device.
        seeds: In place of `generator`, one whole number per image. What comes out of an image then depends on the
            image, its corruption and its seed alone: it is the same in whatever batch and order the image comes.
        quantize: Whether floats are moved down to the 256 levels k / 255 of an 8-bit image, as the benchmark stores
            them. uint8 images are always whole levels.
        frost_textures: A folder of photographs of ice for `frost`, such as the published ones, which cannot be
            shipped; `None` takes generated textures to their likeness.

    Returns:
        The corrupted images: same shape, dtype and device. Half precisions are computed in float32. On an accelerator
        nothing waits for the host but the check of floating images, `jpeg_compression`, which goes through the host's
        memory, and seeds, whose random bits are drawn there.

    Raises:
        ImageError: If the images are of a wrong type, rank, size or range, or hold NaN.
        CorruptionError: If the corruption, severity, preset, seeds or textures are wrong.

    Examples:
        >>> import torch
        >>> from dynbn_lightning.corruptions import corrupt
        >>> images = torch.rand(8, 3, 32, 32)
        >>> foggy = corrupt(images, "fog", 3, seeds=range(8))
        >>> foggy.shape
        torch.Size([8, 3, 32, 32])
        >>> torch.equal(foggy[5:6], corrupt(images[5:6], "fog", 3, seeds=[5]))
        True
        >>> mixed = corrupt(images, ["fog", "snow"] * 4, [1, 2, 3, 4, 5, 1, 2, 3], seeds=range(8))
        >>> torch.equal(mixed[2], corrupt(images[2:3], "fog", 3, seeds=[2])[0])
        True
    """
    cells = check_cells(name, severity, len(check_images(images)))
    seed_list = check_seeds(seeds, len(images), generator)
    if images.device.type == "mps":  # has no float64, which some corruptions are computed in
        options: Any = {"seeds": seed_list, "quantize": quantize, "frost_textures": frost_textures}
        return corrupt(images.cpu(), name, severity, preset, generator, **options).to(images.device)
    known = PRESETS[resolve_preset(preset, images.shape[2], images.shape[3])]
    names = {cell.corruption for cell in cells}
    textures = load_textures(frost_textures, known.texture_scale, images.device) if "frost" in names else None
    draws = None if names.isdisjoint(RANDOM) else Draws(len(images), images.device, generator, seed_list)

    def work(pixels: Tensor, chosen: Sequence[int]) -> Tensor:
        picked = None if draws is None else draws.pick(chosen)
        return _by_corruption(pixels, [cells[image] for image in chosen], picked, known, textures)

    everything = range(len(images))
    if images.dtype == torch.uint8:
        return work(images, everything)
    pixels = images.to(torch.float32)
    if not quantize:
        return work(pixels, everything).to(images.dtype)
    # Floats that came from 8-bit images, as most do, become what those images become, to the last level.
    whole = lie_on_levels(pixels).tolist()
    made = torch.empty_like(images, memory_format=torch.contiguous_format)
    for on_levels in set(whole):
        chosen = [image for image in everything if whole[image] == on_levels]
        here = torch.tensor(chosen, device=images.device)
        some = pixels.index_select(0, here)
        some = work(to_uint8(some), chosen) if on_levels else truncate_to_uint8(work(some, chosen))
        made.index_copy_(0, here, to_floats(some, images.dtype))
    return made


def quantize(images: Tensor) -> Tensor:
    """Move images down to the 256 levels k / 255 of an 8-bit image: truncated, not rounded, as the benchmark does.

    Args:
        images: Images (N, C, H, W) with one channel or three, floating in [0, 1] or uint8.

    Returns:
        New images of the same shape, dtype and device; uint8 images are whole levels already and come back as a copy.
        float32 and float64 images that lie on the levels stay as they are; half precisions cannot hold the levels
        exactly, and quantising them twice may lower them twice.

    Raises:
        ImageError: If the images are of a wrong type, rank, size or range, or hold NaN.
    """
    check_images(images)
    if images.dtype == torch.uint8:
        return images.clone(memory_format=torch.contiguous_format)
    return to_floats(truncate_to_uint8(images.to(torch.float32)), images.dtype).contiguous()


def _by_corruption(
    pixels: Tensor, cells: Sequence[Cell], draws: Draws | None, known: Preset, textures: Textures | None
) -> Tensor:
    """Every image by its own cell: all the images of a corruption, whatever their severities, in one group."""
    groups: dict[str, list[int]] = {}
    for image, cell in enumerate(cells):
        groups.setdefault(cell.corruption, []).append(image)
    if len(groups) == 1 and CLEAN not in groups:
        return _one_corruption(pixels, cells, draws, known, textures)
    made = pixels.clone(memory_format=torch.contiguous_format)
    for name, chosen in groups.items():
        if name != CLEAN:
            here = torch.tensor(chosen, device=pixels.device)
            picked = None if draws is None else draws.pick(chosen)
            some = [cells[image] for image in chosen]
            made.index_copy_(0, here, _one_corruption(pixels.index_select(0, here), some, picked, known, textures))
    return made


def _one_corruption(
    pixels: Tensor, cells: Sequence[Cell], draws: Draws | None, known: Preset, textures: Textures | None
) -> Tensor:
    name = cells[0].corruption
    rows = [known.constants(name, cell.severity) for cell in cells]
    constants = rows[0] if len(set(rows)) == 1 else torch.tensor(rows, dtype=torch.float64).unbind(1)
    if draws is None or name in DETERMINISTIC:
        return DETERMINISTIC[name](pixels, *constants)
    return RANDOM[name](pixels, draws, *constants, *([textures] if name == "frost" else []))
