"""Ice textures for frost, generated: the photographs that the benchmark crops from cannot be shipped.

Five sheets of ice are made from random fields. Of the photographs they keep what a network or a spectrum sees: how
bright and how blue they are, how strongly they vary, how that is spread over the frequencies, and to which side it
leans. They do not show the same feathers and droplets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynbn_lightning.corruptions.filters import FloatArray

# A whole number of pixels at every scale, 1, 0.3 and 0.2, so that scaled textures are seamless too.
_SIDE = 1020
_SEED = 20190506

# Cycles per 224 pixels at which the spectra below are given; in between they are straight on logarithmic axes.
_FREQUENCIES = (0.4, 0.8, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 77.0, 101.0, 158.0)


@dataclass(frozen=True)
class _Ice:
    """One sheet of ice.

    Attributes:
        mean: Mean of red, green and blue.
        gains: By how much each channel follows the relief.
        tints: By how much each channel follows a second, smooth field.
        skew: Below 0 for dark marks on bright ice, above 0 for bright marks on dark ice.
        unevenness: By how much the strength of the relief varies from place to place, on a logarithmic scale.
        spectrum: Power of the relief at `_FREQUENCIES`, relative to that of white noise of variance 1.
    """

    mean: tuple[float, float, float]
    gains: tuple[float, float, float]
    tints: tuple[float, float, float]
    skew: float
    unevenness: float
    spectrum: tuple[float, ...]


_SHEETS = (
    _Ice(
        mean=(0.778, 0.795, 0.832),
        gains=(0.98, 1.0, 1.04),
        tints=(0.0, 0.0, 0.0),
        skew=-0.19,
        unevenness=0.4,
        spectrum=(
            55.0,
            20.0,
            1.5,
            0.57,
            0.22,
            0.25,
            0.1,
            0.098,
            0.061,
            0.025,
            0.011,
            0.0077,
            0.004,
            0.0021,
            0.00057,
            2e-05,
        ),
    ),
    _Ice(
        mean=(0.778, 0.796, 0.832),
        gains=(0.97, 0.99, 1.03),
        tints=(0.0, 0.0, 0.0),
        skew=-0.22,
        unevenness=0.4,
        spectrum=(
            150.0,
            20.0,
            1.4,
            0.52,
            0.19,
            0.29,
            0.09,
            0.1,
            0.058,
            0.024,
            0.011,
            0.0077,
            0.0039,
            0.002,
            0.00056,
            1.9e-05,
        ),
    ),
    _Ice(
        mean=(0.3, 0.581, 0.646),
        gains=(1.33, 0.98, 0.91),
        tints=(1.4, 0.0, -0.3),
        skew=0.1,
        unevenness=0.33,
        spectrum=(
            120.0,
            15.0,
            1.6,
            0.49,
            0.16,
            0.068,
            0.026,
            0.0087,
            0.0049,
            0.0042,
            0.0033,
            0.003,
            0.0024,
            0.0013,
            0.00046,
            3.3e-05,
        ),
    ),
    _Ice(
        mean=(0.562, 0.62, 0.671),
        gains=(0.99, 1.0, 1.05),
        tints=(0.0, 0.0, 0.0),
        skew=0.06,
        unevenness=0.48,
        spectrum=(
            250.0,
            23.0,
            0.59,
            0.51,
            0.45,
            0.2,
            0.13,
            0.14,
            0.071,
            0.051,
            0.035,
            0.022,
            0.012,
            0.0067,
            0.0022,
            0.0001,
        ),
    ),
    _Ice(
        mean=(0.403, 0.448, 0.495),
        gains=(1.01, 1.0, 0.98),
        tints=(0.0, 0.0, 0.0),
        skew=0.16,
        unevenness=0.46,
        spectrum=(
            400.0,
            13.0,
            1.7,
            2.3,
            2.7,
            1.1,
            0.79,
            0.31,
            0.16,
            0.086,
            0.045,
            0.023,
            0.013,
            0.0069,
            0.0044,
            0.0023,
        ),
    ),
)
# The fields of tint and of thickness have nothing finer than so many cycles per 224 pixels.
_SMOOTH_TINT = 4.0
_SMOOTH_THICKNESS = 40.0


@lru_cache(maxsize=16)
def frost_textures(scale: float, device: torch.device) -> Tensor:
    """The five textures, (5, 3, H, W) uint8, 1020 pixels wide and high and then scaled down by `scale`.

    They are the same in every process and are made once in each. The pixels of the smaller ones are picked from the
    larger ones without averaging, as in the benchmark, which leaves them grainy.
    """
    rng = np.random.Generator(np.random.PCG64(_SEED))
    cycles = 224 * np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE)[None, :])
    cycles = np.maximum(cycles, _FREQUENCIES[0])
    picked = np.minimum(((np.arange(round(_SIDE * scale)) + 0.5) / scale).astype(np.int64), _SIDE - 1)
    sheets = [_freeze(ice, rng, cycles)[:, picked[:, None], picked] for ice in _SHEETS]
    return torch.from_numpy(np.stack([np.rint(sheet * 255).astype(np.uint8) for sheet in sheets])).to(device)


def _freeze(ice: _Ice, rng: np.random.Generator, cycles: FloatArray) -> FloatArray:
    amplitude = np.exp(0.5 * np.interp(np.log(cycles), np.log(_FREQUENCIES), np.log(ice.spectrum)))
    relief = _random_field(rng, amplitude)
    deviation = relief.std()
    thickness = _random_field(rng, np.where(cycles < _SMOOTH_THICKNESS, 1.0 / cycles, 0.0))
    uneven = relief * np.exp(ice.unevenness * thickness / thickness.std())
    leaning = np.expm1(ice.skew * uneven / uneven.std()) / ice.skew
    relief = (leaning - leaning.mean()) * (deviation / leaning.std())
    tint = _random_field(rng, np.where(cycles < _SMOOTH_TINT, amplitude, 0.0)) if any(ice.tints) else 0.0
    channels = zip(ice.mean, ice.gains, ice.tints, strict=True)
    colored = np.stack([mean + gain * relief + share * tint for mean, gain, share in channels])
    return np.asarray(np.clip(colored, 0.0, 1.0))


def _random_field(rng: np.random.Generator, amplitude: FloatArray) -> FloatArray:
    side = len(amplitude)
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * amplitude
    spectrum[0, 0] = 0.0
    return np.asarray(np.fft.irfft2(spectrum, s=(side, side)))
