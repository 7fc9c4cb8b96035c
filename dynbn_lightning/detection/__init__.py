"""Which corruption does an image carry? Spectrum features and the detector network."""

from dynbn_lightning.detection.features import corruption_features, opponent_channels
from dynbn_lightning.detection.perceptron import SpectrumPerceptron
from dynbn_lightning.detection.spectrum import log_amplitude_spectrum, pool_spectrum

__all__ = [
    "SpectrumPerceptron",
    "corruption_features",
    "log_amplitude_spectrum",
    "opponent_channels",
    "pool_spectrum",
]
