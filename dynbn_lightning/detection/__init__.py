"""Which corruption does an image carry? Spectrum features and the detector networks."""

from dynbn_lightning.detection.evidence import EVIDENCES, Evidence, StreamMemory, pooled_posterior
from dynbn_lightning.detection.features import corruption_features, opponent_channels
from dynbn_lightning.detection.perceptron import SpectrumPerceptron
from dynbn_lightning.detection.prototype import NearestPrototype
from dynbn_lightning.detection.spectrum import log_amplitude_spectrum

__all__ = [
    "EVIDENCES",
    "Evidence",
    "NearestPrototype",
    "SpectrumPerceptron",
    "StreamMemory",
    "corruption_features",
    "log_amplitude_spectrum",
    "opponent_channels",
    "pooled_posterior",
]
