"""The packaged baselines against the published constants, and baselines of one's own."""

import json
import math
import pickle

import pytest

from dynbn_lightning.corruptions.cells import COMMON_CORRUPTIONS, SEVERITIES
from dynbn_lightning.errors import CorruptionError, DataError
from dynbn_lightning.metrics import BASELINES, Baseline
from dynbn_lightning.metrics.baselines import ALEXNET_IMAGENET_C, BENZ_CIFAR10_C, BENZ_CIFAR100_C

ALEXNET_MEANS = (88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8, 60.7)
"""In percent, in the order of `COMMON_CORRUPTIONS`: the constants that the literature prints."""


@pytest.fixture
def published(dynbn_data):
    return json.loads((dynbn_data.parent / "reference" / "severity_tables.json").read_text())


def test_alexnet_is_the_published_one(published):
    expected = {
        name: tuple(errors) for name, errors in published["alexnet_error"].items() if name in COMMON_CORRUPTIONS
    }
    assert ALEXNET_IMAGENET_C.errors == expected
    assert len(expected) == 15
    assert str(ALEXNET_IMAGENET_C.clean) in published["alexnet_error"]["_about"]


@pytest.mark.parametrize(("baseline", "key"), [(BENZ_CIFAR10_C, "cifar10"), (BENZ_CIFAR100_C, "cifar100")])
def test_benz_is_the_published_one(published, baseline, key):
    means = published["alexnet_error_cifar"][key]
    assert baseline.errors == {name: (mean,) for name, mean in zip(COMMON_CORRUPTIONS, means, strict=True)}
    assert baseline.clean is None


def test_alexnets_means_are_the_usual_constants():
    assert tuple(ALEXNET_IMAGENET_C.errors) == COMMON_CORRUPTIONS
    means = [100 * ALEXNET_IMAGENET_C.mean_error(corruption) for corruption in COMMON_CORRUPTIONS]
    assert means == pytest.approx(list(ALEXNET_MEANS), abs=0.0501)  # jpeg's 60.65 is printed as 60.7


def test_names():
    assert list(BASELINES) == ["alexnet", "benz-cifar10", "benz-cifar100"]
    assert all(baseline.name == name for name, baseline in BASELINES.items())


def test_sums_and_means_over_severities():
    baseline = Baseline("b", {"fog": (0.1, 0.2, None, 0.4, 0.5), "snow": (0.3,)})
    assert baseline.sum_of_errors("fog", [5, 1, 5]) == pytest.approx(0.6)
    assert baseline.mean_error("fog", iter([5, 1, 2, 1])) == pytest.approx(0.8 / 3)
    assert baseline.sum_of_errors("snow") == pytest.approx(1.5)
    assert baseline.mean_error("snow", reversed(SEVERITIES)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("corruption", "severities", "message"),
    [
        ("frost", (1,), "'b' has no error of 'frost', but of fog, snow: leave the corruption out"),
        ("fogg", (1,), "no error of 'fogg'"),
        ("fog", SEVERITIES, "'fog' at severity 3, 4: leave it out"),
        ("snow", (1, 2), "only the mean error of 'snow' over all five severities, and 1, 2 were asked for"),
        ("fog", (), "no severity of 'fog' was asked for"),
    ],
)
def test_what_is_not_known_is_refused(corruption, severities, message):
    baseline = Baseline("b", {"fog": (0.1, 0.2, None, None, 0.5), "snow": (0.3,)})
    for asked in (baseline.sum_of_errors, baseline.mean_error):
        with pytest.raises(DataError, match=message):
            asked(corruption, severities)


def test_severities_beyond_five_are_refused():
    with pytest.raises(CorruptionError, match="severity 6"):
        ALEXNET_IMAGENET_C.sum_of_errors("fog", (5, 6))


def test_from_errors_of_cells():
    errors = {"fog/5": 0.5, "clean": 0.1, "fog/1": 0.2, "snow/3": 1}
    baseline = Baseline.from_errors("source", errors)
    assert baseline == Baseline(
        "source", {"fog": (0.2, None, None, None, 0.5), "snow": (None, None, 1, None, None)}, clean=0.1
    )
    assert Baseline.from_errors("source", {"fog/1": 0.2}).clean is None
    assert Baseline.from_errors("nothing", {}).errors == {}
    with pytest.raises(CorruptionError, match="'fog' is not a cell"):
        Baseline.from_errors("source", {"fog": 0.2})
    with pytest.raises(DataError, match=r"the error of 'fog/1' of baseline 'source' is 20.0: .*divide percentages"):
        Baseline.from_errors("source", {"fog/1": 20.0})


def test_what_is_frozen_does_not_change_with_its_source():
    errors = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5]}
    baseline = Baseline("b", errors)
    errors["fog"][0], errors["snow"] = 0.9, [0.1]
    assert baseline.errors == {"fog": (0.1, 0.2, 0.3, 0.4, 0.5)}
    assert pickle.loads(pickle.dumps(baseline)) == baseline


@pytest.mark.parametrize(
    ("errors", "clean", "message"),
    [
        ({"fog": (0.1, 0.2)}, None, r"'b' has \(0.1, 0.2\) for 'fog': expected five errors"),
        ({"fog": ()}, None, "expected five errors"),
        ({"fog": (None,)}, None, "expected five errors"),
        ({"fog": (0.1, 0.2, 0.3, 0.4, 1.5)}, None, "'fog/5' of baseline 'b' is 1.5"),
        ({"fog": (math.nan,)}, None, "'fog' of baseline 'b' is nan"),
        ({"fog": (0.1,)}, -0.1, "'clean' of baseline 'b' is -0.1"),
        ({"fogg": (0.1,)}, None, "did you mean 'fog'"),
    ],
)
def test_bad_baselines_are_refused(errors, clean, message):
    with pytest.raises(ValueError, match=message):
        Baseline("b", errors, clean)
