"""Corruption errors relative to a baseline: CE, mCE and their relative forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from dynbn_lightning.corruptions.cells import CLEAN, COMMON_CORRUPTIONS, SEVERITIES, Cell, cells_of
from dynbn_lightning.errors import DataError, first_few
from dynbn_lightning.metrics.baselines import Baseline, check_error

LEAST_DENOMINATOR = 1e-9
"""Sums of a baseline's errors below this are rounding errors of 0: nothing can be divided by them."""


def corruption_errors(errors: Mapping[str, float], baseline: Baseline) -> dict[str, float]:
    """CE: how much more often than the baseline a model is wrong under each corruption.

    Hendrycks and Dietterich (2019), "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    section 4.2: the sum of the model's errors over severities, divided by that of the baseline. Here over whatever
    severities `errors` has, the baseline's over the same.

    Args:
        errors: Top-1 errors, 0 to 1, by the cell's name (`fog/3`); `clean` may be among them and is not looked at.
        baseline: What to divide by: one of `BASELINES`, or another model's `Baseline.from_errors`.

    Returns:
        By corruption, in the order of `errors`: 1.0 is as wrong as the baseline, 0.5 half as often. NaN where the
        baseline is never wrong, as there is nothing to divide by.

    Raises:
        CorruptionError: If a name is of no cell.
        DataError: If an error is not from 0 to 1, or if the baseline does not have it (an unknown corruption; a
            missing severity; only the mean over five severities, and `errors` has fewer).

    Examples:
        >>> baseline = Baseline("mine", {"fog": (0.2, 0.4, 0.4, 0.6, 0.8)})
        >>> corruption_errors({"fog/1": 0.1, "fog/5": 0.4}, baseline)
        {'fog': 0.5}
    """
    return {
        corruption: _ratio(math.fsum(its.values()), baseline.sum_of_errors(corruption, its))
        for corruption, its in _by_corruption(errors).items()
    }


def mean_corruption_error(errors: Mapping[str, float], baseline: Baseline) -> float:
    """mCE: the mean CE over the 15 common corruptions, each over its five severities.

    Hendrycks and Dietterich (2019), section 4.2. Published numbers are this times 100, with `ALEXNET_IMAGENET_C`.
    torchmetrics' "MCE" is another thing, the maximum calibration error.

    Args:
        errors: Top-1 errors, 0 to 1, by the cell's name; `clean` and the four extra corruptions are not looked at.
        baseline: What to divide by, as in `corruption_errors`.

    Returns:
        1.0 is as wrong as the baseline.

    Raises:
        CorruptionError: If a name is of no cell.
        DataError: If one of the 75 errors is missing or not from 0 to 1, if the baseline does not have it, or if the
            baseline is never wrong under one of the corruptions.
    """
    return _mean(corruption_errors(_common(errors), baseline), baseline)


def relative_corruption_errors(errors: Mapping[str, float], baseline: Baseline) -> dict[str, float]:
    """Relative CE: how much more than the baseline a model loses under each corruption against its own clean error.

    Hendrycks and Dietterich (2019), section 4.2: the sum over severities of the model's error less its clean error,
    divided by the same of the baseline.

    Args:
        errors: Top-1 errors, 0 to 1, by the cell's name, `clean` among them.
        baseline: What to divide by; its clean error must be known.

    Returns:
        By corruption, in the order of `errors`: 1.0 loses as much as the baseline, 0 nothing, and below 0 the model
        is better on corrupted images than on clean ones. NaN where the baseline itself loses nothing, as a ratio to
        that has no meaning.

    Raises:
        CorruptionError: If a name is of no cell.
        DataError: If a clean error is missing, or as `corruption_errors` does.
    """
    if CLEAN not in errors:
        raise DataError("relative corruption errors need the model's error on clean images: add errors['clean']")
    if baseline.clean is None:
        raise DataError(
            f"relative corruption errors need the baseline's error on clean images, which is not known of "
            f"{baseline.name!r}: use another baseline, or corruption errors that are not relative"
        )
    clean = check_error(errors[CLEAN], repr(CLEAN))
    return {
        corruption: _ratio(
            math.fsum(its.values()) - len(its) * clean,
            baseline.sum_of_errors(corruption, its) - len(its) * baseline.clean,
        )
        for corruption, its in _by_corruption(errors).items()
    }


def relative_mean_corruption_error(errors: Mapping[str, float], baseline: Baseline) -> float:
    """Relative mCE: the mean relative CE over the 15 common corruptions, each over its five severities.

    Args:
        errors: Top-1 errors, 0 to 1, by the cell's name, `clean` among them; the four extra corruptions are not
            looked at.
        baseline: What to divide by; its clean error must be known.

    Returns:
        1.0 loses as much as the baseline.

    Raises:
        CorruptionError: If a name is of no cell.
        DataError: If one of the 75 errors or a clean one is missing or not from 0 to 1, if the baseline does not have
            it, or if the baseline loses nothing under one of the corruptions.
    """
    return _mean(relative_corruption_errors(_common(errors), baseline), baseline)


def _by_corruption(errors: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """Checked errors by corruption and severity, without `clean`."""
    found: dict[str, dict[int, float]] = {}
    for name, error in errors.items():
        cell = Cell.parse(name)
        if not cell.is_clean:
            found.setdefault(cell.corruption, {})[cell.severity] = check_error(error, repr(name))
    return found


def _common(errors: Mapping[str, float]) -> dict[str, float]:
    """The errors of the 75 cells that a mean is over, and the clean one where there is one."""
    names = [cell.name for cell in cells_of(COMMON_CORRUPTIONS, SEVERITIES)]
    missing = [name for name in names if name not in errors]
    if missing:
        raise DataError(
            "a mean corruption error is over 15 corruptions at 5 severities, and there is no error of "
            f"{first_few(missing)}: evaluate all 75 cells, or give corruption errors without their mean"
        )
    looked_at = (CLEAN, *COMMON_CORRUPTIONS)
    return {name: error for name, error in errors.items() if Cell.parse(name).corruption in looked_at}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > LEAST_DENOMINATOR else math.nan


def _mean(ratios: Mapping[str, float], baseline: Baseline) -> float:
    without = [corruption for corruption, ratio in ratios.items() if math.isnan(ratio)]
    if without:
        raise DataError(
            f"baseline {baseline.name!r} leaves nothing to divide by under {first_few(without)}, where it is never "
            "wrong or no more often than on clean images: use a baseline that is wrong more often"
        )
    return fmean(ratios.values())
