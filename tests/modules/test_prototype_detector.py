"""`DetectorModule` with a network that is gathered and not trained."""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from test_detector_module import ROWS, SIZE, images_of_rows, loader, trainer
from torch import nn

from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.callbacks import DynamicBNCallback
from dynbn_lightning.detection import NearestPrototype, SpectrumPerceptron
from dynbn_lightning.errors import DetectorError
from dynbn_lightning.modules import DetectorModule


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    module = DetectorModule(ROWS, image_size=SIZE, network="prototype")
    checkpoint = ModelCheckpoint(folder, filename="best", monitor="val/acc", mode="max")
    run = trainer(max_epochs=1, enable_checkpointing=True, callbacks=[checkpoint])
    run.fit(module, loader(shuffle=True), loader(128, seed=1))
    return module, run, checkpoint


def test_one_epoch_gathers_every_image_once_and_optimises_nothing(gathered):
    module, run, _ = gathered
    data = images_of_rows(192, 0)
    expected = NearestPrototype(len(ROWS), SIZE)
    expected.gather(*data.tensors)
    assert torch.equal(module.network.counts, torch.bincount(data.tensors[1]))
    torch.testing.assert_close(module.network.means, expected.means, atol=1e-4, rtol=1e-4)
    assert module.configure_optimizers() is None
    assert not module.automatic_optimization
    assert run.global_step == 6
    assert run.callback_metrics["val/acc"] > 0.95
    assert run.callback_metrics["val/loss"] < 0.3


def test_tests_and_predicts(gathered):
    module, _, _ = gathered
    data = loader(100, seed=2)
    (logged,) = trainer().test(module, data, verbose=False)
    probabilities = torch.cat(trainer().predict(module, data))
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for row, chosen in zip(data.dataset.tensors[1], probabilities.argmax(1), strict=True):
        expected[row, chosen] += 1
    assert torch.equal(module.confusion, expected)
    assert logged["test/acc"] == pytest.approx(float(expected.trace()) / 100)


def test_checkpoint_is_written_and_comes_back(gathered):
    module, _, checkpoint = gathered
    again = DetectorModule.load_from_checkpoint(checkpoint.best_model_path, weights_only=True, map_location="cpu")
    assert again.hparams["network"] == "prototype"
    assert isinstance(again.network, NearestPrototype)
    images = images_of_rows(8, seed=4).tensors[0]
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_another_fit_adds_to_what_it_has(gathered):
    module = copy.deepcopy(gathered[0])
    trainer(max_epochs=2).fit(module, loader(64, seed=7))
    assert module.network.counts.sum() == 192 + 2 * 64


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
        self.network(torch.zeros(1, 3, SIZE, SIZE))
        self.logits = []

    def test_step(self, batch, batch_idx):
        self.logits.append(self.network(batch[0]))


def test_the_callback_routes_by_it(gathered):
    detector, _, checkpoint = gathered
    torch.manual_seed(0)
    module = Classifier().eval()
    images = {row: torch.rand(32, 3, SIZE, SIZE) * (number + 1) / 3 for number, row in enumerate(ROWS)}
    bank = BNStatsBank.collect(module.network, {row: [batch] for row, batch in images.items()})
    data = loader(32, seed=5)
    callback = DynamicBNCallback(bank, checkpoint.best_model_path, routing="hard", normalization="none")
    trainer(callbacks=[callback]).test(module, data, verbose=False)
    chosen = detector.eval()(data.dataset.tensors[0]).argmax(1)
    layer = module.network[1]
    for image, row, logits in zip(data.dataset.tensors[0], chosen, module.logits[0], strict=True):
        with torch.no_grad():
            expected = copy.deepcopy(module.network)
            expected[1].running_mean.copy_(bank.mean[bank.rows.index(ROWS[row])])
            expected[1].running_var.copy_(bank.var[bank.rows.index(ROWS[row])])
            torch.testing.assert_close(logits, expected(image[None])[0], atol=1e-4, rtol=1e-4)
    assert type(layer) is nn.BatchNorm2d
    assert len(chosen.unique()) == 3


def test_rows_without_images_are_named():
    module = DetectorModule([*ROWS, "fog/2"], image_size=SIZE, network="prototype")
    with pytest.raises(DetectorError, match=r"1 of 4 rows: fog/2\. Fit the detector"):
        trainer(max_epochs=1).fit(module, loader(64), loader(64))


def test_several_devices_are_refused_before_work(monkeypatch):
    module = DetectorModule(ROWS, image_size=SIZE, network="prototype")
    module.trainer = trainer(max_epochs=1)
    module.setup("fit")
    monkeypatch.setattr(Trainer, "world_size", property(lambda self: 2))
    with pytest.raises(DetectorError, match=r"Trainer\(devices=1\)"):
        module.setup("fit")
    module.setup("test")


def test_the_default_is_a_perceptron_as_in_checkpoints_of_before(tmp_path):
    module = DetectorModule(ROWS, image_size=SIZE, hidden=8)
    assert isinstance(module.network, SpectrumPerceptron)
    assert module.automatic_optimization
    run = trainer(max_epochs=1)
    run.fit(module, loader(32))
    path = tmp_path / "old.ckpt"
    run.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"].pop("network") == "perceptron"
    torch.save(saved, path)
    again = DetectorModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    images = images_of_rows(8, seed=4).tensors[0]
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_unknown_networks_are_refused():
    with pytest.raises(DetectorError, match="network='prototypes': did you mean 'prototype'"):
        DetectorModule(ROWS, network="prototypes")
