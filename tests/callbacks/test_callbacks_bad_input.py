"""Misuse of DynamicBNCallback: early, named, and the model as it was."""

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
    make_pixels,
    normalized_loader,
)
from torch import nn
from torch.utils.data import DataLoader

from dynbn_lightning import DynamicBNCallback
from dynbn_lightning.batchnorm import BNStatsBank
from dynbn_lightning.errors import BankError, DataError, DetectorError, ImageError, RoutingError, UnsupportedModelError


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def bank(model):
    return make_bank(model)


@pytest.fixture
def callback(bank):
    return DynamicBNCallback(bank, FakeDetector(), normalization=IMAGENET)


def detector_of(*rows, width=None):
    class Detector(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), len(rows) if width is None else width)

    Detector.rows = rows
    return Detector()


def refused(error, message, callback, module, loader=None, **options):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    if not options and loader is None:
        loader = normalized_loader()
    with pytest.raises(error, match=message):
        bare_trainer(callback).test(module, loader, verbose=False, **options)
    assert not any("Patched" in type(layer).__name__ for layer in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# Said when the callback is made


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"routing": "softt"}, RoutingError, "routing='softt': did you mean 'soft'"),
        ({"mixing": "mean"}, RoutingError, "mixing='mean'"),
        ({"normalization": "imagnet"}, DataError, "unknown normalization 'imagnet': did you mean 'imagenet'"),
        ({"detector": None}, DetectorError, "need detector="),
        ({"detector": "nowhere.ckpt"}, DetectorError, "no detector checkpoint at nowhere.ckpt"),
        ({"detector": nn.Linear(2, 2)}, DetectorError, "Linear does not say which rows it knows"),
        ({"detector": detector_of("clean", "contrast")}, DetectorError, "the detector doesn't know: brightness"),
        ({"detector": detector_of(*ROWS, "fog", "snow")}, DetectorError, "the bank lacks: fog, snow"),
        (
            {"detector": detector_of("clean", "fog", "contrast")},
            DetectorError,
            "the bank lacks: fog; the detector doesn't know: brightness",
        ),
        ({"detector": detector_of(*ROWS, "clean")}, DetectorError, "must differ"),
        ({"bank": "nowhere.safetensors"}, BankError, "there is no bank at nowhere.safetensors"),
    ],
    ids=str,
)
def test_wrong_arguments(bank, options, error, message):
    with pytest.raises(error, match=message):
        DynamicBNCallback(**{"bank": bank, "detector": FakeDetector(), **options})


# Said when evaluation starts


def test_a_bank_of_other_weights(callback, model):
    model[0].weight.data.mul_(1.1)
    refused(
        BankError, "fits no module of UsersModule: in 'network', .*weights are others", callback, UsersModule(model)
    )


def test_a_bank_of_another_width(callback, model):
    model[3], model[4] = nn.Conv2d(6, 7, 3), nn.BatchNorm2d(7)
    message = r"fits no module of UsersModule: in 'network', .*4 \(8 channels in the bank, 7 in the model\)"
    refused(BankError, message, callback, UsersModule(model))


def test_a_bank_of_another_architecture(callback, model):
    other = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.BatchNorm1d(5))
    refused(BankError, "fits no module of UsersModule: layers of the bank", callback, UsersModule(other))


def test_a_model_without_batchnorm(callback):
    module = UsersModule(nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.Identity()))
    refused(UnsupportedModelError, "UsersModule has no BatchNorm layers", callback, module)


def test_a_model_with_an_unsupported_layer_besides(callback, model):
    model.append(nn.BatchNorm1d(5, track_running_stats=False))
    refused(UnsupportedModelError, r"9 \(BatchNorm1d: track_running_stats=False", callback, UsersModule(model))


def test_an_unknown_normalization(bank, model):
    callback = DynamicBNCallback(bank, FakeDetector())
    refused(DataError, "nothing says how the images are normalised", callback, UsersModule(model))


@pytest.mark.parametrize(
    ("given", "in_bank", "of_model", "in_data", "message"),
    [
        ("imagenet", "cifar10", None, None, "the callback says .* the bank by"),
        (None, "imagenet", "cifar10", None, "the bank says .* the model by"),
        (None, "imagenet", None, "cifar10", r"the datamodule says .*0\.4914.* the bank by mean \(0\.485"),
        ("imagenet", None, None, None, "the callback says .* the datamodule by"),
    ],
)
def test_normalizations_that_disagree(model, given, in_bank, of_model, in_data, message):
    from dynbn_lightning.models.normalization import Normalization

    bank = make_bank(model, **({"normalization": Normalization.of(in_bank).to_dict()} if in_bank else {}))
    if of_model:
        model.input_normalization = Normalization.of(of_model)
    callback = DynamicBNCallback(bank, FakeDetector(), normalization=given)
    if in_data or "datamodule" in message:
        refused(DataError, message, callback, UsersModule(model), datamodule=make_data(normalization=in_data))
    else:
        refused(DataError, message, callback, UsersModule(model))


@pytest.mark.parametrize("recorded", [{"mean": [0.5]}, 7, "imagnet", {"mean": [0.5], "std": [0.0]}])
def test_an_unreadable_normalization_in_the_bank(model, recorded):
    callback = DynamicBNCallback(make_bank(model, normalization=recorded), FakeDetector())
    refused(BankError, "provenance has no readable normalization", callback, UsersModule(model))


def test_oracle_without_a_corruption_datamodule(bank, model):
    callback = DynamicBNCallback(bank, routing="oracle", normalization=IMAGENET)
    refused(RoutingError, "oracle routing needs to know each image's corruption", callback, UsersModule(model))


def test_oracle_for_a_corruption_without_a_row(bank, model):
    callback = DynamicBNCallback(bank, routing="oracle")
    data = make_data(corruptions=("brightness", "pixelate", "jpeg_compression"), severities=(1,), batch_size=20)
    refused(RoutingError, "no row for jpeg_compression/1, pixelate/1", callback, UsersModule(model), datamodule=data)


# Said at the first batch


def labelled(images):
    return DataLoader([(image, 0) for image in images], batch_size=4)


@pytest.mark.parametrize(
    "images",
    [
        make_pixels(4).float(),  # 0..255
        IMAGENET.apply(IMAGENET.apply(make_pixels(4).float() / 255)),
        torch.full((4, 3, 16, 16), -3.0),
        torch.zeros(4, 3, 16, 16).index_fill(0, torch.tensor([2]), float("nan")),
        torch.zeros(4, 3, 16, 16).index_fill(0, torch.tensor([0]), float("inf")),
    ],
    ids=["0 to 255", "normalised twice", "below 0", "NaN", "infinite"],
)
def test_images_that_are_no_pixels_after_undoing(callback, model, images):
    refused(
        ImageError,
        r"not within \[0, 1\].*normalised in another way, or hold NaN",
        callback,
        UsersModule(model),
        labelled(images),
    )


def test_images_are_checked_in_every_run(callback, model):
    bare_trainer(callback).test(UsersModule(model), normalized_loader(), verbose=False)
    refused(ImageError, "not within", callback, UsersModule(model), labelled(make_pixels(4).float()))


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader([(torch.zeros(3, 16), 0)] * 4, batch_size=4), r"Tensor of shape \(4, 3, 16\)"),
        (DataLoader(make_pixels(4), batch_size=4), "torch.uint8"),
        (DataLoader([{"pixels": torch.zeros(3, 16, 16)}] * 4, batch_size=4), "NoneType"),
        (DataLoader([(torch.zeros(0, 3, 16, 16), torch.zeros(0))], batch_size=None), r"\(0, 3, 16, 16\)"),
        (DataLoader([("a", "b")], batch_size=None), "str"),
    ],
    ids=["rank", "uint8", "dict", "empty", "text"],
)
@pytest.mark.filterwarnings("ignore:Total length of .* is zero")
def test_batches_without_images(callback, model, loader, found):
    refused(ImageError, rf"no images found in the batch \(.*{found}.*images_of", callback, UsersModule(model), loader)


def test_images_of_another_number_of_channels(callback, model):
    refused(
        DataError, "3 channels, the images have 1", callback, UsersModule(model), labelled(torch.zeros(4, 1, 16, 16))
    )


@pytest.mark.parametrize("width", [2, 4])
def test_a_detector_with_more_or_fewer_logits_than_rows(bank, model, width):
    callback = DynamicBNCallback(bank, detector_of(*ROWS, width=width), normalization=IMAGENET)
    refused(DetectorError, rf"knows 3 rows but gave logits of shape \(4, {width}\)", callback, UsersModule(model))


def test_a_detector_that_gives_nan(bank, model):
    class Broken(FakeDetector):
        def forward(self, images):
            return super().forward(images) * float("nan")

    for routing in ("soft", "hard"):
        callback = DynamicBNCallback(bank, Broken(), routing, normalization=IMAGENET)
        refused(DetectorError, "the detector gave NaN", callback, UsersModule(model))


def test_a_bank_from_a_damaged_file(bank, tmp_path):
    bank.save(tmp_path / "bank.safetensors")
    content = bytearray((tmp_path / "bank.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "bank.safetensors").write_bytes(content)
    with pytest.raises(BankError, match="damaged"):
        DynamicBNCallback(tmp_path / "bank.safetensors", FakeDetector())


def test_a_bank_without_rows_for_the_model_is_no_silent_success(model):
    bank = make_bank(model)
    shuffled = BNStatsBank(rows=bank.rows, layers={"1": 8, "4": 6}, mean=bank.mean, var=bank.var)
    callback = DynamicBNCallback(shuffled, FakeDetector(), normalization=IMAGENET)
    refused(BankError, "layers of another width", callback, UsersModule(model))


def test_two_modules_of_equal_weights_are_named(callback, model):
    module = UsersModule(model)
    module.ema = copy.deepcopy(model)
    refused(BankError, r"several modules.*'network', 'ema'.*find_model", callback, module)


@pytest.mark.parametrize("content", ["classifier", "pickle", "text"])
def test_a_file_that_is_no_detector(bank, model, tmp_path, content):
    path = tmp_path / "detector.ckpt"
    if content == "classifier":
        torch.save({"state_dict": model.state_dict()}, path)
    elif content == "pickle":
        torch.save(model, path)
    else:
        path.write_text("no checkpoint")
    with pytest.raises(DetectorError, match=r"detector\.ckpt is no checkpoint of a DetectorModule"):
        DynamicBNCallback(bank, path)


def test_a_datamodule_left_over_from_an_earlier_run_says_nothing_of_other_images(model):
    module, trainer = UsersModule(model), bare_trainer()
    trainer.test(module, datamodule=make_data(normalization="half"), verbose=False)
    bank = make_bank(model)
    trainer.callbacks.append(DynamicBNCallback(bank, FakeDetector(), normalization="imagenet"))
    trainer.test(module, dataloaders=normalized_loader(), verbose=False)
    trainer.callbacks[-1] = DynamicBNCallback(bank, routing="oracle")
    with pytest.raises(RoutingError, match="only a CorruptionDataModule tells"):
        trainer.test(module, dataloaders=normalized_loader(), verbose=False)
