"""Test-time methods as Lightning callbacks, one a file."""

from .base import BatchNormCallback
from .batch_stats import BatchStatsCallback
from .dynamic_bn import DynamicBNCallback

__all__ = ["BatchNormCallback", "BatchStatsCallback", "DynamicBNCallback"]
