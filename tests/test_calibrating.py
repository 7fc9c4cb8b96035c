"""Calibrating a bank on a tiny network: what is chosen, that it is the least of its kind, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tuning_models import (
    NovelStripeDetector,
    StripeDetector,
    assert_untouched,
    at_the_start,
    calibration_of,
    make_bank,
    make_data,
    make_model,
    parts_drawn,
    pixels_of,
    snapshot,
)

from dynbn_lightning import BNStatsBank, calibrate
from dynbn_lightning.batchnorm import routed
from dynbn_lightning.calibrating import NOVEL
from dynbn_lightning.errors import BankError, DataError, DetectorError

pytestmark = pytest.mark.filterwarnings("ignore:calibration gained nothing")

IMAGES = 640
COLUMNS = [1, 2, 0]  # of the detector, in the order of the bank's rows


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def bank(model: nn.Module) -> BNStatsBank:
    return make_bank(model, make_data())


@pytest.fixture(scope="module")
def calibrated(model: nn.Module, bank: BNStatsBank) -> BNStatsBank:
    return calibrate(model, bank, NovelStripeDetector(), make_data(), images=IMAGES, progress=False)


def same(one: BNStatsBank, other: BNStatsBank) -> bool:
    mine, its = calibration_of(one), calibration_of(other)
    assert mine.image_share is not None and its.image_share is not None  # noqa: PT018
    return (
        torch.equal(mine.source_share, its.source_share)
        and torch.equal(mine.image_share, its.image_share)
        and mine.temperature == its.temperature
        and mine.novelty_limit == its.novelty_limit
        and mine.provenance == its.provenance
    )


@torch.no_grad()
def detected(detector: nn.Module, part: Any, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, novelties and true rows of drawn images, in float64."""
    looks = [
        (detector(pixels_of(batch))[:, COLUMNS], pixels_of(batch).mean((1, 2, 3)), batch.rows)
        for batch in make_data().drawn_batches(images, part)
    ]
    logits, novelties, rows = (torch.cat(tables).double().numpy() for tables in zip(*looks, strict=True))
    return logits, novelties, rows.astype(int)


@torch.no_grad()
def mean_loss(model: nn.Module, bank: BNStatsBank, criterion: str) -> float:
    """What calibrating minimises, over all of its draws: images weighted by the detector, at the bank's temperature."""
    losses = []
    detector = StripeDetector()
    for batch in make_data().drawn_batches(IMAGES, "choose"):
        truth = model(batch.clean)
        with routed(model, bank) as routing:
            logits = detector(pixels_of(batch))[:, COLUMNS]
            routing.set((logits / calibration_of(bank).temperature).softmax(1))
            predicted = model(batch.images)
        if criterion == "labels":
            losses.append(F.cross_entropy(predicted, batch.labels))
        else:
            log_ratio = truth.log_softmax(1) - predicted.log_softmax(1)
            losses.append((truth.softmax(1) * log_ratio).sum(1).mean())
    return float(torch.stack(losses).mean())


# What is chosen


def test_the_bank_gets_a_calibration_and_nothing_else(bank: BNStatsBank, calibrated: BNStatsBank) -> None:
    calibration = calibration_of(calibrated)
    calibration.check(len(bank), len(bank.layers))
    for share in (calibration.source_share, calibration.image_share):
        assert share is not None
        assert not share.requires_grad
        assert (share[0] == 0).all()
        assert ((share[1:] > 0) & (share[1:] < 1)).all()
    assert bank.calibration is None
    assert torch.equal(calibrated.mean, bank.mean)
    assert torch.equal(calibrated.var, bank.var)
    assert calibrated.weight is calibrated.bias is None
    assert (calibrated.rows, calibrated.provenance) == (bank.rows, bank.provenance)


@pytest.mark.parametrize("criterion", ["consistency", "labels"])
def test_the_loss_is_lowered_on_the_images_it_was_tuned_on(model: nn.Module, bank: BNStatsBank, criterion: Any) -> None:
    options: dict[str, Any] = {"images": IMAGES, "criterion": criterion, "progress": False}
    calibrated = calibrate(model, bank, StripeDetector(), make_data(), **options)
    assert calibration_of(calibrated).provenance["criterion"] == criterion
    start, end = (mean_loss(model, one, criterion) for one in (at_the_start(calibrated), calibrated))
    assert end < 0.9 * start


def test_the_temperature_is_that_of_the_least_cross_entropy(calibrated: BNStatsBank) -> None:
    logits, _, rows = detected(StripeDetector(), "choose", IMAGES // 4)

    def cross_entropy(temperature: float) -> float:
        scaled = logits / temperature
        highest = scaled.max(1)
        normalizers = highest + np.log(np.exp(scaled - highest[:, None]).sum(1))
        return float((normalizers - scaled[np.arange(len(rows)), rows]).mean())

    grid = np.exp(np.linspace(-4, 5, 9001))
    best = grid[np.argmin([cross_entropy(temperature) for temperature in grid])]
    assert best > 2, "the detector is too sure of itself"
    assert calibration_of(calibrated).temperature == pytest.approx(best, rel=5e-3)


def test_the_temperature_undoes_a_scale_of_the_logits(model: nn.Module, bank: BNStatsBank) -> None:
    sure, unsure = (
        calibration_of(calibrate(model, bank, StripeDetector(sureness), make_data(), images=IMAGES, progress=False))
        for sureness in (100.0, 1.0)
    )
    assert sure.temperature == pytest.approx(100 * unsure.temperature, rel=1e-2)
    assert unsure.temperature < 1
    torch.testing.assert_close(sure.source_share, unsure.source_share, rtol=0, atol=2e-3)


def test_the_novelty_limit_is_the_quantile(model: nn.Module, bank: BNStatsBank, calibrated: BNStatsBank) -> None:
    _, novelties, _ = detected(StripeDetector(), "choose", IMAGES // 4)
    limit = calibration_of(calibrated).novelty_limit
    assert limit == pytest.approx(float(np.quantile(novelties, 1 - NOVEL)), rel=1e-5)
    assert novelties.mean() < limit <= novelties.max()
    without = calibrate(model, bank, StripeDetector(), make_data(), images=1, progress=False)  # a batch will do
    assert calibration_of(without).novelty_limit is None, "where the detector finds nothing novel"


def test_without_image_moments(model: nn.Module, bank: BNStatsBank, calibrated: BNStatsBank) -> None:
    without = calibrate(
        model, bank, NovelStripeDetector(), make_data(), images=IMAGES, image_moments=False, progress=False
    )
    assert calibration_of(without).image_share is None
    assert calibration_of(without).temperature == calibration_of(calibrated).temperature
    assert not torch.equal(calibration_of(without).source_share, calibration_of(calibrated).source_share)


def test_what_was_done_is_told(calibrated: BNStatsBank) -> None:
    said = calibration_of(calibrated).provenance
    data = make_data()
    assert (said["criterion"], said["images"], said["seed"]) == ("consistency", IMAGES, 0)
    assert {name: said[name] for name in data.provenance()} == data.provenance()
    assert list(said["check"]) == ["source", "uncalibrated", "calibrated"]


def test_the_check_is_of_held_out_images_by_the_detectors_own_rows(model: nn.Module, calibrated: BNStatsBank) -> None:
    check = calibration_of(calibrated).provenance["check"]
    calibration, detector = calibration_of(calibrated), NovelStripeDetector()
    assert calibration.novelty_limit is not None
    right: dict[str, list[Tensor]] = {name: [] for name in check}
    clean = []
    with torch.no_grad():
        for batch in make_data().drawn_batches(IMAGES // 8, "check"):
            logits, novelty = detector.with_novelty(pixels_of(batch))
            own = logits[:, COLUMNS].softmax(1)
            cautious = (logits[:, COLUMNS] / calibration.temperature).softmax(1)
            cautious[novelty > calibration.novelty_limit] = torch.eye(3)[0]
            truths = torch.stack([model(batch.clean).argmax(1), batch.labels])
            clean.append(batch.rows == 0)
            right["source"].append(model(batch.images).argmax(1) == truths)
            for name, one, weights in (
                ("uncalibrated", calibrated.uncalibrated(), own),
                ("calibrated", calibrated, cautious),
            ):
                with routed(model, one) as routing:
                    routing.set(weights)
                    right[name].append(model(batch.images).argmax(1) == truths)
    on_clean = torch.cat(clean)
    for name, parts in right.items():
        agreement, accuracy = torch.cat(parts, dim=1).double()
        expected = {"agreement": agreement, "accuracy": accuracy, "clean_accuracy": accuracy[on_clean]}
        assert check[name] == pytest.approx({key: values.mean().item() for key, values in expected.items()})


def test_it_looks_at_held_out_images_alone(model: nn.Module, bank: BNStatsBank) -> None:
    data = make_data()
    parts = parts_drawn(data)
    calibrate(model, bank, StripeDetector(), data, images=64, progress=False)
    assert sorted(parts) == [("check", True), ("choose", True), ("choose", True)]


# What it follows


def test_the_same_seed_gives_the_same(model: nn.Module, bank: BNStatsBank, calibrated: BNStatsBank) -> None:
    torch.manual_seed(123)
    for given in (bank, calibrated):  # whose own calibration is not looked at
        assert same(
            calibrate(model, given, NovelStripeDetector(), make_data(), images=IMAGES, progress=False), calibrated
        )
    others = make_data(seed=1)
    other = calibrate(model, make_bank(model, others), NovelStripeDetector(), others, images=IMAGES, progress=False)
    assert not torch.equal(calibration_of(other).source_share, calibration_of(calibrated).source_share)


def test_gaining_nothing_is_warned_of(model: nn.Module, bank: BNStatsBank) -> None:
    """A bank whose rows are of no use, even blended."""
    useless = replace(bank, mean=bank.mean + torch.tensor([[0.0], [40.0], [-40.0]]))
    with pytest.warns(UserWarning, match="calibration gained nothing"):
        calibrate(model, useless, StripeDetector(), make_data(), images=64, progress=False)


# What is left alone


def test_the_model_is_left_as_it_was(model: nn.Module, bank: BNStatsBank) -> None:
    model[3].weight.requires_grad_(False)  # type: ignore[index]
    model.train()
    model[1].eval()  # type: ignore[index]
    before, detector = snapshot(model), StripeDetector().train()
    its = snapshot(detector)
    try:
        calibrate(model, bank, detector, make_data(), images=128, progress=False)
        assert_untouched(model, before)
        assert_untouched(detector, its)
    finally:
        model.eval().requires_grad_(True)


def test_the_model_is_left_as_it_was_by_an_interrupt_at_any_look(model: nn.Module, bank: BNStatsBank) -> None:
    """The first look is for the temperature, two are while tuning, two for the check."""
    model.train()
    model[0].eval()  # type: ignore[index]
    before, data = snapshot(model), make_data()
    try:
        for last in range(1, 6):
            looks = 0

            def look(last: int = last) -> None:
                nonlocal looks
                looks += 1
                if looks == last:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                calibrate(model, bank, StripeDetector(interrupt=look), data, images=128, progress=False)
            assert_untouched(model, before)
    finally:
        model.eval()
    looks = -1000
    calibrate(model, bank, StripeDetector(interrupt=look), data, images=128, progress=False)
    assert looks == -1000 + 5


# Errors


def test_other_rows_models_and_detectors_are_refused_before_any_look(model: nn.Module, bank: BNStatsBank) -> None:
    def look() -> None:
        pytest.fail("work was done")

    detector = StripeDetector(interrupt=look)
    others = make_data(corruptions=("gaussian_noise", "fog"))
    with pytest.raises(BankError, match="not the same ones: give the data the corruptions"):
        calibrate(model, bank, detector, others, progress=False)
    with pytest.raises(BankError, match="another model"):
        calibrate(make_model(seed=1), bank, detector, make_data(), progress=False)
    with pytest.raises(DataError, match="collected with seed 0, this data has 1"):
        calibrate(model, bank, detector, make_data(seed=1), progress=False)
    with pytest.raises(DataError, match="did you mean 'labels'"):
        calibrate(model, bank, detector, make_data(), criterion="label", progress=False)  # type: ignore[arg-type]
    detector.rows = ("clean", "fog", "contrast")
    with pytest.raises(DetectorError, match="fog"):
        calibrate(model, bank, detector, make_data(), progress=False)
    with pytest.raises(DetectorError, match="nowhere"):
        calibrate(model, bank, "nowhere.ckpt", make_data(), progress=False)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_detector_is_reported_before_tuning(model: nn.Module, bank: BNStatsBank, broken: float) -> None:
    with pytest.raises(DetectorError, match="the detector gave NaN or infinity"):
        calibrate(model, bank, StripeDetector(broken), make_data(), images=64, progress=False)
