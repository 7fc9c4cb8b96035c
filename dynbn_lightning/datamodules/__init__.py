"""LightningDataModules that corrupt on the device, and the images they read."""

from .corruption import CorruptionDataModule
from .shapes import ShapesDataset

__all__ = ["CorruptionDataModule", "ShapesDataset"]
