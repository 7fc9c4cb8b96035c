"""The detector network: a small perceptron on an image's Fourier spectrum that tells the corruption it carries."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from dynbn_lightning.detection.features import corruption_features, num_features
from dynbn_lightning.detection.standardize import Standardize
from dynbn_lightning.errors import DetectorError

RANGE_TOLERANCE = 0.05
"""How far pixels may be outside [0, 1]: undoing a normalisation in 16 bits misses by up to about 0.02."""


class SpectrumPerceptron(nn.Module):
    """Logits over rows from images: `corruption_features`, standardised, through a perceptron of three layers.

    That a classifier on the Fourier spectrum tells corruptions apart is from Rezaei and Norouzzadeh (2023), "Dynamic
    Batch Norm Statistics Update for Natural Robustness"; which features and which network is our choice.

    Args:
        num_rows: How many classes there are, at least 2.
        image_size: Height and width of the images, at least 4.
        channels: Channels of the images.
        hidden: Width of both hidden layers.
        dropout: Dropout before each layer but the first, from 0 to below 1.

    Raises:
        DetectorError: If an argument is out of its range.
    """

    def __init__(
        self, num_rows: int, image_size: int, channels: int = 3, hidden: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_rows", num_rows, 2),
            ("image_size", image_size, 4),
            ("channels", channels, 1),
            ("hidden", hidden, 1),
        ):
            if value < least:
                raise DetectorError(f"a detector needs {name} of at least {least}, got {value}")
        if not 0 <= dropout < 1:
            raise DetectorError(f"dropout must be from 0 to below 1, got {dropout}")
        self.num_rows = num_rows
        self.image_size = image_size
        self.channels = channels
        features = num_features(channels, image_size, image_size)
        self.standardize = Standardize(features)
        self.layers = nn.Sequential(
            OrderedDict(
                first=nn.Linear(features, hidden),
                first_activation=nn.GELU(),
                first_dropout=nn.Dropout(dropout),
                second=nn.Linear(hidden, hidden),
                second_activation=nn.GELU(),
                second_dropout=nn.Dropout(dropout),
                logits=nn.Linear(hidden, num_rows),
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, num_rows), of images in [0, 1], shape (N, channels, image_size, image_size).

        Raises:
            DetectorError: If images are of another shape or not floating point, or outside [0, 1] or NaN (looked at
                on the CPU only: elsewhere it would wait for the device).
        """
        self._check(images)
        features = self.standardize(corruption_features(images))
        logits: Tensor = self.layers(features.to(self.layers[0].weight.dtype))
        return logits

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
