"""LightningDataModules that corrupt on the device, and the images they read."""

from .corruption import CorruptionDataModule
from .released import (
    CIFAR10C,
    CIFAR100C,
    CIFAR10CBar,
    ImageNet3DCC,
    ImageNetC,
    ImageNetCBar,
    ReleasedSet,
    TinyImageNetC,
)
from .shapes import ShapesDataset

__all__ = [
    "CIFAR10C",
    "CIFAR100C",
    "CIFAR10CBar",
    "CorruptionDataModule",
    "ImageNet3DCC",
    "ImageNetC",
    "ImageNetCBar",
    "ReleasedSet",
    "ShapesDataset",
    "TinyImageNetC",
]
