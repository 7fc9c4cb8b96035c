"""What a bank or a report says about the images of a datamodule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..corruptions import resolve_preset
from .released import ReleasedSet
from .sources import Source

if TYPE_CHECKING:
    from .corruption import CorruptionDataModule


def made_images(data: CorruptionDataModule, source: Source) -> dict[str, Any]:
    """Of images that are corrupted here: where they come from, and what decides their pixels."""
    images = data.test_images if source.train is None else data.train_images
    _, height, width = images.shape
    return {
        "source": source.name,
        "preset": resolve_preset(data.preset, height, width),
        "frost_textures": "generated" if data.frost_textures is None else str(data.frost_textures),
        **_common(data, height, width),
    }


def read_images(data: CorruptionDataModule, released: ReleasedSet) -> dict[str, Any]:
    """Of images that were corrupted elsewhere: no preset, textures or seed of ours decide their pixels."""
    _, height, width = data.test_images.shape
    return {**released.described(), "preset": None, "frost_textures": None, **_common(data, height, width)}


def _common(data: CorruptionDataModule, height: int, width: int) -> dict[str, Any]:
    return {
        "normalization": data.normalization.to_dict(),
        "severities": list(data.severities),
        "image_size": [height, width],
        "seed": data.seed,
        "validation_fraction": data.validation_fraction,
    }
