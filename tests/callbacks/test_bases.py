"""Methods on top of others: a bank's rows blended with another method's statistics, and distribution matching on it."""

import copy

import pytest
import torch
from callback_models import (
    IMAGENET,
    ROWS,
    FakeDetector,
    UsersModule,
    bare_trainer,
    make_bank,
    make_data,
    make_model,
    weights_by_hand,
)
from method_references import (
    Watched,
    by,
    channel_moments,
    forward,
    loader_of,
    make_batches,
    make_quantiles,
    running_average,
    source_blend,
)

from dynbn_lightning import (
    BatchStatsCallback,
    DistributionMatchingCallback,
    DynamicBNCallback,
    EMAStatsCallback,
    FewShotBNCallback,
    QuantileBank,
    UnMixTNSCallback,
)
from dynbn_lightning.errors import MethodError

ENTRIES = ("test", "validate", "predict")
SIZES = (5, 3, 6, 1, 4)
BASES = {
    "prior": lambda: BatchStatsCallback(prior=4),
    "share": lambda: BatchStatsCallback(source_weight=0.3),
    "few-shot": lambda: FewShotBNCallback(images=6),
    "ema": lambda: EMAStatsCallback(),
    "unmix": lambda: UnMixTNSCallback(momentum=0.5),
}


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def module(model):
    return UsersModule(model)


@pytest.fixture
def bank(model):
    return make_bank(model, normalization=IMAGENET.to_dict())


def evaluate(callback, module, *loaders, entry="test"):
    module.logits = []
    options = {} if entry == "predict" else {"verbose": False}
    getattr(bare_trainer(callback), entry)(module, [loader_of(*batches) for batches in loaders], **options)
    return module.logits


def check_close(logits, expected, **tolerance):
    assert len(logits) == len(expected)
    for found, wanted in zip(logits, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted.double(), **({"rtol": 1e-4, "atol": 2e-5} | tolerance))


def difference(some, others):
    return max((one - other).abs().max().item() for one, other in zip(some, others, strict=True))


def row_weights(x, routing):
    weights = weights_by_hand((IMAGENET.undo(x) * 255).round().to(torch.uint8)).double()
    return weights if routing == "soft" else torch.eye(len(ROWS), dtype=torch.float64)[weights.argmax(1)]


@torch.no_grad()
def blended_by_hand(model, bank, batches, base_weight, base_moments, routing="soft"):
    """Float64: each image's mixture of rows, mixed once more with the base's moments."""
    slices, start = {}, 0
    for name, width in bank.layers.items():
        slices[name] = slice(start, start + width)
        start += width
    outputs = []
    for images, _ in batches:
        weights = row_weights(images, routing)

        def normalize(name, layer, x, weights=weights):
            means, variances = (table[:, slices[name]].double() for table in (bank.mean, bank.var))
            mean = weights @ means
            var = sum(w.unsqueeze(1) * (v + (m - mean) ** 2) for w, m, v in zip(weights.T, means, variances))  # noqa: B905
            base_mean, base_var = base_moments(name, layer, x)
            step = base_mean - mean
            blended_var = (1 - base_weight) * var + base_weight * base_var
            return by(
                layer, x, mean + base_weight * step, blended_var + base_weight * (1 - base_weight) * step.square()
            )

        outputs.append(forward(model, images, normalize))
    return outputs


def prior_of_four(name, layer, x):
    share = 4 / (4 + len(x))
    mean, var = channel_moments(x)
    return share * layer.running_mean + (1 - share) * mean, share * layer.running_var + (1 - share) * var


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("routing", ["hard", "soft"])
@pytest.mark.parametrize("base_weight", [0.25, 0.5])
def test_rows_and_batch_statistics_are_blended_as_by_hand(model, module, bank, base_weight, routing, entry):
    batches = make_batches(*SIZES)
    expected = blended_by_hand(model, bank, batches, base_weight, prior_of_four, routing)
    for other in (0, 1):
        assert difference(expected, blended_by_hand(model, bank, batches, other, prior_of_four, routing)) > 5e-3
    watched = Watched(model)
    callback = DynamicBNCallback(
        bank, FakeDetector(), routing, base=BatchStatsCallback(prior=4), base_weight=base_weight
    )
    check_close(evaluate(callback, module, batches, entry=entry), expected)
    watched.check()


def test_rows_and_a_running_average_are_blended_as_by_hand(model, module, bank):
    state = {}

    def average(name, layer, x):
        old = state.get(name, (layer.running_mean, layer.running_var))
        state[name] = tuple(0.7 * o + 0.3 * new for o, new in zip(old, channel_moments(x), strict=True))
        return state[name]

    batches = make_batches(*SIZES)
    expected = blended_by_hand(model, bank, batches, 0.5, average)
    base = EMAStatsCallback(momentum=0.3)
    check_close(evaluate(DynamicBNCallback(bank, FakeDetector(), base=base), module, batches), expected)


@pytest.mark.parametrize("base", BASES)
def test_a_base_of_no_weight_leaves_plain_dynamic_bn(module, bank, base):
    batches = make_batches(*SIZES)
    plain = evaluate(DynamicBNCallback(bank, FakeDetector()), module, batches)
    callback = DynamicBNCallback(bank, FakeDetector(), base=BASES[base](), base_weight=0)
    check_close(evaluate(callback, module, batches), plain, rtol=1e-5, atol=1e-6)
    half = evaluate(DynamicBNCallback(bank, FakeDetector(), base=BASES[base]()), module, batches)
    assert difference(half, plain) > 5e-3


@pytest.mark.parametrize("base", [name for name in BASES if name != "unmix"])
def test_a_base_of_all_the_weight_is_the_base_alone(module, bank, base):
    batches = make_batches(*SIZES)
    alone = evaluate(BASES[base](), module, batches)
    callback = DynamicBNCallback(bank, FakeDetector(), base=BASES[base](), base_weight=1)
    check_close(evaluate(callback, module, batches), alone, rtol=1e-4, atol=1e-5)


def test_unmix_with_all_the_weight_is_unmix_on_the_network_alone(model, bank):
    """Its draws follow the layers' names, which are the network's own under a bank: so those of a bare network."""
    batches = make_batches(*SIZES)

    class Bare(UsersModule):
        def __init__(self, network):
            super().__init__(network)
            layers = list(network)
            del self.network
            for number, layer in enumerate(layers):
                self.add_module(str(number), layer)
            self.count = len(layers)

        def forward(self, x):
            for number in range(self.count):
                x = self.get_submodule(str(number))(x)
            return x

        def remember(self, logits):
            self.logits.append(logits)

    alone = evaluate(BASES["unmix"](), Bare(copy.deepcopy(model)), batches)
    callback = DynamicBNCallback(bank, FakeDetector(), base=BASES["unmix"](), base_weight=1)
    check_close(evaluate(callback, UsersModule(model), batches), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("base", ["few-shot", "ema", "unmix"])
def test_bases_begin_anew_with_each_loader_and_each_run(model, module, bank, base, entry):
    loaders = [make_batches(3, 2, seed=seed) for seed in (2, 3)]
    callback = DynamicBNCallback(bank, FakeDetector(), base=BASES[base]())
    watched = Watched(model)
    expected = [
        logits
        for loader in loaders
        for logits in evaluate(DynamicBNCallback(bank, FakeDetector(), base=BASES[base]()), module, loader, entry=entry)
    ]
    for _ in range(2):
        logits = evaluate(callback, module, *loaders, entry=entry)
        assert all(torch.equal(one, other) for one, other in zip(logits, expected, strict=True))
        watched.check()
    in_one = evaluate(callback, module, loaders[0] + loaders[1], entry=entry)
    assert difference(in_one[2:], expected[2:]) > 2e-4


def test_a_base_in_the_few_images_of_a_cell_says_which_it_took(module, bank):
    base = FewShotBNCallback(images=3)
    callback = DynamicBNCallback(bank, FakeDetector(), base=base)
    data = make_data(stream="sequential", batch_size=2)
    bare_trainer(callback).test(module, datamodule=data, verbose=False)
    assert [[name for name, _ in used] for used in base.used_images] == [[cell.name] * 3 for cell in data.cells]


def test_a_base_that_skips_layers_is_refused(bank):
    """Which layers are patched is the bank's to say; a base's own `skip` would be passed over in silence."""
    with pytest.raises(MethodError, match=r"skip"):
        DynamicBNCallback(bank, FakeDetector(), base=BatchStatsCallback(prior=4, skip=("network.1",)))


@pytest.mark.parametrize("failing", [ValueError, None])
@pytest.mark.parametrize("base", BASES)
def test_the_model_is_given_back_under_every_base(model, module, bank, base, failing):
    watched = Watched(model)
    callback = DynamicBNCallback(bank, FakeDetector(), base=BASES[base]())
    if failing is None:
        evaluate(callback, module, make_batches(4, 4))
    else:
        module.fail_at, module.error = 1, failing
        with pytest.raises(failing):
            evaluate(callback, module, make_batches(4, 4))
    assert {kind.__name__ for kind in module.classes} == {"PatchedBatchNorm2d"}
    watched.check()


def test_what_the_references_say_of_a_base_alone(model, module, bank):
    batches = make_batches(*SIZES)
    for base, reference in (
        (BatchStatsCallback(prior=4), source_blend(model, batches, prior=4)),
        (EMAStatsCallback(), running_average(model, batches)),
    ):
        callback = DynamicBNCallback(bank, FakeDetector(), base=base, base_weight=1)
        check_close(evaluate(callback, module, batches), reference)


# Distribution matching on a bank


def dynamic(bank, **options):
    return DynamicBNCallback(bank, FakeDetector(), **options)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_matching_of_no_strength_is_plain_dynamic_bn(model, module, bank, routing, entry):
    batches = make_batches(*SIZES)
    quantiles = make_quantiles(model, count=32)
    plain = evaluate(dynamic(bank, routing=routing), module, batches, entry=entry)
    watched = Watched(model)
    logits = {
        strength: evaluate(
            DistributionMatchingCallback(quantiles, base=dynamic(bank, routing=routing), strength=strength),
            module,
            batches,
            entry=entry,
        )
        for strength in (0.0, 1.0)
    }
    watched.check()
    check_close(logits[0.0], plain, rtol=1e-4, atol=1e-4)
    assert difference(logits[1.0], plain) > 1e-2


def test_matching_takes_rows_in_the_banks_order_whatever_the_quantiles(model, module, bank):
    batches, quantiles = make_batches(*SIZES), make_quantiles(model)
    names = ("clean", "contrast", "brightness")
    other = QuantileBank(names, quantiles.layers, quantiles.of_rows(names), quantiles.fingerprints)
    logits = [
        evaluate(DistributionMatchingCallback(given, base=dynamic(bank)), module, batches)
        for given in (quantiles, other)
    ]
    assert difference(*logits) == 0


def test_matching_on_a_bank_depends_on_no_other_image(model, module, bank):
    callback = DistributionMatchingCallback(make_quantiles(model), base=dynamic(bank))
    together = torch.cat(evaluate(callback, module, make_batches(8)))
    torch.testing.assert_close(
        torch.cat(evaluate(callback, module, make_batches(1, 2, 5))), together, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("entry", ["test", "validate"])
def test_matching_logs_the_detection_accuracy_of_its_base(model, module, bank, entry):
    found = []
    for callback in (dynamic(bank), DistributionMatchingCallback(make_quantiles(model), base=dynamic(bank))):
        trainer = bare_trainer(callback)
        watched = Watched(model)
        getattr(trainer, entry)(module, datamodule=make_data(), verbose=False)
        watched.check()
        found.append(trainer.callback_metrics["detection/acc"].item())
    assert found[0] == found[1]
    assert 0 < found[0] < 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_matching_on_a_bank_gives_the_model_back_after_a_step_that_raises(model, module, bank, entry):
    callback = DistributionMatchingCallback(make_quantiles(model), base=dynamic(bank))
    watched = Watched(model)
    module.fail_at = 1
    with pytest.raises(ValueError, match="stopped here"):
        evaluate(callback, module, make_batches(4, 4), entry=entry)
    watched.check()
    module.fail_at = None
    again = evaluate(callback, module, make_batches(4, 4), entry=entry)
    fresh = DistributionMatchingCallback(make_quantiles(model), base=dynamic(bank))
    assert difference(again, evaluate(fresh, module, make_batches(4, 4), entry=entry)) == 0
