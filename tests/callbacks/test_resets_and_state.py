"""When methods begin anew, and how they go on from a checkpoint."""

from itertools import chain

import pytest
import torch
from callback_models import IMAGENET, FakeDetector, UsersModule, bare_trainer, make_bank, make_data, make_model
from lightning.pytorch import Callback
from method_references import loader_of, make_batches, make_quantiles

from dynbn_lightning import (
    DistributionMatchingCallback,
    DynamicBNCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    TentCallback,
    UnMixTNSCallback,
)
from dynbn_lightning.errors import MethodError

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*", "ignore:.*have no `val_dataloader`.*")
ENTRIES = ("test", "validate", "predict")
METHODS = {
    "few-shot": lambda reset: FewShotBNCallback(images=6, reset=reset),
    "ema": lambda reset: EMAStatsCallback(reset=reset),
    "unmix": lambda reset: UnMixTNSCallback(momentum=0.5, reset=reset),
    "tent": lambda reset: TentCallback(lr=0.02, reset=reset),
    "tent in two steps": lambda reset: TentCallback(lr=0.02, steps=2, reset=reset),
}


@pytest.fixture
def module():
    return UsersModule(make_model())


def trainer_of(callback):
    return bare_trainer(callback, inference_mode=not isinstance(callback, TentCallback))


def evaluate(callback, module, *loaders, entry="test", trainer=None, **options):
    """The logits of all batches of some loaders, each given as its batches."""
    module.logits = []
    loaders = [loader_of(*batches) for batches in loaders]
    options |= {} if entry == "predict" else {"verbose": False}
    getattr(trainer or trainer_of(callback), entry)(module, loaders, **options)
    return module.logits


def same(some, others):
    assert len(some) == len(others)
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def joined(lists):
    return list(chain.from_iterable(lists))


def three_loaders():
    """Two batches each, unlike one another; no loader has as many images as few-shot wants."""
    return [make_batches(3, 2, seed=seed) for seed in (2, 3, 4)]


# Several dataloaders


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
def test_reset_by_loader_begins_anew_with_each(module, method, entry):
    loaders = three_loaders()
    logits = evaluate(METHODS[method]("loader"), module, *loaders, entry=entry)
    alone = [evaluate(METHODS[method]("loader"), module, loader, entry=entry) for loader in loaders]
    assert same(logits, joined(alone))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
def test_reset_never_goes_on_as_in_one_loader(module, method, entry):
    loaders = three_loaders()
    logits = evaluate(METHODS[method]("never"), module, *loaders, entry=entry)
    assert same(logits, evaluate(METHODS[method]("never"), module, joined(loaders), entry=entry))
    by_loader = evaluate(METHODS[method]("loader"), module, *loaders, entry=entry)
    assert same(logits[:2], by_loader[:2])
    assert (torch.cat(logits[2:]) - torch.cat(by_loader[2:])).abs().max() > 5e-4


@pytest.mark.parametrize("entry", ENTRIES)
def test_reset_by_batch_begins_anew_with_each(module, entry):
    loaders = three_loaders()
    callback = TentCallback(lr=0.02, steps=3, reset="batch")
    logits = evaluate(callback, module, *loaders, entry=entry)
    alone = [
        evaluate(TentCallback(lr=0.02, steps=3), module, [batch], entry=entry) for loader in loaders for batch in loader
    ]
    assert same(logits, joined(alone))
    by_loader = evaluate(TentCallback(lr=0.02, steps=3), module, *loaders, entry=entry)
    assert not torch.allclose(by_loader[1], logits[1], atol=1e-3)


# Which images few-shot took


@pytest.mark.parametrize(("stream", "reset"), [("sequential", "loader"), ("sequential", "never"), ("mixed", "loader")])
def test_used_images_are_the_first_of_each_loader_by_cell_and_number(module, stream, reset):
    seen = []

    class Recording(FewShotBNCallback):
        def before_step(self, trainer, pl_module, batch):
            super().before_step(trainer, pl_module, batch)
            info = trainer.datamodule.batch_info
            seen.append(list(zip(info.names, info.indices, strict=True)))

    callback = Recording(images=3, reset=reset)
    data = make_data(stream=stream, batch_size=2)
    for _ in range(2):  # the second run forgets the first
        seen.clear()
        trainer_of(callback).test(module, datamodule=data, verbose=False)
        if stream == "mixed" or reset == "never":
            assert callback.used_images == [joined(seen)[:3]]
        else:
            cells = [[image for batch in seen for image in batch if image[0] == cell.name] for cell in data.cells]
            assert callback.used_images == [images[:3] for images in cells]
            assert [len({name for name, _ in used}) for used in callback.used_images] == [1] * 5


def test_used_images_are_places_in_the_loader_where_nothing_is_known(module):
    callback = FewShotBNCallback(images=4)
    evaluate(callback, module, make_batches(3, 2), make_batches(2, 1), make_batches(5))
    first = [(None, place) for place in range(4)]
    assert callback.used_images == [first, first[:3], first]
    callback = FewShotBNCallback(images=4, reset="never")
    evaluate(callback, module, make_batches(3), make_batches(2, 1))
    assert callback.used_images == [first]


# Checkpoints


def stream_bn(model, **options):
    settings = {"evidence": "stream", "normalization": IMAGENET} | options
    return DynamicBNCallback(make_bank(model), FakeDetector(), **settings)


def blended(base):
    return lambda model: stream_bn(model, evidence="image", base=base())


STATEFUL = {
    **{name: lambda model, make=make: make("never") for name, make in METHODS.items()},
    **{f"{name}, by loader": lambda model, make=make: make("loader") for name, make in METHODS.items()},
    "stream": stream_bn,
    "bank and ema": blended(lambda: EMAStatsCallback(reset="never")),
    "bank and few-shot": blended(lambda: FewShotBNCallback(images=6, reset="never")),
    "bank and unmix": blended(lambda: UnMixTNSCallback(momentum=0.5, reset="never")),
    "stream and ema": lambda model: stream_bn(model, base=EMAStatsCallback(reset="never")),
}


@pytest.mark.parametrize("method", STATEFUL)
def test_a_run_from_a_checkpoint_goes_on_and_the_next_one_begins_anew(module, method, tmp_path):
    batches = make_batches(4, 1, 3, 5, 2)
    make_callback = STATEFUL[method]
    whole = evaluate(make_callback(module.network), module, batches)
    fresh = evaluate(make_callback(module.network), module, batches[2:])
    assert (torch.cat(whole[2:]) - torch.cat(fresh)).abs().max() > 5e-4, "what came before matters"
    first = make_callback(module.network)
    trainer = trainer_of(first)
    assert same(evaluate(first, module, batches[:2], trainer=trainer), whole[:2])
    trainer.save_checkpoint(tmp_path / "state.ckpt")

    second = make_callback(module.network)
    going_on = evaluate(second, module, batches[2:], ckpt_path=tmp_path / "state.ckpt")
    assert same(going_on, whole[2:])
    assert same(evaluate(second, module, batches[2:]), fresh), "the run after that begins anew"
    assert same(evaluate(first, module, batches[2:]), fresh)


def test_saving_in_the_middle_of_a_run_is_going_on_from_there(module, tmp_path):
    batches = make_batches(4, 3, 5)

    class Saving(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 0:
                trainer.save_checkpoint(tmp_path / "state.ckpt")

    callback = EMAStatsCallback()
    whole = evaluate(callback, module, batches, trainer=bare_trainer(callback, Saving()))
    assert same(evaluate(EMAStatsCallback(), module, batches[1:], ckpt_path=tmp_path / "state.ckpt"), whole[1:])


def test_used_images_are_kept_in_a_checkpoint(module, tmp_path):
    first, second = FewShotBNCallback(images=5), FewShotBNCallback(images=5)
    trainer = trainer_of(first)
    evaluate(first, module, make_batches(3), trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    evaluate(second, module, make_batches(4), make_batches(2), ckpt_path=tmp_path / "state.ckpt")
    places = [(None, place) for place in range(5)]
    assert second.used_images == [places, places[:2]]


def test_few_shot_that_goes_on_with_fewer_images_keeps_those_it_has(module, tmp_path):
    batches = make_batches(4, 3, 5)
    whole = evaluate(FewShotBNCallback(images=6), module, batches)
    first = FewShotBNCallback(images=6)
    trainer = trainer_of(first)
    evaluate(first, module, batches[:2], trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    callback = FewShotBNCallback(images=2)
    assert same(evaluate(callback, module, batches[2:], ckpt_path=tmp_path / "state.ckpt"), whole[2:])
    assert callback.used_images == [[(None, place) for place in range(6)]]


@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "stream", "bank and ema", "bank and few-shot"])
def test_testing_from_the_checkpoint_of_a_fit_begins_anew(module, method, ran_before, tmp_path):
    """The common case: nothing was gathered in the fit, and what a run before it gathered is of other weights."""
    batches = make_batches(4, 3)
    make_callback = STATEFUL[method]
    fresh = evaluate(make_callback(module.network), module, batches)
    callback = make_callback(module.network)
    if ran_before:
        evaluate(callback, module, make_batches(5, 4, seed=3))
    trainer = bare_trainer(callback, max_epochs=0, num_sanity_val_steps=0)
    trainer.fit(module, loader_of(*batches))
    trainer.save_checkpoint(tmp_path / "fit.ckpt")
    module.network.eval()
    for one in (callback, make_callback(module.network)):
        assert same(evaluate(one, module, batches, ckpt_path=tmp_path / "fit.ckpt"), fresh)


@pytest.mark.parametrize("method", METHODS)
def test_state_of_other_layers_is_refused_by_name_and_forgotten(module, method, tmp_path):
    batches = make_batches(4, 3)
    callback = METHODS[method]("never")
    trainer = trainer_of(callback)
    fresh = evaluate(callback, module, batches, trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    checkpoint = torch.load(tmp_path / "state.ckpt", weights_only=False)
    (state,) = checkpoint["callbacks"].values()
    state["layers"] = {name.replace("network", "backbone"): value for name, value in state["layers"].items()}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    other = METHODS[method]("never")
    with pytest.raises(MethodError, match=r"backbone\.1, backbone\.4, none of 'network\.1': it is of another model"):
        evaluate(other, module, batches, ckpt_path=tmp_path / "other.ckpt")
    assert type(module.network[1]) is torch.nn.BatchNorm2d
    assert same(evaluate(other, module, batches), fresh), "without the checkpoint it works again"


@pytest.mark.parametrize("method", METHODS)
def test_state_of_layers_of_another_width_is_refused(module, method, tmp_path):
    batches = make_batches(4, 3)
    callback = METHODS[method]("never")
    trainer = trainer_of(callback)
    evaluate(callback, module, batches, trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    checkpoint = torch.load(tmp_path / "state.ckpt", weights_only=False)
    (state,) = checkpoint["callbacks"].values()
    layers = state["layers"]
    layers["network.1"], layers["network.4"] = layers["network.4"], layers["network.1"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(MethodError, match=r"'network\.1'"):
        evaluate(METHODS[method]("never"), module, batches, ckpt_path=tmp_path / "other.ckpt")


def test_a_refused_run_does_not_leave_its_checkpoint_to_the_next_one(module, tmp_path):
    """TENT in inference mode is refused before it takes up the state; the next run gave no checkpoint."""
    batches = make_batches(4, 3)
    callback = TentCallback(lr=0.02)
    trainer = trainer_of(callback)
    fresh = evaluate(callback, module, batches, trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    with pytest.raises(MethodError, match="inference_mode=False"):
        evaluate(callback, module, batches, trainer=bare_trainer(callback), ckpt_path=tmp_path / "state.ckpt")
    assert same(evaluate(callback, module, batches), fresh)


def test_distribution_matching_keeps_its_bases_memory_in_checkpoints(module, tmp_path):
    def make():
        return DistributionMatchingCallback(make_quantiles(module.network), base=stream_bn(module.network))

    batches = make_batches(4, 1, 3, 5, 2)
    whole = evaluate(make(), module, batches)
    first = make()
    trainer = trainer_of(first)
    evaluate(first, module, batches[:2], trainer=trainer)
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    assert same(evaluate(make(), module, batches[2:], ckpt_path=tmp_path / "state.ckpt"), whole[2:])
