"""The 19 corruptions of the benchmark on batches of images, on the device where they lie."""

from dynbn_lightning.corruptions.cells import (
    CLEAN,
    COMMON_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
    Cell,
    cells_of,
)
from dynbn_lightning.corruptions.corrupt import corrupt, quantize
from dynbn_lightning.corruptions.presets import PRESETS, resolve_preset
from dynbn_lightning.corruptions.textures import texture_files
from dynbn_lightning.corruptions.transform import Corrupt

__all__ = [
    "CLEAN",
    "COMMON_CORRUPTIONS",
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "PRESETS",
    "SEVERITIES",
    "Cell",
    "Corrupt",
    "cells_of",
    "corrupt",
    "quantize",
    "resolve_preset",
    "texture_files",
]
