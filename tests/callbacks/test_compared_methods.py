"""Each compared method in real Trainers against a plain float64 reference, and the model as it was afterwards."""

import signal

import pytest
import torch
from callback_models import UsersModule, bare_trainer, make_model
from method_references import (
    Gradients,
    Watched,
    distribution_matching,
    few_shot,
    forward,
    loader_of,
    make_batches,
    make_quantiles,
    matched,
    running_average,
    source_blend,
    tent,
    unmix,
)
from torch import nn

from dynbn_lightning import (
    BatchStatsCallback,
    DistributionMatchingCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    TentCallback,
    UnMixTNSCallback,
)
from dynbn_lightning.batchnorm import PatchedLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start.*", "ignore:.*have no `val_dataloader`.*")
ENTRIES = ("test", "validate", "predict")
SIZES = (5, 3, 6, 1, 4)


@pytest.fixture(autouse=True)
def interrupts_as_they_were():
    """Lightning ignores further interrupts after the first; the tests after these must not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def matching(per):
    def make(model):
        return DistributionMatchingCallback(make_quantiles(model), per=per, strength=1.0, samples=None)

    def reference(model, batches):
        return distribution_matching(model, batches, make_quantiles(model), per)

    return make, reference


# name -> what makes the callback, and what gives the logits that are expected
METHODS = {
    "prior": (lambda model: BatchStatsCallback(prior=16), lambda *run: source_blend(*run, prior=16)),
    "share": (lambda model: BatchStatsCallback(source_weight=0.3), lambda *run: source_blend(*run, source_weight=0.3)),
    "few-shot": (lambda model: FewShotBNCallback(images=6), lambda *run: few_shot(*run, images=6)),
    "ema": (lambda model: EMAStatsCallback(), running_average),
    "unmix": (lambda model: UnMixTNSCallback(), unmix),
    "matching batches": matching("batch"),
    "matching images": matching("image"),
    "tent": (lambda model: TentCallback(lr=0.02), lambda *run: tent(*run, lr=0.02)),
}


def make_module():
    """With scales and shifts of its own, some of them frozen."""
    model = make_model()
    for seed, layer in enumerate((model[1], model[4])):
        generator = torch.Generator().manual_seed(seed)
        layer.weight.data.copy_(torch.rand(layer.weight.shape, generator=generator) + 0.5)
        layer.bias.data.copy_(torch.rand(layer.bias.shape, generator=generator) - 0.5)
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return UsersModule(model)


@pytest.fixture
def module():
    return make_module()


def evaluate(entry, callback, module, batches, *others):
    trainer = bare_trainer(callback, *others, inference_mode=not isinstance(callback, TentCallback))
    getattr(trainer, entry)(module, loader_of(*batches), **({} if entry == "predict" else {"verbose": False}))
    logits, module.logits = module.logits, []
    return logits


def check_close(logits, expected, **tolerance):
    assert len(logits) == len(expected)
    for found, wanted in zip(logits, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, **({"rtol": 1e-4, "atol": 2e-5} | tolerance))


def far(some, others):
    return (torch.cat(some) - torch.cat(others)).abs().max() > 0.02


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
def test_logits_are_the_references_and_the_model_is_given_back(module, method, entry):
    make_callback, reference = METHODS[method]
    batches = make_batches(*SIZES)
    expected = reference(module.network, batches)
    with torch.no_grad():
        own = module.network(torch.cat([x for x, _ in batches]))
    assert far(expected, [own]), "the method does something here"
    watched = Watched(module.network)
    gradients = Gradients()
    logits = evaluate(entry, make_callback(module.network), module, batches, gradients)
    assert gradients.checked == len(SIZES)
    assert [len(some) for some in logits] == list(SIZES)
    check_close(logits, expected)
    assert all(issubclass(kind, PatchedLayer) for kind in module.classes)
    watched.check(gradients.before)


@pytest.mark.parametrize("method", ["few-shot", "ema", "unmix", "tent"])
def test_what_came_before_matters_in_the_methods_with_memory(module, method):
    _, reference = METHODS[method]
    batches = make_batches(*SIZES)
    alone = [logits for batch in batches for logits in reference(module.network, [batch])]
    assert (torch.cat(alone[1:]) - torch.cat(reference(module.network, batches)[1:])).abs().max() > 5e-4


@pytest.mark.parametrize("steps", [2, 3])
def test_tent_takes_its_steps_and_predicts_before_the_last_one(module, steps):
    batches = make_batches(5, 3, 6)
    watched = Watched(module.network)
    expected = tent(module.network, batches, lr=0.01, steps=steps)
    assert far(expected, tent(module.network, batches, lr=0.01, steps=steps - 1))
    check_close(evaluate("test", TentCallback(lr=0.01, steps=steps), module, batches), expected)
    watched.check()


def test_tents_optimiser_can_be_another(module):
    class WithSGD(TentCallback):
        def configure_optimizer(self, parameters):
            return torch.optim.SGD(parameters, lr=self.lr)

    batches = make_batches(*SIZES)
    expected = tent(module.network, batches, lr=0.5, optimizer=torch.optim.SGD)
    check_close(evaluate("test", WithSGD(lr=0.5), module, batches), expected)


@pytest.mark.parametrize("per", ["batch", "image"])
def test_distribution_matching_by_its_default_table_is_near_the_exact_map(module, per):
    """Equal bins, and for images a sample of their activations: less exact, and still this map."""
    batches = make_batches(8, 8)
    quantiles = make_quantiles(module.network)
    expected = distribution_matching(module.network, batches, quantiles, per)
    callback = DistributionMatchingCallback(quantiles, per=per, strength=1.0)
    tolerance = {"batch": 0.01, "image": 0.06}[per]
    check_close(evaluate("test", callback, module, batches), expected, rtol=0, atol=tolerance)
    with torch.no_grad():
        own = module.network(torch.cat([x for x, _ in batches]))
    assert (own - torch.cat(expected)).abs().max() > 5 * tolerance


@pytest.mark.parametrize(("per", "strength"), [("batch", 1.0), ("image", 0.1)])
def test_distribution_matching_goes_a_default_part_of_the_way(module, per, strength):
    quantiles, batches = make_quantiles(module.network), make_batches(7)
    (by_default,) = evaluate("test", DistributionMatchingCallback(quantiles, per=per), module, batches)
    explicit = DistributionMatchingCallback(quantiles, per=per, strength=strength)
    assert torch.equal(by_default, *evaluate("test", explicit, module, batches))


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_distribution_matching_goes_as_much_of_the_way_as_asked(module, strength):
    """Half way at one layer: the mean of the activations themselves and of where they would go."""
    module.network[4] = nn.Identity()
    (x, _), *_ = batches = make_batches(7)
    quantiles = make_quantiles(module.network)
    wanted = quantiles.of_layer("1")[0].double().numpy()

    def normalize(name, layer, x):
        moved = x.clone()
        for channel, goal in enumerate(wanted):
            values = x[:, channel].detach().numpy()
            probabilities = (torch.arange(len(goal)) + 0.5) / len(goal)
            knots = torch.from_numpy(values).flatten().quantile(probabilities.double()).numpy()
            between = knots + strength * (goal - knots)
            moved[:, channel] = torch.from_numpy(matched(values, between))
        scale = (layer.running_var + layer.eps).rsqrt() * layer.weight
        shift = layer.bias - layer.running_mean * scale
        return moved * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    with torch.no_grad():
        expected = [forward(module.network, x, normalize)]
    callback = DistributionMatchingCallback(quantiles, strength=strength, samples=None)
    check_close(evaluate("test", callback, module, batches), expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_given_back_after_a_step_that_raises(module, method, entry, error):
    batches = make_batches(4, 4, 4)
    callback = METHODS[method][0](module.network)
    watched = Watched(module.network)
    module.fail_at, module.error = 2, error
    # Lightning turns an interrupt into an exit of the program.
    gradients = Gradients()
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        evaluate(entry, callback, module, batches, gradients)
    assert len(module.classes) == 2
    assert all(issubclass(kind, PatchedLayer) for kind in module.classes)
    watched.check(gradients.before)
    # And what the interrupted run had gathered is forgotten.
    module.fail_at, module.logits = None, []
    check_close(evaluate(entry, callback, module, batches), METHODS[method][1](module.network, batches))
    watched.check()


@pytest.mark.parametrize("method", METHODS)
def test_validation_inside_fit_is_left_alone(method):
    module, twin = make_module(), make_module()
    callback = METHODS[method][0](module.network)
    for one, callbacks in ((module, [callback]), (twin, [])):
        torch.manual_seed(0)
        bare_trainer(*callbacks, max_epochs=2).fit(one, loader_of(*make_batches(5, 4)), loader_of(*make_batches(5, 3)))
    assert set(module.classes) == {nn.BatchNorm2d}
    assert len(module.logits) == len(twin.logits) == 2 + 2 * 2  # the check at the start, and two epochs
    assert all(torch.equal(one, other) for one, other in zip(module.logits, twin.logits, strict=True))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_a_second_run_begins_anew(module, method):
    callback = METHODS[method][0](module.network)
    batches = make_batches(*SIZES)
    first = evaluate("test", callback, module, batches)
    for entry in ENTRIES:
        again = evaluate(entry, callback, module, batches)
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))


def test_one_trainer_runs_twice_and_begins_anew(module):
    trainer = bare_trainer(EMAStatsCallback(reset="never"))
    logits = []
    for _ in range(2):
        trainer.test(module, loader_of(*make_batches(*SIZES)), verbose=False)
        logits.append(torch.cat(module.logits))
        module.logits = []
    assert torch.equal(*logits)
