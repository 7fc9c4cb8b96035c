"""The input normalisation that a model was trained with: (pixels - mean) / std per channel, pixels in [0, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynbn_lightning.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel, of pixels in [0, 1].

    `Normalization.of` takes what users write: one of the names in `NORMALIZATIONS`, a (mean, std) pair, `None` for
    pixels left in [0, 1], or a `Normalization`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise DataError(f"normalization needs as many means as standard deviations, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise DataError(f"normalization needs standard deviations above 0, got {self.std}")
        if min(self.mean) < 0 or max(self.mean) > 1 or max(self.std) > 1:
            raise DataError(
                f"normalization is of pixels in [0, 1], and a mean of {self.mean} with a std of {self.std} is not: "
                "divide both by 255 if they are of pixels from 0 to 255"
            )

    @classmethod
    def of(cls, value: str | Normalization | Sequence[Sequence[float]] | None) -> Normalization:
        """The normalisation that a name, a (mean, std) pair or None stands for."""
        if value is None:
            return NORMALIZATIONS["none"]
        if isinstance(value, Normalization):
            return value
        if isinstance(value, str):
            if value not in NORMALIZATIONS:
                raise DataError(f"unknown normalization {value!r}: {did_you_mean(value, NORMALIZATIONS)}")
            return NORMALIZATIONS[value]
        mean, std = value
        return cls(tuple(mean), tuple(std))

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        if len(values) not in (1, like.shape[-3]):
            raise DataError(f"normalization has {len(values)} channels, the images have {like.shape[-3]}")
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)

    def apply(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], shape (..., C, H, W), to what the model takes."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    def undo(self, images: Tensor) -> Tensor:
        """What the model takes, shape (..., C, H, W), back to pixels in [0, 1], in float32."""
        images = images.float()
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    def stored_pixels(self, images: Tensor) -> Tensor:
        """The 8-bit pixels that images in the model's normalisation were made from, in [0, 1].

        Exactly from float32 and float16, and from bfloat16 but for the brightest pixels under a wide std.
        """
        return (self.undo(images) * 255).round().clamp(0, 255) / 255

    def agrees_with(self, other: Normalization) -> bool:
        """Whether both do the same; one value for all channels is the same as that value for each."""
        pairs = ((self.mean, other.mean), (self.std, other.std))
        return all(
            len(set(mine)) == len(set(its)) == 1 and mine[0] == its[0] if 1 in (len(mine), len(its)) else mine == its
            for mine, its in pairs
        )

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; `Normalization(**d)` reads it back."""
        return {"mean": list(self.mean), "std": list(self.std)}


NORMALIZATIONS: dict[str, Normalization] = {
    "none": Normalization((0.0,), (1.0,)),
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "half": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Known normalisations by name; `imagenet` is also what the public CIFAR-10 ResNets were trained with."""


def warn_of_other_normalization(model: nn.Module, given: Normalization) -> None:
    """Warn where a model, or one inside it, is known to take images that are normalised otherwise than these."""
    for module in model.modules():
        known = getattr(module, "input_normalization", None)
        if isinstance(known, Normalization) and not known.agrees_with(given):
            warnings.warn(
                f"{type(module).__name__} takes images normalised with mean {known.mean} and std {known.std}, and "
                f"these are with mean {given.mean} and std {given.std}: its accuracy will be another than it should "
                "be; pass the model's own as normalization=",
                stacklevel=3,
            )
