"""After a callback, whatever happened, the model is the one the user brought: class, flags and every bit."""

import signal

import pytest
import torch
from callback_models import (
    IMAGENET,
    FakeDetector,
    UsersModule,
    bare_trainer,
    make_bank,
    make_data,
    make_model,
    normalized_loader,
)
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from dynbn_lightning import BatchStatsCallback, DynamicBNCallback
from dynbn_lightning.batchnorm import PatchedLayer
from dynbn_lightning.errors import ImageError

pytestmark = pytest.mark.filterwarnings("ignore:.*batch of one image.*", "ignore:.*but have no `val_dataloader`.*")
ENTRIES = ("test", "validate", "predict")


@pytest.fixture(autouse=True)
def interrupts_as_they_were():
    """Lightning ignores further interrupts after the first; the tests after these must not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def dynamic_bn(model):
    return DynamicBNCallback(make_bank(model), FakeDetector(), "soft", normalization=IMAGENET)


def oracle(model):
    return DynamicBNCallback(make_bank(model), routing="oracle")


def batch_stats(model):
    return BatchStatsCallback()


METHODS = {"dynamic_bn": dynamic_bn, "batch_stats": batch_stats}


@pytest.fixture
def module():
    return UsersModule(make_model())


def evaluate(entry, trainer, module, **source):
    source = source or {"dataloaders": normalized_loader()}
    getattr(trainer, entry)(module, **source, **({} if entry == "predict" else {"verbose": False}))


class Watched:
    """A model's state before, to be compared with what it is after."""

    def __init__(self, model):
        self.model = model
        self.images = IMAGENET.apply(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)))
        self.state = {name: value.clone() for name, value in model.state_dict().items()}
        self.classes = [type(layer) for layer in model.modules()]
        self.attributes = [sorted(vars(layer)) for layer in model.modules()]
        with torch.no_grad():
            self.output = model(self.images)

    def check(self):
        assert [type(layer) for layer in self.model.modules()] == self.classes
        assert [sorted(vars(layer)) for layer in self.model.modules()] == self.attributes
        state = self.model.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[name], value) for name, value in self.state.items())
        assert not any(layer.training for layer in self.model.modules())
        with torch.no_grad():
            assert torch.equal(self.model(self.images), self.output)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
def test_after_a_run(module, method, entry):
    watched = Watched(module.network)
    evaluate(entry, bare_trainer(METHODS[method](module.network)), module)
    assert all(issubclass(kind, PatchedLayer) for kind in module.classes)
    assert len(module.classes) == 4
    watched.check()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("make_callback", [dynamic_bn, oracle, batch_stats])
def test_after_a_run_with_a_datamodule(module, make_callback, entry):
    watched = Watched(module.network)
    evaluate(entry, bare_trainer(make_callback(module.network)), module, datamodule=make_data())
    watched.check()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_a_step_that_raises(module, method, entry, error):
    watched = Watched(module.network)
    module.fail_at, module.error = 1, error
    # Lightning turns an interrupt into an exit of the program.
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        evaluate(entry, bare_trainer(METHODS[method](module.network)), module)
    assert len(module.classes) == 1
    watched.check()


@pytest.mark.parametrize("method", METHODS)
def test_after_a_loader_or_the_callback_itself_raises(module, method):
    watched = Watched(module.network)
    callback = METHODS[method](module.network)

    def batches():
        yield from list(normalized_loader())[:1]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        bare_trainer(callback).test(module, batches(), verbose=False)
    watched.check()
    if method == "dynamic_bn":
        bad = DataLoader([(torch.full((3, 16, 16), 50.0), 0)] * 2, batch_size=2)
        with pytest.raises(ImageError):
            bare_trainer(callback).test(module, bad, verbose=False)
        watched.check()


class RaisesInOnException(Callback):
    def on_exception(self, trainer, pl_module, exception):
        raise RuntimeError("another callback's mistake")


@pytest.mark.parametrize("mend", ["undo", "next start", "next fit"])
@pytest.mark.parametrize("method", METHODS)
def test_after_another_callbacks_on_exception_raised_first(module, method, mend):
    watched = Watched(module.network)
    callback = METHODS[method](module.network)
    module.fail_at = 1
    with pytest.raises(RuntimeError, match="another callback's mistake"):
        bare_trainer(RaisesInOnException(), callback).test(module, normalized_loader(), verbose=False)
    assert isinstance(module.network[1], PatchedLayer)  # Lightning never called ours
    module.fail_at = None
    if mend == "undo":
        callback.undo()
    elif mend == "next start":
        bare_trainer(callback).test(module, normalized_loader(), verbose=False)
    else:
        trainer = bare_trainer(callback, max_epochs=1, limit_train_batches=0, num_sanity_val_steps=0)
        trainer.fit(module, normalized_loader(), normalized_loader())
        assert type(module.network[1]) is nn.BatchNorm2d
        return
    watched.check()
    callback.undo()  # again: nothing
    watched.check()


def test_fitting_after_another_callbacks_mistake_trains_the_plain_model(module):
    callback = dynamic_bn(module.network)
    module.fail_at = 1
    with pytest.raises(RuntimeError, match="mistake"):
        bare_trainer(RaisesInOnException(), callback).test(module, normalized_loader(), verbose=False)
    module.fail_at = None
    classes = []

    class Watching(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            classes.append(type(module.network[1]))

    bare_trainer(callback, Watching(), max_epochs=1, limit_val_batches=0).fit(module.train(), normalized_loader())
    assert set(classes) == {nn.BatchNorm2d}


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_two_callbacks_on_the_same_layers_are_refused_and_undone(module, first, second):
    watched = Watched(module.network)
    callbacks = METHODS[first](module.network), METHODS[second](module.network)
    # Two with a state of the same name are refused by Lightning, when the Trainer is made.
    known = r"cannot patch layers that .* has patched in this run|more than one stateful callback"
    with pytest.raises(RuntimeError, match=known):
        bare_trainer(*callbacks).test(module, normalized_loader(), verbose=False)
    watched.check()
    bare_trainer(callbacks[0]).test(module, normalized_loader(), verbose=False)  # alone it works
    watched.check()


def test_one_callback_serves_many_runs_and_models():
    callback = BatchStatsCallback()
    for _ in range(2):
        module = UsersModule(make_model())
        watched = Watched(module.network)
        for entry in ENTRIES:
            evaluate(entry, bare_trainer(callback), module)
            watched.check()


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_saved_meanwhile_are_those_of_the_plain_model(module, method, tmp_path):
    class Saving(Callback):
        def on_test_batch_end(self, trainer, pl_module, *args):
            trainer.save_checkpoint(tmp_path / "meanwhile.ckpt")

    callback = METHODS[method](module.network)
    bare_trainer(callback, Saving()).test(module, normalized_loader(), verbose=False)
    state = torch.load(tmp_path / "meanwhile.ckpt", weights_only=True)["state_dict"]
    assert list(state) == list(module.state_dict())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())


def test_a_checkpoint_is_loaded_before_patching(module, tmp_path):
    """`Trainer.test(ckpt_path=...)`: the bank must fit the weights of the checkpoint, not those before."""
    callback = dynamic_bn(module.network)
    trainer = bare_trainer(max_epochs=0, num_sanity_val_steps=0)
    trainer.fit(module, normalized_loader(), normalized_loader())
    trainer.save_checkpoint(tmp_path / "right.ckpt")
    watched = Watched(module.network.eval())
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.mul_(3)
    bare_trainer(callback).test(module, normalized_loader(), ckpt_path=tmp_path / "right.ckpt", verbose=False)
    assert all(issubclass(kind, PatchedLayer) for kind in module.classes)
    watched.check()
