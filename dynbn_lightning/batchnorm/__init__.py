"""Finding, measuring and routing BatchNorm statistics; no Lightning here."""

from dynbn_lightning.batchnorm.bank import SOURCE_ROW, BNStatsBank
from dynbn_lightning.batchnorm.batch_statistics import BatchStatisticsPolicy
from dynbn_lightning.batchnorm.layers import canonical_name, find_batchnorm_layers, register
from dynbn_lightning.batchnorm.mixing import MIXINGS, Mixing, mix_rows
from dynbn_lightning.batchnorm.patched_layers import LayerPolicy, PatchedLayer
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.routing import Routing, patch_with_bank, routed

__all__ = [
    "MIXINGS",
    "SOURCE_ROW",
    "BNStatsBank",
    "BatchStatisticsPolicy",
    "LayerPolicy",
    "Mixing",
    "Patch",
    "PatchedLayer",
    "Routing",
    "canonical_name",
    "find_batchnorm_layers",
    "mix_rows",
    "patch_with_bank",
    "register",
    "routed",
]
