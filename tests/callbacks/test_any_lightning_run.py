"""Any run of a Trainer: its loaders, its options and its entries, routed as the network is image by image."""

from collections import UserDict

import pytest
import torch
from callback_models import IMAGENET, FakeDetector, PixelImages, bare_trainer, make_bank, make_data, make_model
from callback_models import make_pixels as pixels_of
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from lightning_modules import (
    DictBatches,
    ReturnsADict,
    TuplesAndNothing,
    Watched,
    pixels_of_places,
    plain_loader,
    reference_logits,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from dynbn_lightning import BatchStatsCallback, CorruptionReportCallback, DynamicBNCallback
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.errors import BankError, ImageError, ReportError, RoutingError
from dynbn_lightning.reporting import methods_of, read_results

pytestmark = pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*", "ignore:.*in eval mode at the start.*")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PRECISIONS = {"32-true": 1e-5, "64-true": 1e-5, "bf16-mixed": 0.03, "bf16-true": 0.03, "16-true": 0.005}
"""How far logits may be off, relative and absolute; the reference is in float32."""


@pytest.fixture(autouse=True)
def no_pages(monkeypatch):
    monkeypatch.setattr("dynbn_lightning.callbacks.corruption_report.write_report", lambda *args: None)


@pytest.fixture
def network():
    return make_model()


@pytest.fixture
def bank(network):
    return make_bank(network, normalization=IMAGENET.to_dict())


@pytest.fixture
def callback(bank):
    return DynamicBNCallback(bank, FakeDetector())


@pytest.fixture
def expected(network, bank):
    return reference_logits(network, bank, pixels_of(), "soft")


def predicted(module):
    logits = torch.stack(list(module.seen.values()))
    module.seen.clear()
    return logits


# Loaders


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
def test_several_loaders_one_after_another(network, callback, expected, entry, combined):
    module = TuplesAndNothing(network)
    watched = Watched(module)
    for _ in range(2):
        loaders = [plain_loader(4), plain_loader(13), plain_loader(1, count=2)]
        loaders = CombinedLoader(loaders, "sequential") if combined else loaders
        getattr(bare_trainer(callback), entry)(module, loaders)
        of_two = reference_logits(network, callback.bank, pixels_of(2), "soft")
        torch.testing.assert_close(predicted(module), torch.cat([expected, expected, of_two]), **CLOSE)
        watched.check()


class SeveralAtOnce(TuplesAndNothing):
    """Of nested batches: one from each loader that has some left, together in one forward."""

    def test_step(self, batch, batch_idx):
        self.remember(self(images_of_nested(batch)))


def images_of_nested(batch):
    parts = batch.values() if isinstance(batch, dict) else batch
    return torch.cat([part[0] for part in parts if part is not None])


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("form", ["list", "dict"])
def test_loaders_at_once_give_nested_batches_refused_by_name_or_found_by_images_of(network, bank, mode, form):
    loaders = [plain_loader(4), plain_loader(3, count=5)]
    loaders = CombinedLoader(loaders if form == "list" else dict(zip("ab", loaders, strict=True)), mode)
    module = SeveralAtOnce(network.eval()).eval()
    watched = Watched(module)
    with pytest.raises(ImageError, match=r"no images found in the batch \(.*override the callback's images_of"):
        bare_trainer(DynamicBNCallback(bank, FakeDetector())).test(module, loaders, verbose=False)
    assert not module.seen
    watched.check()

    class OfNested(DynamicBNCallback):
        def images_of(self, batch):
            return images_of_nested(batch)

    bare_trainer(OfNested(bank, FakeDetector())).test(module, loaders, verbose=False)
    first, second = pixels_of().split(4), pixels_of(5).split(3)  # 4 batches and 2
    missing = {"min_size": (), "max_size": [pixels_of(0)] * 2, "max_size_cycle": second}[mode]
    pixels = [torch.cat(pair) for pair in zip(first, (*second, *missing), strict=False)]
    torch.testing.assert_close(predicted(module), reference_logits(network, bank, torch.cat(pixels), "soft"), **CLOSE)
    watched.check()


def test_a_batch_with_two_tensors_that_could_be_the_images_is_refused(network, callback):
    class SecondView(TuplesAndNothing):
        def test_step(self, batch, batch_idx):
            self.remember(self(batch[1]))

    views = [(x, x.flip(0), y) for x, y in plain_loader(batch_size=None).dataset]
    module = SecondView(network)
    with pytest.raises(ImageError, match=r"several tensors of shape \(4, 3, 16, 16\) .*override the .* images_of"):
        bare_trainer(callback).test(module, DataLoader(views, batch_size=4), verbose=False)
    assert not module.seen
    callback.images_of = lambda batch: batch[1]
    bare_trainer(callback).test(module, DataLoader(views, batch_size=4), verbose=False)
    assert len(predicted(module)) == 13


@pytest.mark.parametrize("make", [dict, UserDict])
def test_a_mapping_that_is_no_dict_has_images_too(network, callback, expected, make):
    def collate(items):
        images, labels = zip(*items, strict=True)
        return make(image=torch.stack(images), label=torch.tensor(labels))

    module = DictBatches(network)
    loader = DataLoader(plain_loader().dataset, batch_size=5, collate_fn=collate)
    bare_trainer(callback).test(module, loader, verbose=False)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from plain_loader().dataset


def test_an_endless_loader_of_unknown_length(network, callback, expected):
    module = TuplesAndNothing(network)
    bare_trainer(callback, limit_test_batches=4).test(module, DataLoader(Endless(), batch_size=5), verbose=False)
    torch.testing.assert_close(predicted(module), torch.cat([expected, expected[:7]]), **CLOSE)


def test_a_users_own_datamodule_that_normalises_on_the_device(network, callback, expected):
    class Own(LightningDataModule):
        def test_dataloader(self):
            return DataLoader(PixelImages(), batch_size=4)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return IMAGENET.apply(batch[0].float() / 255), batch[1]

    module = TuplesAndNothing(network)
    bare_trainer(callback).test(module, datamodule=Own(), verbose=False)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)


@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
@pytest.mark.parametrize("make", [lambda bank: DynamicBNCallback(bank, FakeDetector()), lambda _: BatchStatsCallback()])
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument")
def test_a_step_that_takes_the_loader_itself_is_refused_before_it(network, bank, make, entry):
    class TakesTheLoader(TuplesAndNothing):
        steps = 0

        def test_step(self, dataloader_iter):
            self.steps += 1
            next(dataloader_iter)

        validation_step = predict_step = test_step

    module = TakesTheLoader(network.eval()).eval()
    watched = Watched(module)
    name = {"test": "test_step", "validate": "validation_step", "predict": "predict_step"}[entry]
    callback = make(bank)
    message = rf"{type(callback).__name__} has to see each batch .* TakesTheLoader\.{name} takes them from dataloader_i"
    with pytest.raises(RoutingError, match=message):
        getattr(bare_trainer(callback), entry)(module, plain_loader())
    assert module.steps == 0
    watched.check()
    getattr(bare_trainer(), entry)(module, plain_loader())  # without us it may
    assert module.steps
    if entry != "predict":
        steps = module.steps
        with pytest.raises(ReportError, match=rf"has to see each batch, but TakesTheLoader\.{name} takes them"):
            getattr(bare_trainer(RecordingCallback()), entry)(module, datamodule=make_data())
        assert module.steps == steps
        watched.check()


# Entries and options


def test_predictions_are_returned_or_not_as_the_trainer_is_asked(network, callback, expected):
    module = TuplesAndNothing(network)
    watched = Watched(module)
    trainer = bare_trainer(callback)
    torch.testing.assert_close(torch.cat(trainer.predict(module, plain_loader())), expected, **CLOSE)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)
    assert trainer.predict(module, plain_loader(), return_predictions=False) is None
    torch.testing.assert_close(predicted(module), expected, **CLOSE)
    watched.check()


def test_one_trainer_tests_validates_and_predicts(network, callback, expected):
    module, trainer = TuplesAndNothing(network), bare_trainer(callback)
    watched = Watched(module)
    for entry in ("test", "validate", "predict", "test"):
        getattr(trainer, entry)(module, plain_loader())
        torch.testing.assert_close(predicted(module), expected, **CLOSE)
        watched.check()


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"limit_test_batches": 2}, 8),
        ({"limit_test_batches": 0.5}, 8),
        ({"fast_dev_run": True}, 4),
        ({"fast_dev_run": 3}, 12),
        ({"overfit_batches": 2}, 13),
        ({"inference_mode": False}, 13),
        ({"barebones": True}, 13),
        ({"detect_anomaly": True}, 13),
        ({"use_distributed_sampler": False}, 13),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You have turned on `Trainer.detect_anomaly", "ignore:You are running with")
@pytest.mark.filterwarnings("ignore:.*self.log.*barebones.*")
def test_options_of_the_trainer(network, callback, expected, options, images):
    module = TuplesAndNothing(network)
    watched = Watched(module)
    for _ in range(2):
        bare_trainer(callback, **options).test(module, plain_loader(), verbose=False)
        torch.testing.assert_close(predicted(module), expected[:images], **CLOSE)
        watched.check()


def test_a_quick_run_of_fast_dev_run_is_reported_as_what_it_is(network, callback, tmp_path):
    data, module = make_data(stream="sequential"), ReturnsADict(network)
    report = CorruptionReportCallback(tmp_path)
    bare_trainer(callback, report, fast_dev_run=True).test(module, datamodule=data, verbose=False)
    pixels = pixels_of_places(data)
    assert len(module.seen) == 5 * 4  # a batch of each cell
    expected = reference_logits(network, callback.bank, torch.stack([pixels[place] for place in module.seen]), "soft")
    right = sum(
        int(logits.argmax()) == data.test_images[index][1]
        for logits, (name, index) in zip(expected, module.seen, strict=True)
        if name != "clean"
    )
    torch.testing.assert_close(predicted(module), expected, **CLOSE)
    mean = methods_of(read_results(tmp_path))["dynamic_bn"]["mean"]
    assert (mean["images"], mean["accuracy"]) == (16, pytest.approx(right / 16))


def test_fitting_and_testing_with_overfit_batches(callback):
    """The callback leaves the fit alone, to the last bit; the bank is then of other weights, and a new one fits."""
    networks = []
    for callbacks in ([callback], []):
        module = TuplesAndNothing(make_model().train())
        trainer = bare_trainer(*callbacks, overfit_batches=2, max_epochs=2)
        trainer.fit(module, plain_loader(), plain_loader())
        networks.append(module.net)
        module.seen.clear()
    for name, value in networks[0].state_dict().items():
        assert torch.equal(value, networks[1].state_dict()[name]), name
    module.eval()
    watched = Watched(module)
    trainer = bare_trainer(callback, overfit_batches=2)
    with pytest.raises(BankError, match="weights are others"):
        trainer.test(module, plain_loader(), verbose=False)
    assert not module.seen
    watched.check()
    bank = make_bank(module.net, normalization=IMAGENET.to_dict())
    trainer.callbacks[-1] = DynamicBNCallback(bank, FakeDetector())
    trainer.test(module, plain_loader(), verbose=False)
    torch.testing.assert_close(predicted(module), reference_logits(module.net, bank, pixels_of(), "soft"), **CLOSE)
    watched.check()


def test_a_module_that_builds_its_network_and_its_loader_itself(callback, expected):
    class BuildsItself(TuplesAndNothing):
        def __init__(self):
            super().__init__(None)

        def configure_model(self):
            if self.net is None:
                self.net = make_model()

        def test_dataloader(self):
            return plain_loader()

    module, trainer = BuildsItself(), bare_trainer(callback)
    trainer.test(module, verbose=False)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)
    watched = Watched(module)
    trainer.test(module, verbose=False)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)
    watched.check()


def test_a_checkpoint_of_other_weights_is_refused_and_one_of_the_banks_taken(network, callback, expected, tmp_path):
    for name, factor in (("right", 1.0), ("wrong", 2.0)):
        module = TuplesAndNothing(make_model())
        with torch.no_grad():
            module.net[0].weight.mul_(factor)
        trainer = bare_trainer(max_epochs=0)
        trainer.fit(module, plain_loader())
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
    module = TuplesAndNothing(network).eval()
    with pytest.raises(BankError, match=r"fits no module of TuplesAndNothing: in 'net', .*weights are others"):
        bare_trainer(callback).test(module, plain_loader(), ckpt_path=tmp_path / "wrong.ckpt", verbose=False)
    assert not module.seen
    assert type(module.net[1]) is nn.BatchNorm2d
    bare_trainer(callback).test(module, plain_loader(), ckpt_path=tmp_path / "right.ckpt", verbose=False)
    torch.testing.assert_close(predicted(module), expected, **CLOSE)


# Precisions


@pytest.mark.parametrize("routing", ["soft", "hard"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_in_a_report(bank, precision, routing, tmp_path):
    data, module = make_data(), ReturnsADict(make_model())
    pixels, watched = pixels_of_places(data), Watched(module)
    logits = reference_logits(make_model(), bank, torch.stack(list(pixels.values())), routing)
    expected = dict(zip(pixels, logits, strict=True))
    callback = DynamicBNCallback(bank, FakeDetector(), routing)
    for run in ("1", "2"):
        callbacks = callback, CorruptionReportCallback(tmp_path / run)
        bare_trainer(*callbacks, precision=precision).test(module, datamodule=data, verbose=False)
        for place, found in module.seen.items():
            bound = PRECISIONS[precision]
            torch.testing.assert_close(found.float(), expected[place], rtol=bound, atol=bound)
        right = [int(its.argmax()) == place[1] % 5 for place, its in module.seen.items() if place[0] != "clean"]
        module.seen.clear()
        (block,) = methods_of(read_results(tmp_path / run)).values()
        assert block["mean"]["accuracy"] == pytest.approx(sum(right) / len(right))
        watched.check({"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision))


def test_16_mixed_on_the_cpu_is_what_lightning_makes_of_it(network, callback, expected):
    module = TuplesAndNothing(network)
    watched = Watched(module)
    with pytest.warns(UserWarning, match="fp16 is not supported on CPU. Using `precision='bf16-mixed'` instead"):
        trainer = bare_trainer(callback, precision="16-mixed")
    trainer.test(module, plain_loader(), verbose=False)
    torch.testing.assert_close(predicted(module).float(), expected, rtol=0.03, atol=0.03)
    watched.check()


def test_mixed_16_bits_on_the_cpu_by_a_plugin(network, callback, expected):
    module = TuplesAndNothing(network)
    watched = Watched(module)
    bare_trainer(callback, plugins=[MixedPrecision("16-mixed", "cpu")]).test(module, plain_loader(), verbose=False)
    logits = predicted(module)
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits.float(), expected, rtol=0.005, atol=0.005)
    watched.check()
