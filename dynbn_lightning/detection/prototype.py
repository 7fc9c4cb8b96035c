"""A detector that needs no training: one pass over images gathers a prototype for each row; the nearest is chosen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbn_lightning.detection.features import split_features
from dynbn_lightning.detection.spectrum_detector import SpectrumDetector
from dynbn_lightning.errors import DetectorError, first_few

BANDS = (12, 7)
"""The grid that spectra are averaged over, frequencies down and across: 606 features of an RGB image remain.

On held-out images, of `cifar10/train` at 32 px and of the 70 images that `benchmarks/detection.py` fits on, it does as
well as finer grids, within a point; the covariance of all 3,366 features would be of 45 MB.
"""

SHRINKAGE = 0.05
"""How far correlations are shrunk towards none: they are estimated from little more images than there are features."""

DEVIATION_FLOOR = 1e-3
"""The least standard deviation that is divided by; a feature that never varied says nothing."""

SCALES = tuple(2.0 ** (-step / 2) for step in range(13))
"""What squared distances may be scaled by; 1 is right if features are Gaussian around their row's prototype."""

EVIDENCE_POWER = 4
"""A batch's evidence on scales weighs as this power of how many images have been gathered once it is.

The first prototypes are poor and want smaller scales than those that are used in the end.
"""


class NearestPrototype(SpectrumDetector):
    """Logits over rows from images: minus half the scaled squared distance to each row's mean in standardised features.

    The nearest Fourier prototype is the idea of FROST (Camuffo et al. 2024), which takes the mean high-frequency
    log-amplitude of each row. Ours, by measurement, takes `corruption_features` with spectra averaged over `BANDS`, and
    standardises them by their covariance within the rows, so that 20 frequencies that rise and fall together count as
    one: at 32 px it names three quarters of the corruptions right, with deviations alone half of them. The scale makes
    the softmax a probability: each batch, before it is gathered, says which of `SCALES` would have given it the least
    cross-entropy.

    There is nothing to optimise: `gather` images of every row, once. It has buffers only.

    Args:
        num_rows: How many classes there are, at least 2.
        image_size: Height and width of the images, at least 4.
        channels: Channels of the images.

    Attributes:
        row_names: What errors call the rows.
        counts: How many images were gathered for each row, (num_rows,) int64.
        means: The mean features of each row, (num_rows, F).
        covariance: Of the features around the mean of their row, (F, F).
        scale: What half the squared distances are multiplied by, 1 until there is evidence.

    Raises:
        DetectorError: If an argument is out of its range.
    """

    counts: Tensor
    means: Tensor
    covariance: Tensor
    whitening: Tensor
    centres: Tensor
    losses: Tensor
    scale: Tensor

    def __init__(self, num_rows: int, image_size: int, channels: int = 3) -> None:
        super().__init__(num_rows, image_size, channels)
        with torch.device("meta"):
            length = self._banded(torch.empty(1, self.num_features)).shape[1]
        self.register_buffer("counts", torch.zeros(num_rows, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(num_rows, length))
        self.register_buffer("covariance", torch.zeros(length, length))
        self.register_buffer("whitening", torch.eye(length))
        self.register_buffer("centres", torch.zeros(num_rows, length))
        self.register_buffer("losses", torch.zeros(len(SCALES)))
        self.register_buffer("scale", torch.ones(()))
        self.row_names = tuple(f"number {row}" for row in range(num_rows))
        self._has_all_rows = False
        self.register_load_state_dict_post_hook(_forget_rows)  # type: ignore[no-untyped-call]

    @property
    def missing_rows(self) -> list[int]:
        """The rows that no image was gathered for."""
        missing: list[int] = (self.counts == 0).nonzero().flatten().tolist()
        return missing

    @torch.no_grad()
    def gather(self, images: Tensor, rows: Tensor) -> None:
        """Merge images into the prototypes of their rows: the same ones in whatever batches and order, up to rounding.

        Only the scale depends on the order: it is chosen for batches that were not gathered yet.

        Args:
            images: In [0, 1], shape (N, channels, image_size, image_size).
            rows: Their rows, int64 from 0 to num_rows - 1, shape (N,).

        Raises:
            DetectorError: As `features` does, and if `rows` are not the rows of these images.
        """
        features = self._banded(self.features(images)).to(self.means.dtype)
        if self.means.dtype not in (torch.float32, torch.float64):
            raise DetectorError(f"prototypes are gathered in float32 or float64, this network is {self.means.dtype}")
        if rows.shape != images.shape[:1] or rows.dtype != torch.int64:
            raise DetectorError(
                f"gathering takes a row, int64, for each of {len(images)} images, got {rows.dtype} of shape "
                f"{tuple(rows.shape)}"
            )
        least, largest = int(rows.min()), int(rows.max())
        if least < 0 or largest >= self.num_rows:
            raise DetectorError(f"rows must be from 0 to {self.num_rows - 1}, got some from {least} to {largest}")
        with torch.autocast(features.device.type, enabled=False):
            if not self.missing_rows:
                self._weigh_scales(features, rows)
            self._merge(features, rows)
            self.whitening.copy_(whitening_of(self.covariance))
            self.centres.copy_((self.means - self.means.mean(0)) @ self.whitening.T)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, num_rows), of images in [0, 1], shape (N, channels, image_size, image_size).

        Raises:
            DetectorError: As `features` does, and if no image was gathered for a row.
        """
        return self.with_novelty(images)[0]

    def with_novelty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and how unlike anything seen each image is, (N,): its mean square distance to the nearest row.

        The mean is over the whitened features: images of that row have about 1. Raises as `forward` does.
        """
        if not self._has_all_rows:  # asked until it is so: the answer waits for the device
            if missing := self.missing_rows:
                names = [self.row_names[row] for row in missing]
                raise DetectorError(
                    f"no image was gathered for {len(missing)} of {self.num_rows} rows: {first_few(names)}. Fit the "
                    "detector on images of every row, with Trainer.fit, `dynbn detector fit` or "
                    "NearestPrototype.gather; rows that were not drawn need more images or epochs"
                )
            self._has_all_rows = True
        features = self._banded(self.features(images))
        halves = self._half_squared_distances(features)
        return -self.scale * halves, 2 * halves.amin(dim=1) / features.shape[1]

    def _banded(self, features: Tensor) -> Tensor:
        spectra, histograms = split_features(features, self.channels, self.image_size, self.image_size)
        bands = (min(BANDS[0], spectra.shape[2]), min(BANDS[1], spectra.shape[3]))
        return torch.cat([F.adaptive_avg_pool2d(spectra, bands).flatten(1), histograms], dim=1)

    def _half_squared_distances(self, features: Tensor) -> Tensor:
        dtype = torch.promote_types(self.means.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            centred = features.to(dtype) - self.means.to(dtype).mean(0)
            whitened = centred @ self.whitening.to(dtype).T
            centres = self.centres.to(dtype)
            # As |a|^2 - 2 ab + |b|^2: both are centred, so what cancels is of the order of the distances themselves.
            squares = whitened.square().sum(1, keepdim=True) + centres.square().sum(1)
            return (squares / 2 - whitened @ centres.T).clamp_min(0)

    def _weigh_scales(self, features: Tensor, rows: Tensor) -> None:
        halves = self._half_squared_distances(features)
        losses = torch.stack([F.cross_entropy(-scale * halves, rows, reduction="sum") for scale in SCALES])
        seen = float(self.counts.sum())
        self.losses.mul_((seen / (seen + len(rows))) ** EVIDENCE_POWER).add_(losses)
        self.scale.fill_(SCALES[int(self.losses.argmin())])

    def _merge(self, features: Tensor, rows: Tensor) -> None:
        """Merge means and scatters, for each row (Chan, Golub and LeVeque 1979)."""
        members = F.one_hot(rows, self.num_rows)
        counts = members.sum(0)
        total = self.counts + counts
        members = members.to(features.dtype)
        sums = members.T @ (features - members @ self.means)
        step = sums / counts.clamp_min(1).unsqueeze(1)  # from a row's mean so far to that of its new images
        around = features - members @ (self.means + step)
        between = (self.counts * counts / total.clamp_min(1)).to(step.dtype).sqrt().unsqueeze(1) * step
        scatter = self.covariance * self.counts.sum() + around.T @ around + between.T @ between
        self.covariance.copy_(scatter / total.sum())
        self.means.add_(sums / total.clamp_min(1).unsqueeze(1))
        self.counts.copy_(total)


def whitening_of(covariance: Tensor) -> Tensor:
    """The matrix that standardises features of this covariance: mean square 1 each, and no correlation.

    Args:
        covariance: Shape (F, F). Correlations are shrunk by `SHRINKAGE`; deviations are at least `DEVIATION_FLOOR`.

    Returns:
        Shape (F, F), lower triangular, on the device and of the dtype of `covariance`; computed in float64 on the CPU.
    """
    exact = covariance.double().cpu()
    deviations = exact.diagonal().clamp_min(0).sqrt().clamp_min(DEVIATION_FLOOR)
    correlations = (1 - SHRINKAGE) * exact / deviations.outer(deviations)
    correlations.fill_diagonal_(1.0)
    factor = torch.linalg.cholesky(correlations)
    whitening: Tensor = torch.linalg.solve_triangular(factor, torch.diag(1 / deviations), upper=False)
    return whitening.to(covariance)


def _forget_rows(network: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(network, NearestPrototype)
    network._has_all_rows = False
