"""Keep a BatchNorm network's accuracy on corrupted images: detect the corruption, look its statistics up, route."""

from dynbn_lightning.batchnorm import BNStatsBank, routed
from dynbn_lightning.callbacks import BatchStatsCallback, DynamicBNCallback
from dynbn_lightning.corruptions import corrupt
from dynbn_lightning.datamodules import CorruptionDataModule
from dynbn_lightning.models import load_model
from dynbn_lightning.modules import ClassifierModule, DetectorModule

__version__ = "0.1.0.dev0"

__all__ = [
    "BNStatsBank",
    "BatchStatsCallback",
    "ClassifierModule",
    "CorruptionDataModule",
    "DetectorModule",
    "DynamicBNCallback",
    "corrupt",
    "load_model",
    "routed",
]
