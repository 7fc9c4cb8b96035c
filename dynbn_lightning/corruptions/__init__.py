"""The 19 corruptions of the benchmark on batches of images, and the names of those in released sets."""

from dynbn_lightning.corruptions.batch import corrupt, quantize
from dynbn_lightning.corruptions.cells import (
    ALL_CORRUPTIONS,
    CLEAN,
    COMMON_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    RELEASED_CORRUPTIONS,
    SEVERITIES,
    Cell,
    cells_of,
)
from dynbn_lightning.corruptions.presets import PRESETS, resolve_preset
from dynbn_lightning.corruptions.textures import texture_files
from dynbn_lightning.corruptions.transform import Corrupt

__all__ = [
    "ALL_CORRUPTIONS",
    "CLEAN",
    "COMMON_CORRUPTIONS",
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "PRESETS",
    "RELEASED_CORRUPTIONS",
    "SEVERITIES",
    "Cell",
    "Corrupt",
    "cells_of",
    "corrupt",
    "quantize",
    "resolve_preset",
    "texture_files",
]
