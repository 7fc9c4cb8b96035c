"""Corruption errors: computed by hand, against published numbers, and refused where they would not be what they say."""

import math

import pytest

from dynbn_lightning.corruptions.cells import COMMON_CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, cells_of
from dynbn_lightning.errors import CorruptionError, DataError
from dynbn_lightning.metrics import (
    BASELINES,
    Baseline,
    corruption_errors,
    mean_corruption_error,
    relative_corruption_errors,
    relative_mean_corruption_error,
)
from dynbn_lightning.metrics.baselines import ALEXNET_IMAGENET_C

SMALL = Baseline("small", {"fog": (0.2, 0.4, 0.5, 0.6, 0.8), "snow": (0.5,)}, clean=0.1)
ALEXNET_ERRORS = {
    f"{corruption}/{severity}": error
    for corruption, errors in ALEXNET_IMAGENET_C.errors.items()
    for severity, error in enumerate(errors, start=1)
}
RESNET50_CE = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77)
"""In percent, rounded; from Hendrycks and Dietterich (2019), Table 1, with a clean error of 23.9, mCE 76.7 and relative
mCE 105.0."""


def everywhere(error):
    return {cell.name: error for cell in cells_of(COMMON_CORRUPTIONS, SEVERITIES)}


def test_by_hand():
    errors = {"clean": 0.2, "snow/1": 0.3, "fog/1": 0.3, "fog/3": 0.4}
    errors |= {f"snow/{severity}": 0.3 for severity in SEVERITIES}
    found = corruption_errors(errors, SMALL)
    assert list(found) == ["snow", "fog"]
    assert found == pytest.approx({"snow": 1.5 / 2.5, "fog": 0.7 / 0.7})
    relative = relative_corruption_errors(errors, SMALL)
    assert relative == pytest.approx({"snow": (0.3 - 0.2) / (0.5 - 0.1), "fog": (0.1 + 0.2) / (0.1 + 0.4)})


def test_sums_and_not_the_mean_of_ratios():
    baseline = Baseline("b", {"fog": (0.1, 0.9, None, None, None)})
    assert corruption_errors({"fog/1": 0.1, "fog/2": 0.1}, baseline) == {"fog": pytest.approx(0.2)}


def test_alexnet_against_itself_is_one():
    errors = {**ALEXNET_ERRORS, "clean": 0.43478}
    assert len(ALEXNET_ERRORS) == 75
    assert mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(1)
    assert relative_mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(1)
    assert corruption_errors(errors, ALEXNET_IMAGENET_C) == pytest.approx(dict.fromkeys(COMMON_CORRUPTIONS, 1))
    halved = {name: error / 2 for name, error in errors.items()}
    assert mean_corruption_error(halved, ALEXNET_IMAGENET_C) == pytest.approx(0.5)
    assert relative_mean_corruption_error(halved, ALEXNET_IMAGENET_C) == pytest.approx(0.5)


def test_resnet50_as_published():
    """From the rounded CE of the paper's table to its mCE and relative mCE, which come from unrounded ones."""
    errors = {"clean": 0.239}
    for corruption, ce in zip(COMMON_CORRUPTIONS, RESNET50_CE, strict=True):
        for severity in SEVERITIES:
            errors[f"{corruption}/{severity}"] = ce / 100 * ALEXNET_ERRORS[f"{corruption}/{severity}"]
    assert 100 * mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(76.7, abs=0.5)
    assert 100 * relative_mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(105.0, abs=1)


@pytest.mark.parametrize("name", ["benz-cifar10", "benz-cifar100"])
def test_a_baseline_of_means_needs_all_severities(name):
    assert mean_corruption_error(everywhere(0.3), BASELINES[name]) == pytest.approx(
        sum(0.3 / error for (error,) in BASELINES[name].errors.values()) / 15
    )
    with pytest.raises(DataError, match="only the mean error of 'fog' over all five severities, and 1, 3 were asked"):
        corruption_errors({"fog/3": 0.3, "fog/1": 0.3}, BASELINES[name])
    with pytest.raises(DataError, match=f"baseline's error on clean images, which is not known of '{name}'"):
        relative_corruption_errors({"clean": 0.1, **everywhere(0.3)}, BASELINES[name])


def test_another_model_as_the_baseline():
    baseline = Baseline.from_errors("source", {"clean": 0.1, **everywhere(0.5)})
    assert mean_corruption_error(everywhere(0.4), baseline) == pytest.approx(0.8)
    assert relative_mean_corruption_error({"clean": 0.2, **everywhere(0.4)}, baseline) == pytest.approx(0.5)
    few = Baseline.from_errors("source", {"speckle_noise/3": 0.5, "speckle_noise/5": 0.7})
    assert corruption_errors({"speckle_noise/5": 0.35}, few) == {"speckle_noise": pytest.approx(0.5)}
    with pytest.raises(DataError, match="no error of 'speckle_noise' at severity 1, 2"):
        corruption_errors({"speckle_noise/1": 0.1, "speckle_noise/2": 0.1, "speckle_noise/3": 0.1}, few)


def test_extra_corruptions_do_not_enter_the_mean():
    extra = {cell.name: 1.0 for cell in cells_of(EXTRA_CORRUPTIONS, SEVERITIES)}
    errors = {**extra, **ALEXNET_ERRORS, "clean": 0.43478}
    assert mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(1)
    assert relative_mean_corruption_error(errors, ALEXNET_IMAGENET_C) == pytest.approx(1)
    with pytest.raises(DataError, match="no error of 'speckle_noise', but of gaussian_noise"):
        corruption_errors(errors, ALEXNET_IMAGENET_C)


@pytest.mark.parametrize("mean", [mean_corruption_error, relative_mean_corruption_error])
def test_a_mean_over_fewer_cells_is_refused(mean):
    errors = {"clean": 0.1, **everywhere(0.5)}
    del errors["fog/3"]
    with pytest.raises(DataError, match="no error of fog/3: evaluate all 75 cells"):
        mean(errors, ALEXNET_IMAGENET_C)
    with pytest.raises(DataError, match="gaussian_noise/5 and 70 more"):
        mean({"clean": 0.1}, ALEXNET_IMAGENET_C)
    with pytest.raises(DataError, match="and 13 more"):
        mean({name: 0.1 for name in everywhere(0) if name[-1] in "135" or name < "g"}, ALEXNET_IMAGENET_C)


def test_relative_errors_need_a_clean_one():
    with pytest.raises(DataError, match=r"add errors\['clean'\]"):
        relative_corruption_errors(everywhere(0.5), ALEXNET_IMAGENET_C)
    with pytest.raises(DataError, match="not known of 'b'"):
        relative_corruption_errors({"clean": 0.1, "fog/1": 0.2}, Baseline("b", {"fog": (0.3,) * 5}))


def test_nothing_to_divide_by():
    never_wrong = Baseline.from_errors("perfect", {"clean": 0.1, "snow/1": 0.4, **everywhere(0.0)})
    assert math.isnan(corruption_errors({"fog/1": 0.2}, never_wrong)["fog"])
    with pytest.raises(DataError, match=r"'perfect' leaves nothing to divide by under gaussian_noise.* and 10 more"):
        mean_corruption_error(everywhere(0.2), never_wrong)
    # In floats, the sum of the errors under fog less five times the clean one is not 0 but 6e-17.
    loses_nothing = Baseline(
        "flat", {"fog": (0.036, 0.066, 0.086, 0.116, 0.126), "frost": (0.086,) * 5, "snow": (0.05,)}, 0.086
    )
    errors = {"clean": 0.1} | {
        f"{name}/{severity}": 0.2 for name in ("fog", "frost", "snow") for severity in SEVERITIES
    }
    assert all(math.isnan(ratio) for ratio in relative_corruption_errors(errors, loses_nothing).values())
    with pytest.raises(DataError, match="no more often than on clean images"):
        relative_mean_corruption_error(
            {"clean": 0.1, **everywhere(0.2)}, Baseline.from_errors("flat", {"clean": 0.5, **everywhere(0.5)})
        )


def test_better_on_corrupted_images_is_negative():
    assert relative_corruption_errors({"clean": 0.3, "fog/1": 0.2}, SMALL) == {"fog": pytest.approx(-1)}


def test_no_corruption_no_errors():
    assert corruption_errors({"clean": 0.1}, SMALL) == {}
    assert relative_corruption_errors({"clean": 0.1}, SMALL) == {}


@pytest.mark.parametrize("error", [-0.01, 1.01, 52.0, math.nan, math.inf])
@pytest.mark.parametrize("function", [corruption_errors, relative_corruption_errors])
def test_what_is_no_error_is_refused_by_name(function, error):
    with pytest.raises(DataError, match=r"the error of 'fog/2' is .*from 0 to 1"):
        function({"clean": 0.1, "fog/1": 0.1, "fog/2": error}, SMALL)


def test_a_clean_error_is_looked_at_where_it_is_used():
    errors = {"clean": math.nan, "fog/1": 0.2}
    assert corruption_errors(errors, SMALL) == {"fog": pytest.approx(1)}
    with pytest.raises(DataError, match="the error of 'clean' is nan"):
        relative_corruption_errors(errors, SMALL)


def test_names_of_no_cell_are_refused():
    with pytest.raises(CorruptionError, match="expected 'clean' or"):
        corruption_errors({"fog": 0.2}, SMALL)
