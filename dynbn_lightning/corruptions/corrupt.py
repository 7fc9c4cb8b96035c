"""`corrupt`: one corruption at one severity on a batch of images, checked, seeded and quantised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dynbn_lightning.corruptions import blur, digital, noise, weather
from dynbn_lightning.corruptions.cells import check_corruption, check_severity
from dynbn_lightning.corruptions.presets import PRESETS, resolve_preset
from dynbn_lightning.corruptions.quantization import HIGHEST_LEVEL, truncate_to_levels
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.spatter import spatter
from dynbn_lightning.errors import CorruptionError, ImageError

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
        The corrupted images: same shape, dtype and device. Half precisions are computed in float32.

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
    corruption, severity = check_corruption(name), check_severity(severity)
    pixels = _pixels(images)
    used = PRESETS[resolve_preset(preset, *images.shape[-2:])]
    constants = used.constants(corruption, severity)
    if corruption in _DETERMINISTIC:
        _check_randomness(len(images), generator, seeds)
        corrupted = _DETERMINISTIC[corruption](pixels, *constants)
    else:
        draws = Draws(len(images), images.device, generator, _check_randomness(len(images), generator, seeds))
        if corruption == "frost":
            constants = (*constants, used.texture_scale)
        corrupted = _RANDOM[corruption](pixels, draws, *constants)
    return _as_given(corrupted, images.dtype, quantize)


def quantize(images: Tensor) -> Tensor:
    """Move floating images (N, C, H, W) in [0, 1] down to the 256 levels of an 8-bit image; uint8 stays as it is."""
    return _as_given(_pixels(images), images.dtype, True)


def _pixels(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor):
        raise ImageError(f"images are a {type(images).__name__}, not a torch.Tensor: expected (N, C, H, W)")
    pixels = images.float()
    if images.dtype == torch.uint8:
        return pixels.div_(HIGHEST_LEVEL)
    return pixels


def _check_randomness(
    count: int, generator: torch.Generator | None, seeds: Sequence[int] | Tensor | None
) -> list[int] | None:
    if seeds is None:
        return None
    if generator is not None:
        raise CorruptionError("both generator and seeds were given: give one of them")
    return [int(seed) for seed in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]


def _as_given(corrupted: Tensor, dtype: torch.dtype, quantize: bool) -> Tensor:
    corrupted = corrupted.contiguous()
    if dtype == torch.uint8:
        return truncate_to_levels(corrupted).to(torch.uint8)
    if not quantize:
        return corrupted.to(dtype)
    levels = truncate_to_levels(corrupted)
    if dtype == torch.float64:
        return levels.double().div_(HIGHEST_LEVEL)
    return levels.div_(HIGHEST_LEVEL).to(dtype)
