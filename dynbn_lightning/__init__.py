"""Keep a BatchNorm network's accuracy on corrupted images: detect the corruption, look its statistics up, route."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynbn_lightning.batchnorm import BNStatsBank, QuantileBank, routed
    from dynbn_lightning.calibrating import calibrate
    from dynbn_lightning.callbacks import (
        BatchStatsCallback,
        CorruptionReportCallback,
        DistributionMatchingCallback,
        DynamicBNCallback,
        EMAStatsCallback,
        FewShotBNCallback,
        TentCallback,
        UnMixTNSCallback,
    )
    from dynbn_lightning.corruptions import Corrupt, corrupt
    from dynbn_lightning.datamodules import CorruptionDataModule
    from dynbn_lightning.evaluation import evaluate
    from dynbn_lightning.models import load_model
    from dynbn_lightning.modules import ClassifierModule, DetectorModule
    from dynbn_lightning.refining import refine

__version__ = "0.1.0"

__all__ = [
    "BNStatsBank",
    "BatchStatsCallback",
    "ClassifierModule",
    "Corrupt",
    "CorruptionDataModule",
    "CorruptionReportCallback",
    "DetectorModule",
    "DistributionMatchingCallback",
    "DynamicBNCallback",
    "EMAStatsCallback",
    "FewShotBNCallback",
    "QuantileBank",
    "TentCallback",
    "UnMixTNSCallback",
    "calibrate",
    "corrupt",
    "evaluate",
    "load_model",
    "refine",
    "routed",
]

_HOMES = {
    "BNStatsBank": "batchnorm",
    "QuantileBank": "batchnorm",
    "routed": "batchnorm",
    "calibrate": "calibrating",
    "BatchStatsCallback": "callbacks",
    "CorruptionReportCallback": "callbacks",
    "DistributionMatchingCallback": "callbacks",
    "DynamicBNCallback": "callbacks",
    "EMAStatsCallback": "callbacks",
    "FewShotBNCallback": "callbacks",
    "TentCallback": "callbacks",
    "UnMixTNSCallback": "callbacks",
    "Corrupt": "corruptions",
    "corrupt": "corruptions",
    "CorruptionDataModule": "datamodules",
    "evaluate": "evaluation",
    "load_model": "models",
    "ClassifierModule": "modules",
    "DetectorModule": "modules",
    "refine": "refining",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `dynbn --help` and users of one floor shouldn't wait for Lightning.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
