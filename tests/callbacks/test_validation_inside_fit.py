"""Validation inside a fit is patched where that is asked for, and the fit is the same as without."""

import copy

import pytest
import torch
from callback_models import FakeDetector, UsersModule, bare_trainer, make_bank, make_model, normalized_loader
from test_batch_stats_callback import in_train_mode

from dynbn_lightning import BatchStatsCallback, DynamicBNCallback, EMAStatsCallback
from dynbn_lightning.errors import BankError

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*")


class Notes(UsersModule):
    """Notes the network as it is at each validation step, and what that gave."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__(make_model())
        self.learning_rate, self.seen = learning_rate, []

    def validation_step(self, batch, batch_idx):
        own = make_model()
        own.load_state_dict(self.network.state_dict())
        self.seen.append((self.trainer.sanity_checking, self.network.training, own.eval(), batch[0], self(batch[0])))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


def fit(module, callback, in_fit=True, **options):
    callback.in_fit = in_fit
    trainer = bare_trainer(callback, max_epochs=2, **options)
    trainer.fit(module, normalized_loader(4), normalized_loader(4))
    return module


def test_batch_statistics_are_used_in_each_validation_but_the_first_trial():
    module = fit(Notes(), BatchStatsCallback())
    assert [trial for trial, *_ in module.seen] == [True] * 2 + [False] * 8
    for trial, training, own, images, logits in module.seen:
        assert not training
        with torch.no_grad():
            expected = own(images) if trial else in_train_mode(own, images)
            other = in_train_mode(own, images) if trial else own(images)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert (logits - other).abs().max() > 0.01


def test_each_validation_begins_anew():
    module = fit(Notes(learning_rate=0.0), EMAStatsCallback(), num_sanity_val_steps=0)
    assert len(module.seen) == 8
    first = [logits for *_, logits in module.seen[:4]]
    alone = Notes()
    alone.network.load_state_dict(module.seen[0][2].state_dict())
    bare_trainer(EMAStatsCallback()).validate(alone, normalized_loader(4), verbose=False)
    for logits, (*_, expected) in zip(first, alone.seen, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def test_the_fit_is_the_same_as_without():
    patched, plain = fit(Notes(), BatchStatsCallback()), fit(Notes(), BatchStatsCallback(), in_fit=False)
    assert [type(layer) for layer in patched.modules()] == [type(layer) for layer in plain.modules()]
    for name, value in plain.state_dict().items():
        assert torch.equal(patched.state_dict()[name], value), name


def test_a_bank_is_refused_once_the_weights_have_changed():
    module = Notes()
    bank = make_bank(module.network, normalization="imagenet")
    before = copy.deepcopy([type(layer) for layer in module.modules()])
    with pytest.raises(BankError, match="weights"):
        fit(module, DynamicBNCallback(bank, FakeDetector()))
    assert [type(layer) for layer in module.modules()] == before
