"""The detector network: a small perceptron on an image's Fourier spectrum that tells the corruption it carries."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from dynbn_lightning.detection.spectrum_detector import SpectrumDetector, require_at_least
from dynbn_lightning.detection.standardize import Standardize
from dynbn_lightning.errors import DetectorError


class SpectrumPerceptron(SpectrumDetector):
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
        super().__init__(num_rows, image_size, channels)
        require_at_least(hidden=(hidden, 1))
        if not 0 <= dropout < 1:
            raise DetectorError(f"dropout must be from 0 to below 1, got {dropout}")
        self.standardize = Standardize(self.num_features)
        self.layers = nn.Sequential(
            OrderedDict(
                first=nn.Linear(self.num_features, hidden),
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
            DetectorError: As `features` does.
        """
        return self.with_novelty(images)[0]

    def with_novelty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and how unlike anything seen each image is, (N,): the mean square of its standardised features.

        The images that the network was fitted on have 1 on average. Raises as `forward` does.
        """
        features = self.standardize(self.features(images))
        logits: Tensor = self.layers(features.to(self.layers[0].weight.dtype))
        return logits, torch.linalg.vector_norm(features, dim=1).square() / features.shape[1]
