import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from dynbn_lightning.detection import SpectrumPerceptron
from dynbn_lightning.errors import DetectorError
from dynbn_lightning.modules import DetectorModule, check_rows

ROWS = ["clean", "gaussian_noise", "contrast/5"]
SIZE = 16


def images_of_rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, len(ROWS), (count,), generator=generator)
    y = torch.linspace(0, 3.14, SIZE).view(1, 1, SIZE, 1)
    images = 0.5 + 0.3 * torch.sin(y * (1 + 2 * torch.rand(count, 3, 1, 1, generator=generator))).expand(
        -1, -1, -1, SIZE
    )
    images = images + 0.2 * torch.randn(images.shape, generator=generator) * (rows == 1).view(-1, 1, 1, 1)
    images = torch.where((rows == 2).view(-1, 1, 1, 1), 0.5 + 0.1 * (images - 0.5), images)
    return TensorDataset((images.clamp(0, 1) * 255).round() / 255, rows)


def loader(count=192, seed=0, **options):
    return DataLoader(images_of_rows(count, seed), batch_size=32, **options)


def trainer(**options):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**(settings | {"enable_model_summary": False} | options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    module = DetectorModule(ROWS, image_size=SIZE, hidden=32)
    run = trainer(max_epochs=6, default_root_dir=tmp_path_factory.mktemp("fit"))
    run.fit(module, loader(shuffle=True), loader(128, seed=1))
    return module, run


def test_learns_and_logs(trained):
    module, run = trained
    assert isinstance(module.network, SpectrumPerceptron)
    assert module.rows == tuple(ROWS)
    assert run.callback_metrics["val/acc"] > 0.95
    assert run.callback_metrics["val/loss"] < 0.3
    assert "train/loss" in run.callback_metrics
    assert run.optimizers[0].param_groups[0]["lr"] < 1e-4  # the schedule went by steps, to its end


def test_accuracy_and_confusion_equal_a_plain_count(trained):
    module, _ = trained
    data = loader(100, seed=2)
    (logged,) = trainer().test(module, data, verbose=False)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    losses = []
    for image, row in data.dataset:
        with torch.no_grad():
            logits = module.eval()(image[None])
        expected[row, logits.argmax()] += 1
        losses.append(F.cross_entropy(logits, row[None]))
    assert torch.equal(module.confusion, expected)
    assert logged["test/acc"] == pytest.approx(float(expected.trace()) / 100)
    assert logged["test/loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)


def test_predicts_probabilities_with_or_without_rows(trained):
    module, _ = trained
    data = images_of_rows(40, seed=3)
    with_rows = torch.cat(trainer().predict(module, DataLoader(data, batch_size=16)))
    without = torch.cat(trainer().predict(module, DataLoader(data.tensors[0], batch_size=16)))
    assert torch.equal(with_rows, without)
    torch.testing.assert_close(with_rows.sum(1), torch.ones(40))
    assert (with_rows.argmax(1) == data.tensors[1]).float().mean() > 0.9


def test_checkpoint_comes_back_bit_for_bit(trained, tmp_path):
    module, run = trained
    path = tmp_path / "detector.ckpt"
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)  # nothing in it that needs more than tensors and plain values
    again = DetectorModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert again.rows == module.rows
    assert dict(again.hparams) == dict(module.hparams)
    assert type(again.hparams["rows"]) is list
    state = module.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    images = images_of_rows(8, seed=4).tensors[0]
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_trains_under_mixed_precision():
    module = DetectorModule(ROWS, image_size=SIZE, hidden=8)
    run = trainer(max_epochs=1, precision="bf16-mixed")
    run.fit(module, loader(64), loader(64))
    assert torch.isfinite(run.callback_metrics["val/loss"])


class OtherRows(LightningDataModule):
    rows = ("clean", "fog", "snow")

    def train_dataloader(self):
        return loader()


def test_refuses_a_datamodule_of_other_rows():
    with pytest.raises(DetectorError, match="fog, snow"):
        trainer(max_epochs=1).fit(DetectorModule(ROWS, image_size=SIZE), datamodule=OtherRows())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["clean"], "at least two"),
        ("clean", "sequence"),
        (["clean", "fog", "fog"], "more than once: fog"),
        (["clean", "frog"], "did you mean 'fog'"),
        (["clean", "fog/6"], "fog/6"),
        (["clean", "clean/0"], "clean/0"),
        (["clean", 3], "3"),
    ],
)
def test_refuses_rows(rows, message):
    with pytest.raises(DetectorError, match=message):
        check_rows(rows)
    with pytest.raises(DetectorError, match=message):
        DetectorModule(rows)
