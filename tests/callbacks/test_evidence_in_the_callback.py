"""Which images decide on an image's row: itself, those of its batch, or those before it in the stream."""

import pytest
import torch
from callback_models import (
    IMAGENET,
    ROWS,
    FakeDetector,
    UsersModule,
    bare_trainer,
    expected_logits,
    logits_without_lightning,
    make_bank,
    make_data,
    make_model,
    make_pixels,
    normalized_loader,
    weights_by_hand,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynbn_lightning import DynamicBNCallback
from dynbn_lightning.errors import RoutingError

OUTLIERS, CHANGES = 0.05, 0.01


class UnsureDetector(FakeDetector):
    """Leans towards a row, so that evidence across images moves it."""

    def forward(self, images):
        return super().forward(images) / 10


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bank(model):
    return make_bank(model, normalization=IMAGENET.to_dict())


def unsure_by_hand(pixels):
    """What `UnsureDetector` gives: the tenth root of `weights_by_hand`, normalised."""
    roots = weights_by_hand(pixels).double() ** 0.1
    return roots / roots.sum(1, keepdim=True)


def pooled_by_hand(posteriors):
    product = torch.ones(len(ROWS), dtype=torch.float64)
    for posterior in posteriors:
        product = product * ((1 - OUTLIERS) * posterior + OUTLIERS / len(ROWS))
    return product / product.sum()


def filtered_by_hand(posteriors):
    belief, filtered = torch.full((len(ROWS),), 1 / len(ROWS), dtype=torch.float64), []
    for posterior in posteriors:
        belief = (1 - CHANGES) * belief + CHANGES / len(ROWS)
        belief = belief * ((1 - OUTLIERS) * posterior + OUTLIERS / len(ROWS))
        belief = belief / belief.sum()
        filtered.append(belief)
    return torch.stack(filtered)


def loader_of(pixels, batch_size):
    images = IMAGENET.apply(pixels.float() / 255)
    return DataLoader(TensorDataset(images, torch.zeros(len(images), dtype=torch.int64)), batch_size=batch_size)


def logits_of(model, callback, *loaders):
    module = UsersModule(model)
    bare_trainer(callback).test(module, list(loaders), verbose=False)
    return torch.cat(module.logits)


def expected(model, bank, pixels, weights):
    return logits_without_lightning(model, bank, IMAGENET.apply(pixels.float() / 255), weights.float())


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_an_images_own_evidence_depends_on_no_other(model, bank):
    pixels = make_pixels(13)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    own = expected(model, bank, pixels, unsure_by_hand(pixels))
    for callback in (DynamicBNCallback(bank, UnsureDetector(), "soft", evidence="image"),) * 2 + (
        DynamicBNCallback(bank, UnsureDetector(), "soft"),
    ):
        for batch_size in (1, 5, 13):
            shuffled = logits_of(model, callback, loader_of(pixels[order], batch_size))
            torch.testing.assert_close(shuffled, own[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", ["soft", "hard"])
@pytest.mark.parametrize("batch_size", [1, 4, 13])
def test_images_of_a_batch_share_the_pooled_row(model, bank, routing, batch_size):
    pixels = make_pixels(13)
    pooled = [pooled_by_hand(part) for part in unsure_by_hand(pixels).split(batch_size)]
    weights = torch.cat([one.expand(len(part), -1) for one, part in zip(pooled, pixels.split(batch_size), strict=True)])
    assignment = weights if routing == "soft" else nn.functional.one_hot(weights.argmax(1), len(ROWS))
    callback = DynamicBNCallback(bank, UnsureDetector(), routing, evidence="batch")
    logits = logits_of(model, callback, loader_of(pixels, batch_size))
    torch.testing.assert_close(logits, expected(model, bank, pixels, assignment), rtol=1e-4, atol=1e-5)
    own = expected(model, bank, pixels, unsure_by_hand(pixels))
    assert not close(logits, own), "pooling does something here"


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_a_stream_is_remembered_across_batches(model, bank, routing):
    pixels = make_pixels(13)
    weights = filtered_by_hand(unsure_by_hand(pixels))
    assignment = weights if routing == "soft" else nn.functional.one_hot(weights.argmax(1), len(ROWS))
    streamed = expected(model, bank, pixels, assignment)
    for batch_size in (1, 4, 13):
        callback = DynamicBNCallback(bank, UnsureDetector(), routing, evidence="stream")
        logits = logits_of(model, callback, loader_of(pixels, batch_size))
        torch.testing.assert_close(logits, streamed, rtol=1e-4, atol=1e-5)
    assert not close(streamed, expected(model, bank, pixels, unsure_by_hand(pixels))), "memory does something here"


def test_the_loaders_of_a_run_are_one_stream(model, bank):
    pixels = make_pixels(13)
    callback = DynamicBNCallback(bank, UnsureDetector(), "soft", evidence="stream")
    whole = logits_of(model, callback, loader_of(pixels, 13))
    parts = logits_of(model, callback, loader_of(pixels[:6], 6), loader_of(pixels[6:], 7))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    forgotten = logits_of(model, callback, loader_of(pixels[6:], 7))
    assert not close(forgotten, whole[6:])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_each_run_begins_anew(model, bank, error):
    callback = DynamicBNCallback(bank, UnsureDetector(), "soft", evidence="stream")
    first = logits_of(model, callback, loader_of(make_pixels(13), 4))
    assert torch.equal(logits_of(model, callback, loader_of(make_pixels(13), 4)), first)
    stopping = UsersModule(model)
    stopping.fail_at, stopping.error = 2, error
    with pytest.raises((error, SystemExit)):
        bare_trainer(callback).test(stopping, loader_of(make_pixels(13, seed=9), 4), verbose=False)
    assert len(stopping.logits) == 2
    assert torch.equal(logits_of(model, callback, loader_of(make_pixels(13), 4)), first)
    other = UsersModule(model)
    bare_trainer(callback).predict(other, loader_of(make_pixels(13), 4))
    assert torch.equal(torch.cat(other.logits), first)


@pytest.mark.parametrize("evidence", ["batch", "stream"])
def test_the_detection_accuracy_is_that_of_the_pooled_rows(model, bank, evidence):
    """In a stream that goes cell by cell, what is counted is what images are routed by."""
    seen = []

    class Recording(DynamicBNCallback):
        def before_step(self, trainer, pl_module, batch):
            super().before_step(trainer, pl_module, batch)
            pixels = (IMAGENET.undo(batch[0]) * 255).round().to(torch.uint8)
            names = [name.split("/")[0] for name in trainer.datamodule.batch_info.names]
            seen.append((unsure_by_hand(pixels), names))

    trainer = bare_trainer(Recording(bank, UnsureDetector(), evidence=evidence))
    trainer.test(UsersModule(model), datamodule=make_data(stream="sequential", batch_size=3), verbose=False)
    own = torch.cat([posteriors for posteriors, _ in seen])
    if evidence == "stream":
        used = filtered_by_hand(own)
    else:
        used = torch.cat([pooled_by_hand(posteriors).expand(len(posteriors), -1) for posteriors, _ in seen])
    truth = torch.tensor([ROWS.index(name) for _, names in seen for name in names])
    right, right_alone = ((weights.argmax(1) == truth).double().mean().item() for weights in (used, own))
    assert trainer.callback_metrics["detection/acc"].item() == pytest.approx(right)
    assert right != pytest.approx(right_alone)


def test_soft_and_image_are_the_defaults(model, bank):
    callback = DynamicBNCallback(bank, FakeDetector())
    assert callback.evidence == "image"
    logits = logits_of(model, callback, normalized_loader(13))
    torch.testing.assert_close(logits, expected_logits(model, bank, "soft"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("evidence", "nearest"), [("bach", "batch"), ("images", "image"), ("streem", "stream")])
def test_unknown_evidence_is_refused(bank, evidence, nearest):
    with pytest.raises(RoutingError, match=f"evidence='{evidence}': did you mean '{nearest}'"):
        DynamicBNCallback(bank, FakeDetector(), evidence=evidence)
