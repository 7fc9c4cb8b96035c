"""Finding, measuring and routing BatchNorm statistics; no Lightning here."""

from dynbn_lightning.batchnorm.bank import SOURCE_ROW, BNStatsBank
from dynbn_lightning.batchnorm.batch_statistics import BatchStatisticsPolicy
from dynbn_lightning.batchnorm.calibration import Calibration
from dynbn_lightning.batchnorm.collecting import PROPAGATIONS, Propagation
from dynbn_lightning.batchnorm.distribution_matching import (
    DistributionMatchingPolicy,
    Per,
    RoutedMatchingPolicy,
    Samples,
)
from dynbn_lightning.batchnorm.exchange import Exchange
from dynbn_lightning.batchnorm.fingerprint import fingerprint_of, fingerprints
from dynbn_lightning.batchnorm.layers import canonical_name, find_batchnorm_layers, register, unpatch
from dynbn_lightning.batchnorm.mixing import MIXINGS, Mixing, blend_with_source, mix_rows
from dynbn_lightning.batchnorm.patched_layers import LayerPolicy, PatchedLayer, own_statistics
from dynbn_lightning.batchnorm.patching import Patch
from dynbn_lightning.batchnorm.quantile_bank import QuantileBank
from dynbn_lightning.batchnorm.routing import BlendedRoutingPolicy, Routing, RoutingPolicy, patch_with_bank, routed
from dynbn_lightning.batchnorm.running_statistics import FirstImagesPolicy, RunningAveragePolicy
from dynbn_lightning.batchnorm.statistics import Statistics
from dynbn_lightning.batchnorm.statistics_policy import StatisticsPolicy, check_count, check_share
from dynbn_lightning.batchnorm.trainable_affine import TrainableAffinePolicy
from dynbn_lightning.batchnorm.unmix import UnMixPolicy

__all__ = [
    "MIXINGS",
    "PROPAGATIONS",
    "SOURCE_ROW",
    "BNStatsBank",
    "BatchStatisticsPolicy",
    "BlendedRoutingPolicy",
    "Calibration",
    "DistributionMatchingPolicy",
    "Exchange",
    "FirstImagesPolicy",
    "LayerPolicy",
    "Mixing",
    "Patch",
    "PatchedLayer",
    "Per",
    "Propagation",
    "QuantileBank",
    "RoutedMatchingPolicy",
    "Routing",
    "RoutingPolicy",
    "RunningAveragePolicy",
    "Samples",
    "Statistics",
    "StatisticsPolicy",
    "TrainableAffinePolicy",
    "UnMixPolicy",
    "blend_with_source",
    "canonical_name",
    "check_count",
    "check_share",
    "find_batchnorm_layers",
    "fingerprint_of",
    "fingerprints",
    "mix_rows",
    "own_statistics",
    "patch_with_bank",
    "register",
    "routed",
    "unpatch",
]
