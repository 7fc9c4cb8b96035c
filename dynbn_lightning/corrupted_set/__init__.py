"""Corrupted test images on disk, in the layouts of CIFAR-10-C and ImageNet-C."""

from dynbn_lightning.corrupted_set.writing import CorruptedSet, write_corrupted_set

__all__ = ["CorruptedSet", "write_corrupted_set"]
