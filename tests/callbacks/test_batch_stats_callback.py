"""BatchStatsCallback: train-mode normalisation, evaluation in everything else."""

import copy
import warnings

import pytest
import torch
from callback_models import IMAGENET, UsersModule, bare_trainer, make_data, make_model, make_pixels, normalized_loader
from torch import nn

from dynbn_lightning import BatchStatsCallback


def in_train_mode(model, images):
    twin = copy.deepcopy(model)
    for layer in twin.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    with torch.no_grad():
        return twin(images)


@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
def test_equals_train_mode_batch_by_batch(entry):
    model = make_model()
    model.insert(7, nn.Dropout(0.9))
    module = UsersModule(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    getattr(bare_trainer(BatchStatsCallback()), entry)(module, normalized_loader(5))
    images = IMAGENET.apply(make_pixels().float() / 255)
    assert [len(logits) for logits in module.logits] == [5, 5, 3]
    for logits, batch in zip(module.logits, images.split(5), strict=True):
        torch.testing.assert_close(logits, in_train_mode(model.eval(), batch), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert (module.logits[0] - model(images[:5])).abs().max() > 0.05


def test_works_with_a_corruption_datamodule_and_depends_on_the_batch():
    logits = {}
    for batch_size in (5, 25):
        module = UsersModule(make_model())
        bare_trainer(BatchStatsCallback()).test(module, datamodule=make_data(batch_size=batch_size), verbose=False)
        logits[batch_size] = torch.cat(module.logits)
    assert logits[5].shape == logits[25].shape == (25, 5)
    assert not torch.allclose(logits[5], logits[25], atol=1e-3)


@pytest.mark.parametrize("entry", ["test", "predict"])
def test_a_batch_of_one_warns_once(entry):
    module = UsersModule(make_model())
    callback = BatchStatsCallback()
    with pytest.warns(UserWarning, match="batch of one image") as caught:
        getattr(bare_trainer(callback), entry)(module, normalized_loader(1, count=4))
    assert sum("batch of one image" in str(warning.message) for warning in caught) == 1
    images = IMAGENET.apply(make_pixels(4).float() / 255)
    torch.testing.assert_close(module.logits[2], in_train_mode(module.network, images[2:3]), rtol=1e-5, atol=1e-5)


def test_larger_batches_do_not_warn():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batch of one image.*")
        bare_trainer(BatchStatsCallback()).test(UsersModule(make_model()), normalized_loader(13), verbose=False)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*")
def test_validation_inside_fit_is_left_alone():
    module = UsersModule(make_model())
    bare_trainer(BatchStatsCallback(), max_epochs=1).fit(module, normalized_loader(), normalized_loader())
    assert set(module.classes) == {nn.BatchNorm2d}
