"""DynamicBNCallback in real Trainers: what it computes, what it logs, where it works."""

import copy

import pytest
import torch
from callback_models import (
    IMAGENET,
    ROWS,
    FakeDetector,
    PixelImages,
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
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from dynbn_lightning import ClassifierModule, DetectorModule, DynamicBNCallback
from dynbn_lightning.batchnorm import BNStatsBank, routed
from dynbn_lightning.models.normalization import Normalization

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*", "ignore:.*have no `val_dataloader`.*")
ENTRIES = ("test", "validate", "predict")


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bank(model):
    return make_bank(model, normalization=IMAGENET.to_dict())


def run(entry, trainer, module, **source):
    options = {} if entry == "predict" else {"verbose": False}
    return getattr(trainer, entry)(module, **source, **options)


@pytest.mark.parametrize("routing", ["hard", "soft"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_logits_equal_those_without_lightning(model, bank, entry, routing):
    module = UsersModule(model)
    expected = expected_logits(model, bank, routing)
    unpatched = model(IMAGENET.apply(make_pixels().float() / 255))
    run(
        entry,
        bare_trainer(DynamicBNCallback(bank, FakeDetector(), routing)),
        module,
        dataloaders=normalized_loader(batch_size=13),
    )
    torch.testing.assert_close(torch.cat(module.logits), expected, rtol=1e-4, atol=1e-5)
    assert (expected - unpatched).abs().max() > 0.01  # routing does something here
    assert {kind.__name__ for kind in module.classes} == {"PatchedBatchNorm2d"}
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_batch_size_1_and_16_give_the_same_logits(model, bank, routing):
    logits = {}
    for batch_size in (1, 16):
        module = UsersModule(model)
        loader = normalized_loader(batch_size=batch_size, count=19)
        bare_trainer(DynamicBNCallback(bank, FakeDetector(), routing)).test(module, loader, verbose=False)
        logits[batch_size] = torch.cat(module.logits)
    torch.testing.assert_close(logits[1], logits[16], rtol=1e-5, atol=1e-6)
    assert len(logits[1]) == 19


def test_mixing_is_passed_on(model, bank):
    class Unsure(FakeDetector):
        def forward(self, images):
            return super().forward(images) * 0

    images, outputs = IMAGENET.apply(make_pixels().float() / 255), []
    for mixing in ("moments", "average"):
        module = UsersModule(model)
        callback = DynamicBNCallback(bank, Unsure(), "soft", mixing=mixing)
        bare_trainer(callback).test(module, normalized_loader(13), verbose=False)
        with torch.no_grad(), routed(model, bank, mixing) as routing:
            routing.set(torch.full((13, 3), 1 / 3))
            torch.testing.assert_close(module.logits[0], model(images), rtol=1e-5, atol=1e-5)
        outputs.append(module.logits[0])
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("routing", ["hard", "soft", "oracle"])
@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_with_a_corruption_datamodule(model, bank, entry, routing, stream):
    seen = []

    class Recording(DynamicBNCallback):
        def before_step(self, trainer, pl_module, batch):
            super().before_step(trainer, pl_module, batch)
            images = batch if isinstance(batch, torch.Tensor) else batch[0]
            seen.append((images.clone(), trainer.datamodule.batch_info.names))

    module = UsersModule(model)
    callback = Recording(bank, None if routing == "oracle" else FakeDetector(), routing)
    trainer = bare_trainer(callback)
    run(entry, trainer, module, datamodule=make_data(stream=stream))
    logits = iter(module.logits)
    right = total = 0
    for images, names in seen:
        pixels = (images * IMAGENET._channels(IMAGENET.std, images) + IMAGENET._channels(IMAGENET.mean, images)) * 255
        weights = weights_by_hand(pixels.round().to(torch.uint8))
        true_rows = torch.tensor([ROWS.index(name.split("/")[0]) for name in names])
        right += int((weights.argmax(1) == true_rows).sum())
        total += len(names)
        assignment = {"hard": weights.argmax(1), "soft": weights, "oracle": true_rows}[routing]
        expected = logits_without_lightning(model, bank, images, assignment)
        torch.testing.assert_close(next(logits), expected, rtol=1e-4, atol=1e-5)
    assert total == 5 * 5  # 5 images in clean, brightness/1, brightness/5, contrast/1, contrast/5
    assert next(logits, None) is None
    if routing == "oracle" or entry == "predict":
        assert "detection/acc" not in trainer.callback_metrics
    else:
        assert trainer.callback_metrics["detection/acc"].item() == pytest.approx(right / total)
        assert 0 < right < total


def test_oracle_prefers_the_row_of_the_cell(model):
    collected = make_bank(model)
    bank = BNStatsBank(
        rows=("clean", "brightness", "brightness/5", "contrast"),
        layers=collected.layers,
        mean=torch.cat([collected.mean[:2], collected.mean[1:] + 0.5]),
        var=torch.cat([collected.var[:2], collected.var[1:] * 2]),
    )
    assigned = []

    class Recording(DynamicBNCallback):
        def before_step(self, trainer, pl_module, batch):
            super().before_step(trainer, pl_module, batch)
            names = trainer.datamodule.batch_info.names
            rows = {"clean": 0, "brightness/1": 1, "brightness/5": 2, "contrast/1": 3, "contrast/5": 3}
            assigned.append(
                logits_without_lightning(
                    copy.deepcopy(source), bank, batch[0], torch.tensor([rows[name] for name in names])
                )
            )

    source = copy.deepcopy(model)
    module = UsersModule(model)
    bare_trainer(Recording(bank, routing="oracle")).test(module, datamodule=make_data(), verbose=False)
    torch.testing.assert_close(torch.cat(module.logits), torch.cat(assigned), rtol=1e-5, atol=1e-6)


def test_detection_accuracy_leaves_out_images_whose_row_is_unknown(model, bank):
    """pixelate has no row: routed like any image, but neither right nor wrong."""
    data = make_data(corruptions=("brightness", "pixelate"), severities=(5,))
    counted = []

    class Recording(DynamicBNCallback):
        def before_step(self, trainer, pl_module, batch):
            super().before_step(trainer, pl_module, batch)
            pixels = (IMAGENET.undo(batch[0]) * 255).round().to(torch.uint8)
            for row, name in zip(weights_by_hand(pixels).argmax(1), trainer.datamodule.batch_info.names, strict=True):
                if "pixelate" not in name:
                    counted.append(ROWS[row] == name.split("/")[0])

    trainer = bare_trainer(Recording(bank, FakeDetector()))
    trainer.test(UsersModule(model), datamodule=data, verbose=False)
    assert len(counted) == 10
    assert trainer.callback_metrics["detection/acc"].item() == pytest.approx(sum(counted) / 10)


def test_detection_accuracy_starts_anew_each_run_and_is_absent_without_truth(model, bank):
    callback = DynamicBNCallback(bank, FakeDetector())
    values = []
    for fresh, severities in ((callback, (1,)), (callback, (5,)), (DynamicBNCallback(bank, FakeDetector()), (5,))):
        trainer = bare_trainer(fresh)
        trainer.test(UsersModule(model), datamodule=make_data(severities=severities), verbose=False)
        values.append(trainer.callback_metrics["detection/acc"].item())
    assert values[0] != values[1] == values[2]
    trainer = bare_trainer(callback)
    trainer.test(UsersModule(model), normalized_loader(), verbose=False)
    assert "detection/acc" not in trainer.callback_metrics


def test_nothing_is_logged_when_no_image_has_a_known_row(model, bank):
    class OnlyUnknown(LightningDataModule):
        normalization = IMAGENET
        batch_info = type("Info", (), {"names": ("snow/1",) * 13})

        def test_dataloader(self):
            return normalized_loader(13)

    trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector()))
    trainer.test(UsersModule(model), datamodule=OnlyUnknown(), verbose=False)
    assert "detection/acc" not in trainer.callback_metrics


def test_validation_inside_fit_is_left_alone(model, bank):
    module = UsersModule(model)
    trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector()), max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(module, normalized_loader(), normalized_loader())
    assert set(module.classes) == {nn.BatchNorm2d}
    assert len(module.classes) == 1 + 4


def test_training_after_a_test_moves_the_running_statistics_again(model, bank):
    module = UsersModule(model)
    callback = DynamicBNCallback(bank, FakeDetector())
    bare_trainer(callback).test(module, normalized_loader(), verbose=False)
    before = model[1].running_mean.clone()
    bare_trainer(callback, max_epochs=1, limit_val_batches=0).fit(module.train(), normalized_loader())
    assert not torch.equal(model[1].running_mean, before)


# Where the normalisation comes from


@pytest.mark.parametrize(
    ("provenance", "given"),
    [
        ({}, "imagenet"),
        ({}, IMAGENET),
        ({}, (IMAGENET.mean, IMAGENET.std)),
        ({"normalization": IMAGENET.to_dict()}, None),
        ({"normalization": "imagenet"}, None),
    ],
    ids=["name", "Normalization", "pair", "bank", "bank, by name"],
)
def test_normalization_is_given_or_in_the_bank(model, provenance, given):
    bank = make_bank(model, **provenance)
    module = UsersModule(model)
    callback = DynamicBNCallback(bank, FakeDetector(), "hard", normalization=given)
    bare_trainer(callback).test(module, normalized_loader(13), verbose=False)
    torch.testing.assert_close(module.logits[0], expected_logits(model, bank, "hard"), rtol=1e-4, atol=1e-5)


def test_normalization_is_the_models(model):
    bank = make_bank(model)
    model.input_normalization = IMAGENET
    module = UsersModule(model)
    bare_trainer(DynamicBNCallback(bank, FakeDetector(), "hard")).test(module, normalized_loader(13), verbose=False)
    torch.testing.assert_close(module.logits[0], expected_logits(model, bank, "hard"), rtol=1e-4, atol=1e-5)


def test_pixels_in_0_1_need_no_normalization():
    model = make_model()
    bank = make_bank(model)
    module = UsersModule(model)
    pixels = make_pixels()
    loader = DataLoader([(image.float() / 255, 0) for image in pixels], batch_size=13)
    bare_trainer(DynamicBNCallback(bank, FakeDetector(), "hard", "none")).test(module, loader, verbose=False)
    expected = logits_without_lightning(model, bank, pixels.float() / 255, weights_by_hand(pixels).argmax(1))
    torch.testing.assert_close(module.logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_detector_sees_the_stored_8_bit_pixels(model, bank):
    seen = []

    class Recording(FakeDetector):
        def forward(self, images):
            seen.append(images.clone())
            return super().forward(images)

    recorder = Recording()
    recorder.__deepcopy__ = lambda memo: recorder
    bare_trainer(DynamicBNCallback(bank, recorder)).test(UsersModule(model), normalized_loader(13), verbose=False)
    assert torch.equal(seen[0], make_pixels().float() / 255)


# Detectors


def test_a_detector_module_and_its_checkpoint_agree(model, bank, tmp_path):
    torch.manual_seed(0)
    detector = DetectorModule(ROWS, image_size=16, hidden=8)
    checkpoint = tmp_path / "detector.ckpt"
    fitting = bare_trainer(max_epochs=0)
    fitting.fit(detector, DataLoader([(torch.rand(3, 16, 16), 0)] * 4, batch_size=4))
    fitting.save_checkpoint(checkpoint)
    detector.train()
    outputs = []
    for given in (detector, checkpoint, str(checkpoint)):
        module = UsersModule(model)
        bare_trainer(DynamicBNCallback(bank, given, "soft")).test(module, normalized_loader(13), verbose=False)
        outputs.append(module.logits[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert detector.training  # the user's own stays as it was
    assert all(parameter.requires_grad for parameter in detector.parameters())
    with torch.no_grad():
        weights = detector.eval()(make_pixels().float() / 255).softmax(1)
    expected = logits_without_lightning(model, bank, IMAGENET.apply(make_pixels().float() / 255), weights)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)


def test_a_detectors_own_forward_is_used_even_if_it_has_a_network(model, bank):
    class Sharpened(nn.Module):
        rows = FakeDetector.rows

        def __init__(self):
            super().__init__()
            self.network = FakeDetector()

        def forward(self, images):
            return self.network(images).flip(1)

    module = UsersModule(model)
    bare_trainer(DynamicBNCallback(bank, Sharpened(), "soft")).test(module, normalized_loader(13), verbose=False)
    swapped = weights_by_hand(make_pixels())[:, [0, 2, 1]]  # contrast and brightness, the outer ones, change places
    expected = logits_without_lightning(model, bank, IMAGENET.apply(make_pixels().float() / 255), swapped)
    torch.testing.assert_close(module.logits[0], expected, rtol=1e-4, atol=1e-5)


def test_assign_can_be_overridden(model, bank):
    class SourceForDark(DynamicBNCallback):
        def assign(self, images):
            weights = super().assign(images)
            dark = images.mean((1, 2, 3)) < 0.3
            return torch.where(dark.unsqueeze(1), torch.tensor([1.0, 0.0, 0.0]), weights)

    module = UsersModule(model)
    loader = normalized_loader(13)
    bare_trainer(SourceForDark(bank, FakeDetector())).test(module, loader, verbose=False)
    dark = make_pixels().float().mean((1, 2, 3)) / 255 < 0.3
    own = model(IMAGENET.apply(make_pixels().float() / 255))
    assert dark.any()
    assert torch.equal(module.logits[0][dark], own[dark])
    assert not torch.equal(module.logits[0], own)


def test_images_in_dicts_are_found(model, bank):
    class DictModule(UsersModule):
        def test_step(self, batch, batch_idx):
            self.remember(self(batch["image"]))

    images = IMAGENET.apply(make_pixels().float() / 255)
    module = DictModule(model)
    loader = DataLoader([{"image": image} for image in images], batch_size=13)
    bare_trainer(DynamicBNCallback(bank, FakeDetector(), "hard")).test(module, loader, verbose=False)
    torch.testing.assert_close(module.logits[0], expected_logits(model, bank, "hard"), rtol=1e-4, atol=1e-5)


def test_a_bank_file_is_opened(model, bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    module = UsersModule(model)
    callback = DynamicBNCallback(tmp_path / "bank.safetensors", FakeDetector(), "hard")
    bare_trainer(callback).test(module, normalized_loader(13), verbose=False)
    torch.testing.assert_close(module.logits[0], expected_logits(model, bank, "hard"), rtol=1e-4, atol=1e-5)


def test_the_issues_own_lines(tmp_path):
    """The user's code of the README, small."""
    data = make_data(source=PixelImages(40, seed=8))
    detector = DetectorModule(rows=data.rows, image_size=16, hidden=8)
    bare_trainer(max_epochs=1).fit(detector, datamodule=data)
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bank = BNStatsBank.collect(model, data.row_loaders(images_per_row=16, batch_size=8), progress=False)
    bank.save(tmp_path / "bank.safetensors")
    callback = DynamicBNCallback(bank=tmp_path / "bank.safetensors", detector=detector, routing="soft")
    trainer = bare_trainer(callback)
    trainer.test(ClassifierModule(model), datamodule=data, verbose=False)
    assert {"test/acc", "mean/acc", "clean/acc", "contrast/5/acc", "detection/acc"} <= set(trainer.callback_metrics)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert Normalization(**bank.provenance["normalization"]) == data.normalization
