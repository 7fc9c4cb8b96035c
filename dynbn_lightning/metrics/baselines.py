"""Baselines: the errors that a model's corruption errors are divided by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dynbn_lightning.corruptions.cells import CLEAN, SEVERITIES, Cell, check_corruption_name, check_severity
from dynbn_lightning.errors import DataError


def check_error(error: float, of_what: str) -> float:
    """Return `error` as a float if it is from 0 to 1, else raise `DataError` that says of what it is."""
    if not 0 <= error <= 1:
        raise DataError(
            f"the error of {of_what} is {error!r}: expected the part of the images that are classified wrongly, from 0 "
            "to 1 (divide percentages by 100)"
        )
    return float(error)


@dataclass(frozen=True)
class Baseline:
    """The top-1 errors of a reference model, the denominators of corruption errors.

    Attributes:
        name: What to call it beside the numbers.
        errors: By corruption, the errors (0 to 1) at severities 1 to 5, None at one that is not known; or a single
            error, the mean over all five, where no more is known.
        clean: The error on clean images, 0 to 1; None where it is not known.

    Raises:
        CorruptionError: If a corruption is unknown.
        DataError: If a corruption has neither five errors nor one, or if an error is not from 0 to 1.

    Examples:
        >>> baseline = Baseline("mine", {"fog": (0.1, 0.2, 0.3, 0.4, 0.5), "snow": (0.25,)})
        >>> baseline.mean_error("fog", (1, 3, 5)), baseline.mean_error("snow")
        (0.3, 0.25)
    """

    name: str
    errors: Mapping[str, Sequence[float | None]]
    clean: float | None = None

    def __post_init__(self) -> None:
        for corruption, errors in self.errors.items():
            check_corruption_name(corruption)
            if len(errors) not in (1, len(SEVERITIES)) or tuple(errors) == (None,):
                raise DataError(
                    f"baseline {self.name!r} has {tuple(errors)!r} for {corruption!r}: expected five errors, at "
                    "severities 1 to 5 (None where it is not known), or one, their mean"
                )
            for severity, error in enumerate(errors, start=1):
                if error is not None:
                    of_what = f"{corruption}/{severity}" if len(errors) > 1 else corruption
                    check_error(error, f"{of_what!r} of baseline {self.name!r}")
        if self.clean is not None:
            check_error(self.clean, f"{CLEAN!r} of baseline {self.name!r}")
        # A copy: what is frozen does not change with the caller's dictionary.
        object.__setattr__(self, "errors", {corruption: tuple(errors) for corruption, errors in self.errors.items()})

    @classmethod
    def from_errors(cls, name: str, errors: Mapping[str, float]) -> Baseline:
        """A baseline from errors by cell, as any evaluation gives them: other models are then compared with it.

        Args:
            name: What to call it.
            errors: Errors, 0 to 1, by the cell's name (`fog/3`); any severities, and `clean` if it is known.

        Returns:
            The baseline.

        Raises:
            CorruptionError: If a name is of no cell.
            DataError: If an error is not from 0 to 1.
        """
        known: dict[str, list[float | None]] = {}
        for cell_name, error in errors.items():
            cell = Cell.parse(cell_name)
            if not cell.is_clean:
                known.setdefault(cell.corruption, [None] * len(SEVERITIES))[cell.severity - 1] = error
        return cls(name, known, errors.get(CLEAN))

    def sum_of_errors(self, corruption: str, severities: Iterable[int] = SEVERITIES) -> float:
        """The sum of the errors on a corruption over some of its severities.

        Args:
            corruption: Its name.
            severities: From 1 to 5, in any order, each counted once.

        Returns:
            The sum, from 0 to the number of severities.

        Raises:
            CorruptionError: If a severity is not one of 1 to 5.
            DataError: If the baseline does not know the corruption or one of the severities, if it knows only the mean
                over all five and others are asked for, or if none is asked for.
        """
        chosen = sorted({check_severity(severity) for severity in severities})
        if not chosen:
            raise DataError(f"no severity of {corruption!r} was asked for: expected some of 1 to 5")
        errors = self.errors.get(corruption)
        if errors is None:
            raise DataError(
                f"baseline {self.name!r} has no error of {corruption!r}, but of {', '.join(self.errors) or 'nothing'}: "
                "leave the corruption out, or make a baseline that has it with Baseline.from_errors"
            )
        if len(errors) == 1:
            if len(chosen) < len(SEVERITIES):
                raise DataError(
                    f"baseline {self.name!r} has only the mean error of {corruption!r} over all five severities, and "
                    f"{_listed(chosen)} were asked for: evaluate all five, or use a baseline with errors per severity"
                )
            errors = [*errors] * len(SEVERITIES)
        asked = {severity: errors[severity - 1] for severity in chosen}
        missing = [severity for severity, error in asked.items() if error is None]
        if missing:
            raise DataError(
                f"baseline {self.name!r} has no error of {corruption!r} at severity {_listed(missing)}: leave it out, "
                "or make a baseline that has it with Baseline.from_errors"
            )
        return math.fsum(error for error in asked.values() if error is not None)

    def mean_error(self, corruption: str, severities: Iterable[int] = SEVERITIES) -> float:
        """The mean of the errors on a corruption over some of its severities, 0 to 1; else as `sum_of_errors`."""
        chosen = set(severities)
        return self.sum_of_errors(corruption, chosen) / len(chosen)


def _listed(severities: Iterable[int]) -> str:
    return ", ".join(str(severity) for severity in severities)


ALEXNET_IMAGENET_C = Baseline(
    "alexnet",
    {
        "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
        "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
        "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
        "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
        "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
        "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
        "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
        "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
        "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
        "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
        "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
        "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
        "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
        "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
        "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    },
    clean=0.43478,
)
"""AlexNet on ImageNet-C: the denominators of Hendrycks and Dietterich (2019), and its published top-1 error."""

BENZ_CIFAR10_C = Baseline(
    "benz-cifar10",
    {
        "gaussian_noise": (0.2584,),
        "shot_noise": (0.25102,),
        "impulse_noise": (0.30084,),
        "defocus_blur": (0.30662,),
        "glass_blur": (0.30328,),
        "motion_blur": (0.37378,),
        "zoom_blur": (0.34576,),
        "snow": (0.30212,),
        "frost": (0.32398,),
        "fog": (0.37776,),
        "brightness": (0.26932,),
        "contrast": (0.51958,),
        "elastic_transform": (0.3035,),
        "pixelate": (0.25248,),
        "jpeg_compression": (0.24516,),
    },
)
"""AlexNet on CIFAR-10-C, means over severities, as Benz et al. (2021) divide by; CIFAR has no official baseline."""

BENZ_CIFAR100_C = Baseline(
    "benz-cifar100",
    {
        "gaussian_noise": (0.61448,),
        "shot_noise": (0.6007,),
        "impulse_noise": (0.66594,),
        "defocus_blur": (0.61368,),
        "glass_blur": (0.61268,),
        "motion_blur": (0.65894,),
        "zoom_blur": (0.63438,),
        "snow": (0.66192,),
        "frost": (0.68484,),
        "fog": (0.68874,),
        "brightness": (0.62692,),
        "contrast": (0.75924,),
        "elastic_transform": (0.6183,),
        "pixelate": (0.57462,),
        "jpeg_compression": (0.58216,),
    },
)
"""AlexNet on CIFAR-100-C, means over severities, as Benz et al. (2021) divide by; CIFAR has no official baseline."""

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline for baseline in (ALEXNET_IMAGENET_C, BENZ_CIFAR10_C, BENZ_CIFAR100_C)
}
"""The baselines that come with the package, by name."""
