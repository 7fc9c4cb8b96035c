"""Readers of the corrupted sets that were released."""

from .cifar import CIFAR10C, CIFAR100C, CIFAR10CBar
from .imagenet import ImageNet3DCC, ImageNetC, ImageNetCBar, TinyImageNetC
from .released_set import ReleasedSet

RELEASED_SETS: dict[str, type[ReleasedSet]] = {
    "cifar10-c": CIFAR10C,
    "cifar100-c": CIFAR100C,
    "cifar10-c-bar": CIFAR10CBar,
    "imagenet-c": ImageNetC,
    "tiny-imagenet-c": TinyImageNetC,
    "imagenet-3dcc": ImageNet3DCC,
    "imagenet-c-bar": ImageNetCBar,
}
"""The readers by the names that the command line knows them by."""

__all__ = [
    "CIFAR10C",
    "CIFAR100C",
    "RELEASED_SETS",
    "CIFAR10CBar",
    "ImageNet3DCC",
    "ImageNetC",
    "ImageNetCBar",
    "ReleasedSet",
    "TinyImageNetC",
]
