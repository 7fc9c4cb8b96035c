import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynbn_lightning.corruptions.cells import Cell
from dynbn_lightning.modules import ClassifierModule

CLASSES = 4


def labelled(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = torch.randn(count, 3, 4, 4, generator=generator)
    images[:, 0] += labels.view(-1, 1, 1)
    return TensorDataset(images, labels)


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, CLASSES),
    )  # fmt: skip


def trainer(**options):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**(settings | {"enable_model_summary": False} | options))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module = ClassifierModule(small_model(), label_smoothing=0.05)
    run = trainer(max_epochs=8)
    run.fit(
        module, DataLoader(labelled(256, 0), batch_size=32, shuffle=True), DataLoader(labelled(64, 1), batch_size=30)
    )
    return module, run


class BatchInfo:
    def __init__(self, cells):
        self.cells = cells


class CellsBesideTheBatch(LightningDataModule):
    """Puts the cells of each batch beside it, as the package's own datamodule does."""

    def __init__(self, loaders):
        super().__init__()
        self.loaders = loaders
        self.batch_info = None

    def test_dataloader(self):
        return self.loaders

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, labels, *cells = batch
        self.batch_info = BatchInfo(*cells) if cells else None
        return images, labels


def hits_by_hand(module, data):
    with torch.no_grad():
        return module.eval()(data.tensors[0]).argmax(1) == data.tensors[1]


def test_learns_and_logs(trained):
    module, run = trained
    metrics = run.callback_metrics
    assert metrics["val/acc"] > 0.6
    assert metrics["val/acc"] == pytest.approx(float(hits_by_hand(module, labelled(64, 1)).float().mean()))
    with torch.no_grad():
        images, labels = labelled(64, 1).tensors
        assert metrics["val/loss"] == pytest.approx(float(F.cross_entropy(module(images), labels)), rel=1e-4)
    assert run.optimizers[0].param_groups[0]["nesterov"]
    assert run.optimizers[0].param_groups[0]["lr"] < 0.01


@pytest.mark.parametrize("loaders", [1, 3])
def test_without_a_datamodule_only_the_accuracy_over_all_loaders(trained, loaders):
    module, _ = trained
    sets = [labelled(20 + 7 * index, seed=index) for index in range(loaders)]
    logged = trainer().test(module, [DataLoader(data, batch_size=16) for data in sets], verbose=False)
    hits = torch.cat([hits_by_hand(module, data) for data in sets])
    merged = {name: value for results in logged for name, value in results.items()}
    assert merged == {"test/acc": pytest.approx(float(hits.float().mean()))}


@pytest.mark.parametrize("mixed", [True, False])
def test_accuracy_of_each_cell(trained, mixed):
    module, _ = trained
    names = ["clean", "fog/3", "jpeg_compression/1"]
    data = labelled(90, seed=5)
    which = torch.arange(90) % 3 if mixed else torch.arange(90) // 30
    codes = torch.tensor([Cell.parse(name).code for name in names])[which]
    whole = TensorDataset(*data.tensors, codes)
    parts = [whole] if mixed else [TensorDataset(*whole[30 * part : 30 * part + 30]) for part in range(3)]
    datamodule = CellsBesideTheBatch([DataLoader(part, batch_size=16) for part in parts])
    run = trainer()
    logged = run.test(module, datamodule=datamodule, verbose=False)
    hits = hits_by_hand(module, data).float()
    expected = {name: float(hits[which == row].mean()) for row, name in enumerate(names)}
    by_cell = {name.removesuffix("/acc"): value for results in logged for name, value in results.items()}
    assert by_cell.pop("test") == pytest.approx(float(hits.mean()))
    assert by_cell.pop("mean") == pytest.approx((expected["fog/3"] + expected["jpeg_compression/1"]) / 2)
    assert by_cell == pytest.approx(expected)
    scores = module.cell_metrics.compute()
    assert {name: its.accuracy for name, its in scores.items()} == pytest.approx(expected)
    assert {its.images for its in scores.values()} == {30}
    with torch.no_grad():
        nll = F.cross_entropy(module.eval()(data.tensors[0]), data.tensors[1], reduction="none")
    assert {name: its.nll for name, its in scores.items()} == pytest.approx(
        {name: float(nll[which == row].mean()) for row, name in enumerate(names)}, abs=1e-5
    )


class Listener(Callback):
    def __init__(self):
        self.logits = []

    def on_test_batch_end(self, trainer, pl_module, outputs, *args):
        assert list(outputs) == ["logits"]
        assert not outputs["logits"].requires_grad
        self.logits.append(outputs["logits"])


@pytest.mark.parametrize("inference_mode", [True, False])
def test_callbacks_receive_the_logits(trained, inference_mode):
    module, _ = trained
    data, listener = labelled(20, seed=2), Listener()
    run = trainer(callbacks=[listener], inference_mode=inference_mode)
    with torch.enable_grad():
        run.test(module, DataLoader(data, batch_size=8), verbose=False)
    with torch.no_grad():
        expected = module.eval()(data.tensors[0])
    torch.testing.assert_close(torch.cat(listener.logits), expected, atol=1e-5, rtol=1e-5)


def test_what_is_logged_is_exact_where_the_default_dtype_has_16_bits():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, images):
            return self.logits.expand(len(images), 2)

    labels = torch.tensor([1] * 501 + [0] * 250)
    cells = torch.full((751,), Cell("fog", 1).code)
    data = DataLoader(TensorDataset(torch.zeros(751, 1), labels, cells), batch_size=100)
    run = trainer(precision="bf16-true")
    (logged,) = run.test(ClassifierModule(Always()), datamodule=CellsBesideTheBatch(data), verbose=False)
    assert logged == pytest.approx(dict.fromkeys(("test/acc", "fog/1/acc", "mean/acc"), 501 / 751), abs=1e-7)


def test_a_second_test_starts_anew_and_may_know_no_cells(trained):
    module, _ = trained
    data = labelled(16, seed=7)
    (logged,) = trainer().test(module, datamodule=CellsBesideTheBatch([DataLoader(data, batch_size=8)]), verbose=False)
    assert logged == {"test/acc": pytest.approx(float(hits_by_hand(module, data).float().mean()))}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_works_in_other_precisions(precision):
    module = ClassifierModule(small_model())
    cells = torch.full((40,), Cell("fog", 1).code)
    data = DataLoader(TensorDataset(*labelled(40, 0).tensors, cells), batch_size=16)
    run = trainer(max_epochs=1, precision=precision)
    run.fit(module, DataLoader(labelled(40, 0), batch_size=16), DataLoader(labelled(40, 0), batch_size=16))
    (logged,) = trainer(precision=precision).test(module, datamodule=CellsBesideTheBatch(data), verbose=False)
    assert logged["fog/1/acc"] == logged["test/acc"] == logged["mean/acc"]


def test_predicts_logits_of_images_and_of_batches(trained):
    module, _ = trained
    data = labelled(20, seed=3)
    expected = module.eval()(data.tensors[0])
    for source in (data, data.tensors[0]):
        logits = torch.cat(trainer().predict(module, DataLoader(source, batch_size=8)))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_checkpoint_round_trip_keeps_the_models_names(trained, tmp_path):
    module, run = trained
    run.save_checkpoint(tmp_path / "classifier.ckpt")
    again = ClassifierModule.load_from_checkpoint(tmp_path / "classifier.ckpt", model=small_model(), weights_only=True)
    assert again.label_smoothing == 0.05
    assert set(again.state_dict()) == {f"model.{name}" for name in module.model.state_dict()}
    images = labelled(8, 0).tensors[0]
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_no_end_no_schedule():
    module = ClassifierModule(small_model(), learning_rate=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(max_epochs=-1, max_time={"seconds": 1})
        run.fit(module, DataLoader(labelled(64, 0), batch_size=32))
    assert run.optimizers[0].param_groups[0]["lr"] == 0.01
