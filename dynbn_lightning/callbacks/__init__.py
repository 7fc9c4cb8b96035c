"""Test-time methods as Lightning callbacks, one a file."""

from .base import BatchNormCallback
from .batch_stats import BatchStatsCallback
from .corruption_report import CorruptionReportCallback
from .distribution_matching import DistributionMatchingCallback
from .dynamic_bn import DynamicBNCallback
from .ema_stats import EMAStatsCallback
from .few_shot import FewShotBNCallback
from .frozen_detector import FrozenDetector
from .layerwise import LayerwiseCallback, Reset, StreamStatisticsCallback
from .tent import TentCallback
from .unmix_tns import UnMixTNSCallback

__all__ = [
    "BatchNormCallback",
    "BatchStatsCallback",
    "CorruptionReportCallback",
    "DistributionMatchingCallback",
    "DynamicBNCallback",
    "EMAStatsCallback",
    "FewShotBNCallback",
    "FrozenDetector",
    "LayerwiseCallback",
    "Reset",
    "StreamStatisticsCallback",
    "TentCallback",
    "UnMixTNSCallback",
]
