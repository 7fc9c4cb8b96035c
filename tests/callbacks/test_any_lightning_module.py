"""Any LightningModule: routed it predicts what its network does image by image, and afterwards it is as it was."""

import copy

import pytest
import torch
from callback_models import IMAGENET, FakeDetector, bare_trainer, make_bank, make_data, make_model, make_pixels
from lightning_modules import (
    MODULES,
    AveragesTwoViews,
    CompiledInside,
    DictBatches,
    DifferentiatesByItsImages,
    Frozen,
    NestedTwice,
    NeverCallsForward,
    SwapsModes,
    TransfersItself,
    TuplesAndNothing,
    Watched,
    WithAnAverage,
    pixels_of_places,
    plain_loader,
    reference_logits,
)
from method_references import tent
from reported_modules import block_by_hand, cells_of_block
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dynbn_lightning import CorruptionReportCallback, DynamicBNCallback, TentCallback
from dynbn_lightning.batchnorm import PatchedLayer
from dynbn_lightning.errors import BankError, MethodError, RoutingError
from dynbn_lightning.reporting import methods_of, read_results

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*", "ignore:.*in eval mode at the start.*")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    """The page of a report takes a second or more, and is not what is tested here."""
    monkeypatch.setattr("dynbn_lightning.callbacks.corruption_report.write_report", lambda *args: None)


def make_module(kind):
    """A module, and a bank of the part of it that the bank is said to be of."""
    module = kind(make_model())
    part = module.get_submodule(kind.path)
    return module, make_bank(part, normalization=IMAGENET.to_dict())


def reference(module, bank, pixels, routing):
    inside = module.path.removeprefix("net").lstrip(".")
    network = getattr(module.net, "_orig_mod", module.net)
    pixels = pixels.flip(3) if isinstance(module, TransfersItself) else pixels
    logits = reference_logits(network, bank, pixels, routing, inside)
    if not isinstance(module, AveragesTwoViews):
        return logits
    mirrored = IMAGENET.apply(pixels.flip(3).float() / 255)
    return (logits + reference_logits(network, bank, pixels, routing, inside, mirrored)) / 2


def assert_seen(module, places, expected, **tolerance):
    assert list(module.seen) == list(places)
    torch.testing.assert_close(torch.stack(list(module.seen.values())), expected, **(tolerance or CLOSE))


@pytest.mark.parametrize("routing", ["soft", "hard"])
@pytest.mark.parametrize("kind", MODULES)
def test_any_module_is_routed_and_given_back(kind, routing):
    module, bank = make_module(kind)
    expected = reference(module, bank, make_pixels(), routing)
    callback, watched = DynamicBNCallback(bank, FakeDetector(), routing), Watched(module)
    for _ in range(2):
        module.seen.clear()
        bare_trainer(callback).test(module, plain_loader(as_dicts=kind is DictBatches), verbose=False)
        assert_seen(module, range(13), expected)
        watched.check()
    callback.undo()
    watched.check()
    module.seen.clear()
    bare_trainer().test(module, plain_loader(as_dicts=kind is DictBatches), verbose=False)
    assert (torch.stack(list(module.seen.values())) - expected).abs().max() > 0.1  # without us it predicts otherwise


@pytest.mark.parametrize("kind", MODULES)
def test_any_module_is_reported(kind, tmp_path):
    module, bank = make_module(kind)
    data = make_data(stream="sequential" if kind is DictBatches else "mixed")
    pixels = pixels_of_places(data)
    logits = dict(zip(pixels, reference(module, bank, torch.stack(list(pixels.values())), "soft"), strict=True))
    watched = Watched(module)
    for run in (1, 2):
        module.seen.clear()
        callbacks = DynamicBNCallback(bank, FakeDetector()), CorruptionReportCallback(tmp_path / str(run))
        bare_trainer(*callbacks).test(module, datamodule=data, verbose=False)
        assert_seen(module, module.seen, torch.stack([logits[place] for place in module.seen]))
        assert set(module.seen) == set(logits)
        watched.check()
    found = cells_of_block(methods_of(read_results(tmp_path / "2"))["dynamic_bn"])
    labels = {place: data.test_images[place[1]][1] for place in logits}
    for name, numbers in block_by_hand(logits, labels).items():
        assert {key: found[name][key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("kind", [TransfersItself, DictBatches])
def test_the_modules_own_transfer_hook_is_called_once_for_each_batch(kind):
    calls = []

    class Counted(kind):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            calls.append(dataloader_idx)
            return super().on_after_batch_transfer(batch, dataloader_idx)

    module, bank = make_module(Counted)
    bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, plain_loader(), verbose=False)
    assert calls == [0] * 4
    calls.clear()
    data = make_data(stream="sequential")
    bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, datamodule=data, verbose=False)
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # 5 cells, each of 5 images in batches of 4


def test_the_callback_may_come_from_configure_callbacks():
    class Configures(TuplesAndNothing):
        def configure_callbacks(self):
            return [DynamicBNCallback(bank, FakeDetector(), "hard")]

    module, bank = make_module(Configures)
    expected, watched = reference(module, bank, make_pixels(), "hard"), Watched(module)
    trainer = bare_trainer()
    for _ in range(2):
        module.seen.clear()
        trainer.test(module, plain_loader(), verbose=False)
        assert_seen(module, range(13), expected)
        watched.check()


def test_a_compiled_lightning_module_is_routed():
    module, bank = make_module(TuplesAndNothing)
    expected = reference(module, bank, make_pixels(), "soft")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    compiled = torch.compile(module, backend="eager")
    for _ in range(2):
        module.seen.clear()
        bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(compiled, plain_loader(), verbose=False)
        assert_seen(module, range(13), expected)
    assert [type(layer) for layer in module.net if isinstance(layer, nn.BatchNorm2d)] == [nn.BatchNorm2d] * 2
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    module.seen.clear()
    bare_trainer().test(compiled, plain_loader(), verbose=False)
    with torch.no_grad():
        own = module.net(IMAGENET.apply(make_pixels().float() / 255))
    assert_seen(module, range(13), own)  # the compiled code without us is not the one with us


def test_a_network_compiled_before_by_a_run_without_us_is_routed_too():
    module, bank = make_module(CompiledInside)
    expected = reference(module, bank, make_pixels(), "soft")
    bare_trainer().test(module, plain_loader(), verbose=False)
    own = torch.stack(list(module.seen.values()))
    for callbacks, logits in (([DynamicBNCallback(bank, FakeDetector())], expected), ([], own)):
        module.seen.clear()
        bare_trainer(*callbacks).test(module, plain_loader(), verbose=False)
        assert_seen(module, range(13), logits)


def test_an_average_of_equal_weights_is_named_and_find_model_decides():
    module, bank = make_module(TuplesAndNothing)
    module.average = AveragedModel(module.net)
    module.eval()  # Lightning gives modes back at the end of a run, not where one raises
    watched = Watched(module)
    with pytest.raises(BankError, match=r"several modules of TuplesAndNothing.*'net', 'average.*find_model"):
        bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, plain_loader(), verbose=False)
    assert not module.seen
    watched.check()

    class Chosen(DynamicBNCallback):
        def find_model(self, pl_module):
            return pl_module.net

    bare_trainer(Chosen(bank, FakeDetector())).test(module, plain_loader(), verbose=False)
    assert_seen(module, range(13), reference(module, bank, make_pixels(), "soft"))
    watched.check()


def test_the_average_is_routed_where_the_bank_is_of_the_average():
    class TestsTheAverage(WithAnAverage):
        def forward(self, x):
            return self.average(x)

    module = TestsTheAverage(make_model())
    bank = make_bank(module.average.module, normalization=IMAGENET.to_dict())
    watched = Watched(module)
    bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, plain_loader(), verbose=False)
    assert_seen(module, range(13), reference_logits(module.average.module, bank, make_pixels(), "soft"))
    watched.check()


def test_a_step_in_training_mode_is_refused_by_the_layers_name_and_the_module_given_back():
    class Trains(SwapsModes):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.net.train()
            TuplesAndNothing.test_step(self, batch, batch_idx, dataloader_idx)

    module, bank = make_module(Trains)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RoutingError, match="layer '1' is in training mode while it is routed"):
        bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, plain_loader(), verbose=False)
    assert not any(isinstance(layer, PatchedLayer) for layer in module.modules())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_step_may_differentiate_by_its_images():
    module, bank = make_module(DifferentiatesByItsImages)
    expected, watched = reference(module, bank, make_pixels(), "soft"), Watched(module)
    trainer = bare_trainer(DynamicBNCallback(bank, FakeDetector()), inference_mode=False)
    trainer.test(module, plain_loader(batch_size=13), verbose=False)
    assert_seen(module, range(13), expected)
    watched.check()
    assert all(parameter.grad is None for parameter in module.parameters())
    doubled, ends = copy.deepcopy(module.net).double(), []
    image, place, step = slice(4, 5), (0, 1, 7, 7), 1e-4
    for sign in (1, -1):
        moved = IMAGENET.apply(make_pixels()[image].double() / 255)
        moved[place] += sign * step
        logits = reference_logits(doubled, bank, make_pixels()[image], "soft", images=moved)
        ends.append(logits[0, expected[4].argmax()].item())
    assert abs(ends[0] - ends[1]) > 1e-3 * step
    assert module.saliency[image][place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-6)


def test_a_module_nested_twice_is_found_by_its_own_bank_alone():
    module, bank = make_module(NestedTwice)
    assert DynamicBNCallback(bank, FakeDetector()).find_model(module) is module.net.backbone


# A method that needs gradients

NOT_FOR_TENT = (Frozen, NeverCallsForward, SwapsModes, AveragesTwoViews)


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind not in NOT_FOR_TENT])
def test_tent_adapts_any_module_and_gives_it_back(kind):
    module = kind(make_model())
    batches = [(x.flip(3), y) if kind is TransfersItself else (x, y) for x, y in plain_loader(5)]
    expected, watched = torch.cat(tent(make_model(), batches, lr=0.02)), Watched(module)
    for _ in range(2):
        module.seen.clear()
        trainer = bare_trainer(TentCallback(lr=0.02), inference_mode=False)
        trainer.test(module, plain_loader(5, as_dicts=kind is DictBatches), verbose=False)
        assert_seen(module, range(13), expected.float(), rtol=1e-4, atol=2e-5)
        watched.check()
        assert all(parameter.grad is None for parameter in module.parameters())


def test_tent_adapts_a_network_whose_own_parameters_are_frozen():
    module = TuplesAndNothing(make_model().requires_grad_(False))
    expected, watched = torch.cat(tent(make_model(), list(plain_loader(5)), lr=0.02)), Watched(module)
    bare_trainer(TentCallback(lr=0.02), inference_mode=False).test(module, plain_loader(5), verbose=False)
    assert_seen(module, range(13), expected.float(), rtol=1e-4, atol=2e-5)
    watched.check()


@pytest.mark.parametrize(("kind", "found"), [(Frozen, "without gradients"), (NeverCallsForward, "no forward")])
def test_tent_refuses_by_name_what_gives_it_no_gradients(kind, found):
    module = kind(make_model()).eval()
    watched = Watched(module)
    with pytest.raises(MethodError, match=rf"TentCallback .*{kind.__name__}.*{found}.*TentCallback\.logits_of"):
        bare_trainer(TentCallback(), inference_mode=False).test(module, plain_loader(), verbose=False)
    watched.check()
