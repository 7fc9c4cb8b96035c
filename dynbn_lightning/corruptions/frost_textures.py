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
        mean=(0.815, 0.825, 0.86),
        gains=(0.99, 1.0, 1.03),
        tints=(0.0, 0.0, 0.0),
        skew=-0.3,
        unevenness=0.3,
        spectrum=(6.0, 4.0, 2.5, 0.6, 0.23, 0.14, 0.1, 0.074, 0.05, 0.021, 0.0105, 0.006, 0.003, 0.001, 0.0004, 0.0001),
    ),
    _Ice(
        mean=(0.745, 0.757, 0.787),
        gains=(0.97, 1.0, 1.03),
        tints=(0.0, 0.0, 0.0),
        skew=-0.3,
        unevenness=0.3,
        spectrum=(4.0, 3.0, 2.2, 1.0, 0.6, 0.28, 0.15, 0.11, 0.09, 0.04, 0.02, 0.012, 0.006, 0.002, 0.0006, 0.0001),
    ),
    _Ice(
        mean=(0.265, 0.57, 0.64),
        gains=(1.3, 1.0, 0.93),
        tints=(1.0, 0.0, -0.3),
        skew=0.1,
        unevenness=0.3,
        spectrum=(
            16.0,
            10.0,
            4.0,
            1.1,
            0.35,
            0.1,
            0.042,
            0.018,
            0.008,
            0.0055,
            0.0042,
            0.003,
            0.0018,
            0.0006,
            0.00025,
            0.00006,
        ),
    ),
    _Ice(
        mean=(0.6, 0.645, 0.688),
        gains=(1.01, 1.0, 1.03),
        tints=(0.0, 0.0, 0.0),
        skew=-0.1,
        unevenness=0.4,
        spectrum=(14.0, 9.0, 4.0, 1.3, 0.7, 0.45, 0.2, 0.18, 0.085, 0.06, 0.036, 0.023, 0.01, 0.003, 0.001, 0.0002),
    ),
    _Ice(
        mean=(0.405, 0.44, 0.482),
        gains=(1.01, 1.0, 0.98),
        tints=(0.0, 0.0, 0.0),
        skew=0.17,
        unevenness=0.35,
        spectrum=(12.0, 9.0, 6.5, 3.6, 2.6, 0.9, 0.47, 0.37, 0.17, 0.095, 0.05, 0.026, 0.0135, 0.006, 0.0025, 0.0005),
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
    leaning = np.expm1(ice.skew * uneven / uneven.std())
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
