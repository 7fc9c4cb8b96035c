"""Misuse of the compared methods: early, named, and the model as it was."""

import dataclasses

import pytest
import torch
from callback_models import IMAGENET, FakeDetector, UsersModule, bare_trainer, make_bank, make_model
from method_references import Watched, by, channel_moments, forward, loader_of, make_batches, make_quantiles, tent
from torch import nn

from dynbn_lightning import (
    BatchStatsCallback,
    DistributionMatchingCallback,
    DynamicBNCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    QuantileBank,
    TentCallback,
    UnMixTNSCallback,
)
from dynbn_lightning.errors import BankError, MethodError, RoutingError, UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*", "ignore:.*have no `val_dataloader`.*")
ENTRIES = ("test", "validate", "predict")
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def module():
    return UsersModule(make_model())


def evaluate(callbacks, module, batches, entry="test", **options):
    trainer = bare_trainer(*callbacks, **options)
    getattr(trainer, entry)(module, loader_of(*batches), **({} if entry == "predict" else {"verbose": False}))
    return module.logits


def with_gradients(callback, module, batches, entry="test"):
    return evaluate([callback], module, batches, entry, inference_mode=False)


# TENT


@pytest.mark.parametrize("entry", ENTRIES)
def test_tent_in_inference_mode_says_how_to_have_gradients_before_any_step(module, entry):
    watched = Watched(module.network)
    callback = TentCallback()
    with pytest.raises(MethodError, match=r"needs gradients.*Trainer\(inference_mode=False\)"):
        evaluate([callback], module, make_batches(4, 4), entry)
    assert module.logits == []
    watched.check()
    assert len(with_gradients(callback, module, make_batches(4, 4), entry)) == 2  # so it works


class Returning(UsersModule):
    """A module whose forward gives what `output` makes of the logits."""

    output = staticmethod(lambda logits: logits)

    def forward(self, x):
        return type(self).output(super().forward(x))

    def test_step(self, batch, batch_idx):
        self.logits.append(self.network(batch[0]).detach())

    def validation_step(self, batch, batch_idx):
        self.test_step(batch, batch_idx)


def returning(output):
    return type("Returning", (Returning,), {"output": staticmethod(output)})(make_model())


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda logits: (logits, logits), "gave tuple"),
        (lambda logits: {"scores": logits}, "gave dict"),
        (lambda logits: {"logits": logits[0]}, r"gave \(5,\)"),
        (lambda logits: logits.view(-1, 5, 1, 1), r"gave \(4, 5, 1, 1\)"),
        (lambda logits: logits.argmax(1), r"gave \(4,\)"),
        (lambda logits: logits.argsort(1), r"gave \(4, 5\)"),
        (lambda logits: None, "gave NoneType"),
    ],
    ids=["tuple", "other dict", "one image", "map", "classes", "whole numbers", "nothing"],
)
def test_tent_names_the_module_whose_forward_gives_no_logits(output, found, steps):
    module = returning(output)
    watched = Watched(module.network)
    with pytest.raises(MethodError, match=f"needs logits .*Returning.forward, which {found}.*logits_of"):
        with_gradients(TentCallback(steps=steps), module, make_batches(4, 4))
    assert len(module.logits) == 2 - steps  # one step comes after the predictions
    watched.check()


@pytest.mark.parametrize("entry", ["test", "validate"])
def test_tent_takes_logits_out_of_a_dict(entry):
    module, batches = returning(lambda logits: {"features": logits * 0, "logits": logits}), make_batches(5, 3, 6)
    for found, expected in zip(
        with_gradients(TentCallback(lr=0.02), module, batches, entry),
        tent(module.network, batches, lr=0.02),
        strict=True,
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


def test_tent_takes_the_logits_that_logits_of_finds():
    class Second(TentCallback):
        def logits_of(self, pl_module, batch):
            return pl_module(self.images_of(batch))[1]

    module, batches = returning(lambda logits: (None, logits)), make_batches(5, 3, 6)
    expected = torch.cat(tent(module.network, batches, lr=0.02))
    found = torch.cat(with_gradients(Second(lr=0.02), module, batches))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)


def without_affine():
    model = make_model()
    for number in (1, 4):
        plain = nn.BatchNorm2d(model[number].num_features, affine=False)
        plain.load_state_dict(model[number].state_dict(), strict=False)
        model[number] = plain.eval()
    return UsersModule(model)


def test_tent_without_scales_and_shifts_has_nothing_to_optimise():
    module = without_affine()
    watched = Watched(module.network)
    with pytest.raises(MethodError, match=r"layers of UsersModule have no scale or shift.*nothing to optimise"):
        with_gradients(TentCallback(), module, make_batches(4, 4))
    assert module.logits == []
    watched.check()


def test_tent_that_forgets_every_step_warns_and_is_bn_1(module):
    with pytest.warns(UserWarning, match=r"reset='batch', steps=1\) forgets each step.*BatchStatsCallback\(\)"):
        found = with_gradients(TentCallback(lr=0.5, reset="batch"), module, make_batches(5, 3, 6))
    found, module.logits = torch.cat(found), []
    torch.testing.assert_close(
        found, torch.cat(evaluate([BatchStatsCallback()], module, make_batches(5, 3, 6))), rtol=1e-5, atol=1e-5
    )


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: BatchStatsCallback(prior=v), f"prior={v}: expected") for v in (-1, NAN, INF)),
        *(
            (lambda v=v: BatchStatsCallback(source_weight=v), f"source_weight={v}: expected")
            for v in (-0.1, 1.1, NAN, INF)
        ),
        (lambda: BatchStatsCallback(prior=16, source_weight=0.5), "prior=16 and source_weight=0.5: give one"),
        (lambda: BatchStatsCallback(prior=16, source_weight=0.0), "prior=16 and source_weight=0.0: give one"),
        *((lambda v=v: FewShotBNCallback(images=v), f"images={v}: expected") for v in (0, -3)),
        *((lambda v=v: EMAStatsCallback(momentum=v), f"momentum={v}: expected") for v in (-0.1, 1.5, NAN)),
        (lambda: UnMixTNSCallback(components=0), "components=0: expected"),
        *((lambda v=v: UnMixTNSCallback(temperature=v), f"temperature={v}: expected") for v in (0, -1, NAN)),
        *((lambda v=v: UnMixTNSCallback(spread=v), f"spread={v}: expected") for v in (-0.1, 1.5, NAN)),
        *((lambda v=v: UnMixTNSCallback(momentum=v), f"momentum={v}: expected") for v in (-0.1, 1.5, NAN)),
        *((lambda v=v: TentCallback(lr=v), f"lr={v}: expected") for v in (0, -1e-3, NAN, INF)),
        *((lambda v=v: TentCallback(steps=v), f"steps={v}: expected") for v in (0, -1)),
        (lambda: TentCallback(reset="epoch"), "reset='epoch': known: batch, loader, never"),
        *(
            (lambda c=c: c(reset="batch"), "reset='batch': known: loader, never")
            for c in (FewShotBNCallback, EMAStatsCallback, UnMixTNSCallback)
        ),
        (lambda: EMAStatsCallback(reset="lodaer"), "reset='lodaer': did you mean 'loader'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_out_of_range_are_named_when_the_callback_is_made(make, message):
    with pytest.raises(MethodError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "pixel"}, "per='pixel': expected 'batch' or 'image'"),
        *(({"strength": value}, f"strength={value}: expected") for value in (-0.1, 1.5, NAN)),
        *(({"samples": value}, f"samples={value!r}: expected at least 2") for value in (1, 0, -5, 2.5, "all")),
        ({"base": EMAStatsCallback()}, "base=EMAStatsCallback: distribution matching stands on a DynamicBNCallback"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_of_distribution_matching(module, options, message):
    with pytest.raises(MethodError, match=message):
        DistributionMatchingCallback(make_quantiles(module.network), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": TentCallback()}, "base=TentCallback: expected a method with statistics of its own"),
        ({"base": "ema"}, "base=str: expected"),
        ({"base": EMAStatsCallback}, "base=.*: expected"),
        *(
            ({"base": EMAStatsCallback(), "base_weight": value}, f"base_weight={value}: expected")
            for value in (-0.1, 1.5, NAN)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_of_a_base(module, options, message):
    with pytest.raises(MethodError, match=message):
        DynamicBNCallback(make_bank(module.network), FakeDetector(), **options)


# Several callbacks


def dynamic(model, **options):
    return DynamicBNCallback(make_bank(model), FakeDetector(), normalization=IMAGENET, **options)


METHODS = {
    "BatchStatsCallback": lambda model: BatchStatsCallback(prior=4),
    "DistributionMatchingCallback": lambda model: DistributionMatchingCallback(make_quantiles(model)),
    "DynamicBNCallback": dynamic,
    "EMAStatsCallback": lambda model: EMAStatsCallback(),
    "TentCallback": lambda model: TentCallback(),
}


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_two_methods_on_the_same_layers_are_refused_by_name(module, first, second):
    watched = Watched(module.network)
    callbacks = [METHODS[name](module.network) for name in (first, second)]
    refusal, message = RoutingError, f"{second} cannot patch layers that {first} has patched.*skip=.*base="
    if first == second:  # or Lightning sees it before we do: two states of one name
        refusal, message = RuntimeError, f"{message}|more than one stateful callback of type `{second}`"
    with pytest.raises(refusal, match=message):
        evaluate(callbacks, module, make_batches(4, 4), inference_mode=False)
    assert module.logits == []
    watched.check()
    for callback in callbacks:
        assert len(with_gradients(callback, module, make_batches(4, 4))) == 2  # alone each works
        watched.check()
        module.logits = []


@pytest.mark.parametrize("entry", ENTRIES)
def test_two_methods_on_layers_kept_apart_work_together(module, entry):
    state = {}

    def normalize(name, layer, x):
        mean, var = channel_moments(x)
        if name == "4":
            share = 4 / (4 + len(x))
            return by(
                layer, x, share * layer.running_mean + (1 - share) * mean, share * layer.running_var + (1 - share) * var
            )
        old = state.get(name, (layer.running_mean, layer.running_var))
        state[name] = tuple(0.9 * o + 0.1 * new for o, new in zip(old, (mean, var), strict=True))
        return by(layer, x, *state[name])

    batches = make_batches(5, 3, 6)
    with torch.no_grad():
        expected = torch.cat([forward(module.network, x, normalize) for x, _ in batches])
    watched = Watched(module.network)
    callbacks = BatchStatsCallback(prior=4, skip=("network.1",)), EMAStatsCallback(skip=("network.4",))
    found = torch.cat(evaluate(callbacks, module, batches, entry))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
    watched.check()


def test_two_callbacks_of_one_kind_on_layers_kept_apart_are_one_on_both(module):
    expected = torch.cat(evaluate([EMAStatsCallback()], module, make_batches(5, 3, 6)))
    module.logits = []
    callbacks = EMAStatsCallback(skip=("network.1",)), EMAStatsCallback(skip=("network.4",))
    assert torch.equal(torch.cat(evaluate(callbacks, module, make_batches(5, 3, 6))), expected)


def test_a_method_that_skips_everything_is_refused(module):
    watched = Watched(module.network)
    with pytest.raises(UnsupportedModelError, match="no BatchNorm layers"):
        evaluate([EMAStatsCallback(skip=("network",))], module, make_batches(4))
    watched.check()


# Quantile banks


def test_quantiles_of_other_weights_are_refused_before_any_step(module):
    callback = DistributionMatchingCallback(make_quantiles(module.network))
    module.network[0].weight.data.mul_(1.1)
    watched = Watched(module.network)
    with pytest.raises(BankError, match=r"fits no module of UsersModule.*weights are others.*QuantileBank\.collect"):
        evaluate([callback], module, make_batches(4, 4))
    assert module.logits == []
    watched.check()


def test_quantiles_of_another_model_than_the_banks_are_refused(module):
    quantiles = dataclasses.replace(make_quantiles(module.network), fingerprints={"float32": "another"})
    watched = Watched(module.network)
    callback = DistributionMatchingCallback(quantiles, base=dynamic(module.network))
    with pytest.raises(BankError, match=r"quantiles are of another model than the bank: .*weights are others"):
        evaluate([callback], module, make_batches(4, 4))
    assert module.logits == []
    watched.check()


def test_a_file_of_quantiles_is_read_or_refused_by_name(module, tmp_path):
    quantiles, bank = make_quantiles(module.network), make_bank(module.network)
    quantiles.save(tmp_path / "quantiles.safetensors")
    bank.save(tmp_path / "bank.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "quantiles.safetensors").read_bytes()[:-7])
    with pytest.raises(BankError, match=r"no quantile bank at .*nowhere\.safetensors"):
        DistributionMatchingCallback(tmp_path / "nowhere.safetensors")
    for name in ("bank", "damaged"):
        with pytest.raises(BankError, match=f"{name}.safetensors"):
            DistributionMatchingCallback(str(tmp_path / f"{name}.safetensors"))
    expected = evaluate([DistributionMatchingCallback(quantiles)], module, make_batches(4))
    module.logits = []
    found = evaluate([DistributionMatchingCallback(tmp_path / "quantiles.safetensors")], module, make_batches(4))
    assert torch.equal(*expected, *found)


def test_a_base_that_is_more_than_rows_of_a_bank_is_refused(module):
    quantiles, bank = make_quantiles(module.network), make_bank(module.network)
    refined = dataclasses.replace(bank, weight=torch.ones_like(bank.mean), bias=torch.zeros_like(bank.mean))
    for base in (DynamicBNCallback(refined, FakeDetector()), dynamic(module.network, base=EMAStatsCallback())):
        with pytest.raises(MethodError, match=r"rows alone.*without base=, and bank\.unrefined\(\)"):
            DistributionMatchingCallback(quantiles, base=base)
    DistributionMatchingCallback(quantiles, base=DynamicBNCallback(refined.unrefined(), FakeDetector()))


def test_rows_of_the_base_without_quantiles_are_named(module):
    full = make_quantiles(module.network)
    rows = ("clean", "brightness")
    quantiles = QuantileBank(rows, full.layers, full.of_rows(rows), full.fingerprints)
    with pytest.raises(BankError, match="there are no quantiles of row 'contrast': known: clean, brightness"):
        DistributionMatchingCallback(quantiles, base=dynamic(module.network))
