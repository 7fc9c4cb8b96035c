"""What the detector networks have in common: which images they take, and what they look at in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynbn_lightning.detection.features import corruption_features, num_features
from dynbn_lightning.errors import DetectorError

RANGE_TOLERANCE = 0.05
"""How far pixels may be outside [0, 1]: undoing a normalisation in 16 bits misses by up to about 0.02."""


def require_at_least(**values: tuple[int, int]) -> None:
    """Raise `DetectorError` for the first argument that is below its least value; each is (value, least)."""
    for name, (value, least) in values.items():
        if value < least:
            raise DetectorError(f"a detector needs {name} of at least {least}, got {value}")


class SpectrumDetector(nn.Module):
    """Base of the networks that give logits over rows from the `corruption_features` of images.

    Args:
        num_rows: How many classes there are, at least 2.
        image_size: Height and width of the images, at least 4.
        channels: Channels of the images.

    Attributes:
        num_features: How many features an image has.

    Raises:
        DetectorError: If an argument is out of its range.
    """

    def __init__(self, num_rows: int, image_size: int, channels: int = 3) -> None:
        super().__init__()
        require_at_least(num_rows=(num_rows, 2), image_size=(image_size, 4), channels=(channels, 1))
        self.num_rows = num_rows
        self.image_size = image_size
        self.channels = channels
        self.num_features = num_features(channels, image_size, image_size)

    def features(self, images: Tensor) -> Tensor:
        """The features, shape (N, num_features), of images in [0, 1], shape (N, channels, image_size, image_size).

        In training mode, of random tiles of images that are larger than a tile.

        Raises:
            DetectorError: If images are of another shape or not floating point, or outside [0, 1] or NaN (looked at
                on the CPU only: elsewhere it would wait for the device).
        """
        self._check(images)
        return corruption_features(images, random_tiles=self.training and not torch.compiler.is_compiling())

    def _check(self, images: Tensor) -> None:
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected or len(images) == 0:
            raise DetectorError(
                f"this detector was made for images of shape (N, {', '.join(map(str, expected))}), "
                f"N at least 1, got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise DetectorError(f"the detector takes floating-point images in [0, 1], got {images.dtype}")
        if images.device.type == "cpu" and not torch.compiler.is_compiling():
            least, largest = (float(value) for value in images.detach().aminmax())
            # Written so that NaN fails.
            if not (least >= -RANGE_TOLERANCE and largest <= 1 + RANGE_TOLERANCE):
                raise DetectorError(
                    "the detector takes images in [0, 1] as they were before the model's normalisation, "
                    f"got values from {least:.4g} to {largest:.4g}"
                )
