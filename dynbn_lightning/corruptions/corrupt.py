"""`corrupt`: one corruption at one severity on a batch of images, checked, seeded and quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dynbn_lightning.corruptions import blur, digital, noise, weather
from dynbn_lightning.corruptions.cells import check_corruption, check_severity
from dynbn_lightning.corruptions.checks import check_images, check_seeds
from dynbn_lightning.corruptions.presets import PRESETS, resolve_preset
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, truncate_to_levels
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.spatter import spatter

_DETERMINISTIC: Mapping[str, Callable[..., Tensor]] = {
    "defocus_blur": blur.defocus_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "saturate": digital.saturate,
}
_RANDOM: Mapping[str, Callable[..., Tensor]] = {
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


@torch.no_grad()
def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    preset: str = "auto",
    generator: torch.Generator | None = None,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    quantize: bool = True,
) -> Tensor:
    """Corrupt a batch of images as the benchmark does (Hendrycks and Dietterich, ICLR 2019).

    Args:
        images: Images (N, C, H, W) with one channel or three, floating in [0, 1] or uint8; pixels, so before any
            normalisation of a model's input. They are not modified.
        name: One of the 19 `CORRUPTIONS`.
        severity: 1 to 5.
        preset: The severity constants to use, `"imagenet"`, `"tiny_imagenet"`, `"cifar"`, or `"auto"`: by image size,
            see `resolve_preset`.
        generator: Where random numbers come from; `None` is torch's global generator.
        seeds: In place of `generator`, one whole number per image. What comes out of an image then depends on the
            image and its seed alone: it is the same, bit for bit, in whatever batch and order the image comes.
        quantize: Whether floats are moved down to the 256 levels k / 255 of an 8-bit image, as the benchmark stores
            them. uint8 images are always whole levels.

    Returns:
        The corrupted images: same shape, dtype and device. Half precisions are computed in float32, and
        `jpeg_compression` takes images that are on an accelerator through the host's memory.

    Raises:
        ImageError: If the images are of a wrong type, rank, size or range, or hold NaN.
        CorruptionError: If the corruption, severity, preset or seeds are wrong.

    Example:
        >>> import torch
        >>> from dynbn_lightning.corruptions import corrupt
        >>> images = torch.rand(8, 3, 32, 32)
        >>> foggy = corrupt(images, "fog", 3, seeds=range(8))
        >>> foggy.shape
        torch.Size([8, 3, 32, 32])
        >>> torch.equal(foggy[5:6], corrupt(images[5:6], "fog", 3, seeds=[5]))
        True
    """
    check_corruption(name)
    check_severity(severity)
    pixels = _checked_pixels(images)
    seed_list = check_seeds(seeds, len(images), generator)
    if images.device.type == "mps":  # has no float64, which some corruptions are computed in
        return corrupt(images.cpu(), name, severity, preset, generator, seeds=seed_list, quantize=quantize).to("mps")
    known = PRESETS[resolve_preset(preset, images.shape[2], images.shape[3])]
    constants = known.constants(name, severity)
    if name in _DETERMINISTIC:
        return _as_given(_DETERMINISTIC[name](pixels, *constants), images.dtype, quantize)
    draws = Draws(len(images), images.device, generator, seed_list)
    if name == "frost":
        constants = (*constants, known.texture_scale)
    return _as_given(_RANDOM[name](pixels, draws, *constants), images.dtype, quantize)


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
    return _as_given(_checked_pixels(images), images.dtype, quantize=True)


def _checked_pixels(images: Tensor) -> Tensor:
    pixels = check_images(images).to(torch.float32)
    return pixels / HIGHEST_LEVEL if images.dtype == torch.uint8 else pixels


def _as_given(pixels: Tensor, dtype: torch.dtype, quantize: bool) -> Tensor:
    if dtype != torch.uint8 and not quantize:
        return pixels.to(dtype).contiguous()
    levels = truncate_to_levels(pixels).contiguous()
    if dtype == torch.uint8:
        return levels.to(torch.uint8)
    # float64 gets the float64 that is nearest to k / 255; half precisions are rounded once, at the end.
    wide = levels.to(torch.promote_types(dtype, torch.float32))
    return wide.div_(HIGHEST_LEVEL).to(dtype)
