"""Images that can't be read: named by their file, or left out, warned about, counted and told of in results."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datamodule_helpers import Recorder, run_test, trainer
from PIL import Image
from released_sets import write_clean, write_folders
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder

from dynbn_lightning import (
    BNStatsBank,
    ClassifierModule,
    CorruptionDataModule,
    CorruptionReportCallback,
    DetectorModule,
    evaluate,
)
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.datamodules import ImageNetC
from dynbn_lightning.datamodules.images import PixelDataset
from dynbn_lightning.datamodules.skipping import check_batch
from dynbn_lightning.datamodules.streams import make_loader, pairs_of
from dynbn_lightning.errors import CorruptionError, DataError, ReportError, UnreadableImageError
from dynbn_lightning.models import cifar_resnet8
from dynbn_lightning.reporting import ImageRecords, read_results, write_report

OPTIONS: dict[str, Any] = {"corruptions": ("contrast", "brightness"), "severities": (2,), "batch_size": 6}


def write_set(folder: Path, count: int = 8) -> Path:
    """`train/` and `test/` with two classes of `count` images; test image 3, `cat/3.png`, and the last are broken."""
    names = [f"{name}/{number}" for name in ("cat", "dog") for number in range(count)]
    for split in ("train", "test"):
        write_clean(folder / split, names, 32, ".png")
    truncate(folder / "test" / "cat" / "3.png")
    (folder / "test" / "dog" / f"{count - 1}.png").write_bytes(b"")
    truncate(folder / "train" / "dog" / "0.png")
    return folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def model(classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(num_classes=classes, width=4).eval()


class Raising(Dataset[Any]):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        SyntaxError("broken PNG"),
        struct.error("unpack"),
        OSError("truncated"),
        KeyError("x"),
        Image.DecompressionBombError(),
    ],
)
def test_whatever_a_reader_raises_is_an_error_of_the_image(error: Exception) -> None:
    with pytest.raises(UnreadableImageError, match=rf"item 2 of Raising cannot be read \({type(error).__name__}.*skip"):
        PixelDataset(Raising(error))[2]


@pytest.mark.parametrize(
    "error",
    [
        *(MemoryError(), KeyboardInterrupt(), CorruptionError("a mistake")),
        *(OSError(number, os.strerror(number)) for number in (errno.EMFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)),
        *(OSError(number, os.strerror(number)) for number in (errno.EACCES, errno.ENOMEM)),
    ],
    ids=repr,
)
def test_what_is_no_fault_of_the_file_is_left_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        PixelDataset(Raising(error), on_error="skip")[0]
    assert raised.value is error


def test_the_file_is_named_through_subsets(tmp_path: Path) -> None:
    test = ImageFolder(str(write_set(tmp_path) / "test"))
    train = ImageFolder(str(tmp_path / "train"))
    both = ConcatDataset([train, Subset(test, [5, 3])])
    with pytest.raises(UnreadableImageError, match=rf"item 17 of ConcatDataset .*{tmp_path}/test/cat/3\.png"):
        PixelDataset(both)[17]
    with pytest.raises(UnreadableImageError, match=rf"item 8 of ConcatDataset .*{tmp_path}/train/dog/0\.png"):
        PixelDataset(both)[8]
    assert PixelDataset(both)[16][1] == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_file_is_named_in_tests(tmp_path: Path, num_workers: int) -> None:
    data = CorruptionDataModule(write_set(tmp_path / "set"), num_workers=num_workers, **OPTIONS)
    with pytest.raises(
        UnreadableImageError, match=r"^item \d+ of ImageFolder cannot be read from .*test/(cat/3|dog/7)\.png"
    ) as raised:
        run_test(data)
    assert "Traceback" not in str(raised.value), "which torch puts into errors of loader processes"
    assert str(raised.value).endswith('CorruptionDataModule(on_error="skip")')
    assert data.skipped == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_file_is_named_in_fits_and_for_banks(tmp_path: Path, num_workers: int) -> None:
    data = CorruptionDataModule(write_set(tmp_path / "set"), num_workers=num_workers, **OPTIONS)
    message = r"^item 8 of ImageFolder cannot be read from .*train/dog/0\.png"
    data.__dict__["_split"] = ([8, 9], [0])
    with pytest.raises(UnreadableImageError, match=message):
        list(data.row_loaders()["clean"])
    with pytest.raises(UnreadableImageError, match=message):
        list(data.drawn_batches(20, "fit"))
    with pytest.raises(UnreadableImageError, match=message):
        trainer(num_sanity_val_steps=0).fit(Recorder(), datamodule=data)


def test_an_image_that_can_be_read_again_is_an_error_all_the_same(tmp_path: Path) -> None:
    write_clean(tmp_path, [f"{name}/{number}" for name in ("cat", "dog") for number in range(4)], 32, ".png")
    whole = (tmp_path / "cat" / "0.png").read_bytes()
    truncate(tmp_path / "cat" / "0.png")
    images = PixelDataset(ImageFolder(str(tmp_path)))
    (batch,) = make_loader(images, [pairs_of([0, 1])], split="test", form="predict", batch_size=2, num_workers=0)
    (tmp_path / "cat" / "0.png").write_bytes(whole)
    with pytest.raises(
        UnreadableImageError, match=r"cat/0\.png of the test images could not be read .*disk or network"
    ):
        check_batch(batch, images)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_of_another_size_is_named(tmp_path: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"corruptions": ("fog",), "severities": (4,), "num_workers": num_workers}
    options["stream"] = "sequential"
    write_folders(tmp_path / "ImageNet-C")
    folder = tmp_path / "ImageNet-C" / "fog" / "4"
    for name in ("n01", "n02", "n03"):  # so that the second of any two differs from the first
        Image.new("RGB", (40, 32)).save(folder / name / "ILSVRC_20.png")
    data = CorruptionDataModule(None, test=ImageNetC(tmp_path), **options)
    shape = r"has shape \(3, 32, \d+\), image \d has \(3, 32, \d+\)"
    message = rf"^image \d of the test images, {folder}/n0\d/\w+\.png, in fog/4 {shape}: .*replace it$"
    with pytest.raises(DataError, match=message):
        run_test(data)
    folder.rename(tmp_path / "photographs")
    plain = CorruptionDataModule(None, test=tmp_path / "photographs", **options)
    with pytest.raises(DataError, match=rf"^image \d of the test images, .*\.png, {shape}: pass image_size="):
        run_test(plain)


@pytest.mark.parametrize(("stream", "num_workers"), [("mixed", 0), ("mixed", 2), ("continual", 2), ("correlated", 0)])
def test_skipped_images_are_left_out_and_counted(tmp_path: Path, stream: Any, num_workers: int) -> None:
    folder = write_set(tmp_path / "set")
    data = CorruptionDataModule(folder, stream=stream, num_workers=num_workers, on_error="skip", **OPTIONS)
    with pytest.warns(UserWarning, match="can't be read and is left out") as warned:
        images = run_test(data).images("test")
    cells = ("clean", "contrast/2", "brightness/2")
    assert images.keys() == {(cell, index) for cell in cells for index in range(16) if index not in (3, 15)}
    files = {3: folder / "test" / "cat" / "3.png", 15: folder / "test" / "dog" / "7.png"}
    assert set(data.skipped) == {(cell, index, str(file)) for cell in cells for index, file in files.items()}
    assert len(data.skipped) == 6
    said = [str(one.message) for one in warned if "left out" in str(one.message)]
    assert sorted(said) == sorted(one for file in files.values() for one in said if str(file) in one)
    assert len(said) == 2, "once for each file"
    for file in files.values():
        shutil.copy(folder / "test" / "cat" / "0.png", file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mended = CorruptionDataModule(folder, stream=stream, on_error="skip", **OPTIONS)
        whole = run_test(mended).images("test")
    assert len(whole) == 3 * 16
    assert mended.skipped == []
    assert all(torch.equal(image, whole[key]) for key, image in images.items())


def test_a_batch_of_broken_images_alone_is_an_error(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    data = CorruptionDataModule(folder, on_error="skip", **{**OPTIONS, "batch_size": 1})
    with pytest.raises(DataError, match=r"none of the 1 images of a batch of the test images .*png.*batch size"):
        run_test(data)


def test_fitting_and_collecting_skip_too(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    truncate(folder / "train" / "cat" / "0.png")
    data = CorruptionDataModule(folder, on_error="skip", validation_fraction=0.25, **OPTIONS)
    module = Recorder()
    with pytest.warns(UserWarning, match="train/"):
        trainer(num_sanity_val_steps=0).fit(module, datamodule=data)
    fitted = {index for _, indices, _, stage in module.batches for index in indices}
    assert fitted == set(range(16)) - {0, 8}
    assert {(cell, number) for cell, number, _ in data.skipped} == {(None, 0), (None, 8)}
    loaders = data.row_loaders(images_per_row=12, batch_size=6)
    fit = [index for index in data._split[0] if index not in (0, 8)]
    bank = BNStatsBank.collect(model(), loaders, progress=False)
    assert bank.provenance["image_counts"] == dict.fromkeys(data.rows[1:], len(fit))
    drawn = list(data.drawn_batches(40, "fit", batch_size=20))
    assert all(len(batch.images) == len(batch.rows) == len(batch.indices) < 20 for batch in drawn)
    assert not {0, 8} & {index for batch in drawn for index in batch.indices}
    detector = DetectorModule(data.rows, image_size=32, network="perceptron")
    trainer(num_sanity_val_steps=0).fit(detector, datamodule=data)


def test_results_count_them(tmp_path: Path) -> None:
    folder, out = write_set(tmp_path / "set"), tmp_path / "out"
    data = CorruptionDataModule(folder, on_error="skip", **OPTIONS)
    results = evaluate(model(), data, methods=["source", "ema"], streams=["sequential"], output=out, progress=False)
    for block in results["runs"][0]["methods"].values():
        assert block["skipped"] == 6
        assert block["clean"]["images"] == block["cells"]["contrast/2"]["images"] == 14
    assert results["protocol"]["on_error"] == "skip"
    assert results["protocol"]["test_images"] == 16
    write_report([out], out)
    page = (out / "report.html").read_text()
    assert "skipped" in page
    callback = trainer(callbacks=[CorruptionReportCallback(tmp_path / "callback")])
    callback.test(ClassifierModule(model()), datamodule=data, verbose=False)
    assert read_results(tmp_path / "callback")["runs"][0]["methods"]["source"]["skipped"] == 6
    limited = evaluate(model(), data, methods=["source"], progress=False, limit_test_batches=1)
    block = limited["runs"][0]["methods"]["source"]
    assert block["skipped"] == 6 - sum(its["images"] for its in (block["clean"], block["mean"]) if its)


def test_without_skipping_nothing_is_said(tmp_path: Path) -> None:
    write_clean(tmp_path, [f"{name}/{number}" for name in ("cat", "dog") for number in range(4)], 32, ".png")
    data = CorruptionDataModule(None, test=tmp_path, **OPTIONS)
    results = evaluate(model(), data, methods=["source"], progress=False)
    assert "skipped" not in results["runs"][0]["methods"]["source"]
    assert "on_error" not in results["protocol"]


def test_lost_records_are_no_skipped_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CorruptionDataModule(write_set(tmp_path / "set"), on_error="skip", **OPTIONS)
    records_of = RecordingCallback.records

    def lossy(self: RecordingCallback) -> ImageRecords:
        return records_of(self).map(lambda column: column[1:])

    monkeypatch.setattr(RecordingCallback, "records", lossy)
    with pytest.raises(ReportError, match="41 of 48 images were recorded"):
        evaluate(model(), data, methods=["source"], progress=False)


def test_broken_files_of_released_sets_are_skipped_in_their_cell(tmp_path: Path) -> None:
    write_folders(tmp_path / "ImageNet-C")
    broken = tmp_path / "ImageNet-C" / "fog" / "4" / "n01" / "ILSVRC_20.png"
    truncate(broken)
    options: dict[str, Any] = {"corruptions": ("fog", "contrast"), "severities": (4, 5), "batch_size": 4}
    strict = CorruptionDataModule(None, test=ImageNetC(tmp_path), **options)
    with pytest.raises(DataError, match=rf"image 1 of ImageNet-C in fog/4 .*{broken}"):
        run_test(strict)
    data = CorruptionDataModule(None, test=ImageNetC(tmp_path), on_error="skip", num_workers=1, **options)
    results = evaluate(model(3), data, methods=["source"], output=tmp_path / "out", progress=False)
    block = results["runs"][0]["methods"]["source"]
    assert block["skipped"] == 1
    assert {cell: its["images"] for cell, its in block["cells"].items()} == {
        "fog/4": 5,
        "fog/5": 6,
        "contrast/4": 6,
        "contrast/5": 6,
    }
    assert data.skipped == [("fog/4", 1, str(broken))]


def test_the_first_image_may_be_broken(tmp_path: Path) -> None:
    write_clean(tmp_path, [f"{name}/{number}" for name in ("cat", "dog") for number in range(4)], 32, ".png")
    truncate(tmp_path / "cat" / "0.png")
    skipping = PixelDataset(ImageFolder(str(tmp_path)), on_error="skip")
    assert skipping.shape == (3, 32, 32)
    assert len(skipping.fingerprint) == 64
    with pytest.raises(UnreadableImageError, match=r"cat/0\.png"):
        _ = PixelDataset(ImageFolder(str(tmp_path))).shape
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 8 images of ImageFolder can be read"):
        _ = PixelDataset(ImageFolder(str(tmp_path)), on_error="skip").shape


def test_misuse_is_not_skipped(tmp_path: Path) -> None:
    class Normalised(Raising):
        def __getitem__(self, index: int) -> Any:
            return torch.randn(3, 32, 32), 0

    data = CorruptionDataModule(None, test=Normalised(OSError()), on_error="skip", **OPTIONS)
    with pytest.raises(DataError, match=r"not within \[0, 1\]"):
        run_test(data)
    with pytest.raises(DataError, match=r"on_error='ignore': did you mean|on_error='ignore': known: raise, skip"):
        CorruptionDataModule(None, test=data.test, on_error="ignore")  # type: ignore[arg-type]
