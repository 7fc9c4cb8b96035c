"""DynamicBNCallback finds the bank's model wherever it stands, and works in every precision."""

import copy

import pytest
import torch
from callback_models import (
    IMAGENET,
    FakeDetector,
    UsersModule,
    bare_trainer,
    expected_logits,
    make_bank,
    make_data,
    make_model,
    make_pixels,
    normalized_loader,
)

from dynbn_lightning import ClassifierModule, DynamicBNCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*")


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bank(model):
    return make_bank(model, normalization=IMAGENET.to_dict())


# Where the model is


def test_the_banks_model_is_found_among_others(model, bank):
    class Ensemble(UsersModule):
        def __init__(self, network, teacher):
            super().__init__(network)
            self.teacher = teacher

    teacher = make_model()
    teacher[0].weight.data.mul_(2)
    module = Ensemble(model, teacher)
    callback = DynamicBNCallback(bank, FakeDetector())
    assert callback.find_model(module) is model
    bare_trainer(callback).test(module, normalized_loader(13), verbose=False)
    torch.testing.assert_close(module.logits[0], expected_logits(model, bank, "soft"), rtol=1e-4, atol=1e-5)


def test_a_compiled_model_and_a_classifier_module_are_found(model, bank):
    callback = DynamicBNCallback(bank, FakeDetector())
    compiled = torch.compile(model)
    assert callback.find_model(UsersModule(compiled)) is compiled
    assert callback.find_model(ClassifierModule(model)) is model


def test_the_module_itself_may_be_the_banks_model(model):
    module = UsersModule(model)
    bank = make_bank(module)
    assert list(bank.layers) == ["network.1", "network.4"]
    bare_trainer(DynamicBNCallback(bank, FakeDetector(), "hard", "imagenet")).test(
        module, normalized_loader(13), verbose=False
    )
    torch.testing.assert_close(module.logits[0], expected_logits(model, make_bank(model), "hard"), rtol=1e-4, atol=1e-5)


# Precisions


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_other_precisions_use_a_float32_bank(bank, precision):
    model = make_model()
    module = UsersModule(copy.deepcopy(model))
    trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector(), "hard"), precision=precision)
    trainer.test(module, normalized_loader(13), verbose=False)
    expected = expected_logits(model, bank, "hard")
    tolerance = 1e-4 if precision == "64-true" else 0.03
    torch.testing.assert_close(module.logits[0].float(), expected, rtol=tolerance, atol=tolerance)
    unpatched = model(IMAGENET.apply(make_pixels().float() / 255))
    assert (expected - unpatched).abs().max() > 4 * 0.03 or precision == "64-true"


def test_true_bfloat16_with_a_corruption_datamodule(bank):
    """The detector sees the same pixels, so it detects the same, whatever the model's precision."""
    accuracies = {}
    for precision in ("32-true", "bf16-true"):
        trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector()), precision=precision)
        trainer.test(UsersModule(make_model()), datamodule=make_data(), verbose=False)
        accuracies[precision] = trainer.callback_metrics["detection/acc"].item()
    assert accuracies["bf16-true"] == accuracies["32-true"]
