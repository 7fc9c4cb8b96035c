"""What several pictures share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynbn_lightning.detection import log_amplitude_spectrum, opponent_channels
from dynbn_lightning.reporting.figures.canvas import (
    BLACK,
    FAINT,
    VERMILLION,
)
from dynbn_lightning.reporting.figures.spectra import full_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE, DYNAMIC = "source", "dynamic_bn/calibrated"
COLOURS = {SOURCE: BLACK, DYNAMIC: VERMILLION}


def bare(axes: Axes) -> None:
    """No ticks, and a thin frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.6)


def spectra_of(pixels: Tensor) -> Tensor:
    """The log-amplitude spectra of brightness, (N, H + 1, W + 1), the zero frequency in the middle."""
    return torch.stack([full_spectrum(half) for half in log_amplitude_spectrum(opponent_channels(pixels)[:, :1])[:, 0]])
