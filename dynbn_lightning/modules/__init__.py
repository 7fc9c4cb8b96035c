"""LightningModules: the detector and a wrapper around any classifier."""

from dynbn_lightning.modules.classifier import ClassifierModule
from dynbn_lightning.modules.detector import DetectorModule, check_rows

__all__ = ["ClassifierModule", "DetectorModule", "check_rows"]
