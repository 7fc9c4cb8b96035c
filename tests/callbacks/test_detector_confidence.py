"""What a bank's calibration does to the detector: temperature, the novelty limit, and which detector it is for."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from callback_models import (
    IMAGENET,
    ROWS,
    FakeDetector,
    UsersModule,
    bare_trainer,
    logits_without_lightning,
    make_bank,
    make_model,
    make_pixels,
    normalized_loader,
)

from dynbn_lightning import DetectorModule, DynamicBNCallback
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.callbacks.frozen_detector import FrozenDetector
from dynbn_lightning.errors import DetectorError

OTHER = "calibrated with another detector"


class WithNovelty(FakeDetector):
    """Finds images the more novel the brighter they are."""

    def with_novelty(self, images):
        return self(images), images.mean((1, 2, 3)).half()


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bank(model):
    return make_bank(model, normalization=IMAGENET.to_dict())


def calibrated(bank, share=0.0, **values):
    shares = torch.full((len(bank), len(bank.layers)), share)
    shares[0] = 0
    return replace(bank, calibration=Calibration(shares, **values))


def logits_by_hand(pixels):
    """The logits of `FakeDetector` in the order of the bank's rows, in float64."""
    means = pixels.double().mean((1, 2, 3)).numpy() / 255
    centers = dict(zip(FakeDetector.rows, (0.2, 0.47, 0.75), strict=True))
    return np.stack([-30 * abs(means - centers[row]) for row in ROWS], axis=1)


def softmax_by_hand(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def as_numpy(tensor):
    assert tensor.dtype == torch.float32
    return tensor.double().numpy()


# Temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.5])
def test_logits_are_divided_by_the_temperature(bank, temperature):
    pixels = make_pixels(40)
    with torch.no_grad():
        frozen = FrozenDetector(FakeDetector(), calibrated(bank, temperature=temperature))
        probabilities, (logits, novelty) = frozen(pixels.float() / 255), frozen.look(pixels.float() / 255)
    expected = logits_by_hand(pixels)
    np.testing.assert_allclose(as_numpy(probabilities), softmax_by_hand(expected / temperature), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(as_numpy(logits), expected, rtol=1e-4, atol=1e-5)
    assert novelty is None


def test_without_a_calibration_the_temperature_is_1_and_nothing_is_novel(bank):
    pixels = make_pixels(40)
    with torch.no_grad():
        probabilities = FrozenDetector(WithNovelty(), bank)(pixels.float() / 255)
    np.testing.assert_allclose(as_numpy(probabilities), softmax_by_hand(logits_by_hand(pixels)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_the_callback_uses_the_calibration(model, bank, routing):
    bank = calibrated(bank, share=0.4, temperature=6.0)
    pixels = make_pixels(13)
    weights = torch.from_numpy(softmax_by_hand(logits_by_hand(pixels) / 6)).float()
    assignment = weights if routing == "soft" else weights.argmax(1)
    images = IMAGENET.apply(pixels.float() / 255)
    outputs = []
    for given in (bank, bank.uncalibrated()):
        module = UsersModule(model)
        bare_trainer(DynamicBNCallback(given, FakeDetector(), routing)).test(module, normalized_loader(), verbose=False)
        outputs.append(torch.cat(module.logits))
    expected = logits_without_lightning(model, bank, images, assignment)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


# Novelty


def test_images_above_the_novelty_limit_get_the_source_row(bank):
    pixels = make_pixels(40)
    means = pixels.float().mean((1, 2, 3)) / 255
    limit = float(means.half()[5])  # which is at the limit, not above it
    with torch.no_grad():
        frozen = FrozenDetector(WithNovelty(), calibrated(bank, temperature=2.0, novelty_limit=limit))
        probabilities = frozen(pixels.float() / 255)
        unlimited = FrozenDetector(WithNovelty(), calibrated(bank, temperature=2.0))(pixels.float() / 255)
        logits, novelty = frozen.look(pixels.float() / 255)
    np.testing.assert_allclose(as_numpy(logits), logits_by_hand(pixels), rtol=1e-4, atol=1e-5)
    assert torch.equal(novelty, means.half().float())
    novel = (means.half().float() > limit).tolist()
    assert 5 < sum(novel) < 35
    assert not novel[5]
    for weights, own, is_novel in zip(probabilities, unlimited, novel, strict=True):
        assert torch.equal(weights, torch.tensor([1.0, 0.0, 0.0]) if is_novel else own)


def test_a_limit_says_nothing_of_a_detector_that_finds_nothing_novel(bank):
    images = make_pixels(10).float() / 255
    with torch.no_grad():
        limited = FrozenDetector(FakeDetector(), calibrated(bank, novelty_limit=-1e9))(images)
        assert torch.equal(limited, FrozenDetector(FakeDetector(), calibrated(bank))(images))


def test_novel_images_see_the_unpatched_model(model, bank):
    bank = calibrated(bank, share=0.3, novelty_limit=0.5)
    module = UsersModule(model)
    bare_trainer(DynamicBNCallback(bank, WithNovelty())).test(module, normalized_loader(13), verbose=False)
    pixels = make_pixels(13)
    with torch.no_grad():
        own = model(IMAGENET.apply(pixels.float() / 255))
    novel = pixels.float().mean((1, 2, 3)) / 255 > 0.5
    assert 0 < novel.sum() < 13
    assert torch.equal(module.logits[0][novel], own[novel])
    assert (module.logits[0][~novel] - own[~novel]).abs().max() > 1e-3


def test_a_fitted_detector_finds_other_images_novel(bank):
    torch.manual_seed(0)
    detector = DetectorModule(ROWS, image_size=16, hidden=8)
    images = make_pixels(60).float() / 255
    detector.train()(images)  # standardises its features by these
    detector.eval()
    with torch.no_grad():
        _, novelty = FrozenDetector(detector, bank).look(images)
        noise = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(1)).round()
        _, of_noise = FrozenDetector(detector, bank).look(noise)
        limit = float(novelty.max())
        weights = FrozenDetector(detector, calibrated(bank, novelty_limit=limit))(torch.cat([noise, images]))
    assert novelty.mean() < 2
    assert (of_noise > 2 * limit).all()
    assert torch.equal(weights[:20], torch.eye(3)[0].expand(20, 3))
    assert (weights[20:] < 1).all()


# Nothing hides a broken detector


@pytest.mark.parametrize("novelty", [0.0, 1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize(("routing", "evidence"), [("soft", "image"), ("hard", "image"), ("soft", "batch")])
def test_nan_is_reported_however_novel_the_image(model, bank, routing, evidence, broken, novelty):
    class Broken(WithNovelty):
        def with_novelty(self, images):
            logits, novelties = super().with_novelty(images)
            logits[0], novelties = broken, novelties.float()
            novelties[0] = novelty
            return logits, novelties

    callback = DynamicBNCallback(calibrated(bank, novelty_limit=10.0), Broken(), routing, evidence=evidence)
    with pytest.raises(DetectorError, match="the detector gave NaN"):
        bare_trainer(callback).test(UsersModule(model), normalized_loader(), verbose=False)


def test_nan_in_a_stream_is_reported_and_forgotten(model, bank):
    class BreaksOnce(FakeDetector):
        broken = True

        def forward(self, images):
            return super().forward(images) * (float("nan") if BreaksOnce.broken else 1)

    callback = DynamicBNCallback(bank, BreaksOnce(), evidence="stream")
    with pytest.raises(DetectorError, match="the detector gave NaN"):
        bare_trainer(callback).test(UsersModule(model), normalized_loader(), verbose=False)
    BreaksOnce.broken = False
    module = UsersModule(model)
    bare_trainer(callback).test(module, normalized_loader(), verbose=False)
    assert torch.cat(module.logits).isfinite().all()


# Which detector


def another_detector():
    detector = FakeDetector()
    detector.centers = detector.centers + 0.01
    return detector


def test_a_detector_other_than_the_one_calibrated_with_is_warned_of(bank):
    own = FrozenDetector(FakeDetector(), bank).fingerprint()
    bank = calibrated(bank, detector=own)
    with pytest.warns(UserWarning, match=OTHER):
        FrozenDetector(another_detector(), bank)
    with pytest.warns(UserWarning, match=OTHER):
        DynamicBNCallback(bank, another_detector())


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_same_detector_is_not_warned_of(bank, precision, tmp_path):
    bank = calibrated(bank, detector=FrozenDetector(FakeDetector(), bank).fingerprint())
    bank.save(tmp_path / "bank.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenDetector(FakeDetector().to(precision).train(), bank)
        DynamicBNCallback(tmp_path / "bank.safetensors", FakeDetector())
        DynamicBNCallback(bank, routing="oracle")


def test_where_nothing_is_known_of_the_detector_nothing_is_said(bank):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenDetector(another_detector(), calibrated(bank, detector=None))
        FrozenDetector(another_detector(), bank)


def test_a_detector_whose_forward_alone_is_overridden_is_asked_by_its_forward(bank):
    class Overridden(DetectorModule):
        def forward(self, images):
            return super().forward(images) * 0 + torch.tensor([5.0, 0.0, 0.0])

    detector = Overridden(ROWS, image_size=16, hidden=8).eval()
    pixels = make_pixels(4).float() / 255
    logits, novelty = FrozenDetector(detector, bank).look(pixels)
    assert torch.equal(logits, torch.tensor([[5.0, 0.0, 0.0]] * 4))
    assert novelty is None
