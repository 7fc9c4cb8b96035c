"""Tests on released sets through `CorruptionDataModule`: pixels, cells, protocol, evaluate and reports."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datamodule_helpers import Recorder, random_images, run_test, trainer
from released_sets import NAMES, chw, labels_of, write_arrays, write_cifar, write_clean, write_folders
from torch.utils.data import TensorDataset

from dynbn_lightning import (
    BatchStatsCallback,
    ClassifierModule,
    CorruptionDataModule,
    CorruptionReportCallback,
    evaluate,
)
from dynbn_lightning.callbacks.protocol import described_data
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import Cell
from dynbn_lightning.datamodules import CIFAR10C, CIFAR10CBar, ImageNet3DCC, ImageNetC
from dynbn_lightning.detection import log_amplitude_spectrum, opponent_channels
from dynbn_lightning.errors import CorruptionError, DataError
from dynbn_lightning.figures import look_at_images
from dynbn_lightning.models import Normalization, cifar_resnet8
from dynbn_lightning.reporting import Comparison, ImageRecords, read_results, write_report

CHOICE: dict[str, Any] = {"corruptions": ("fog", "contrast"), "severities": (2, 5), "batch_size": 5}


def model(num_classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(0)
    return cifar_resnet8(num_classes=num_classes, width=4).eval()


@pytest.mark.parametrize(
    ("stream", "num_workers"),
    [("mixed", 0), ("mixed", 2), ("sequential", 0), ("continual", 0), ("continual", 2), ("correlated", 0)],
)
def test_arrays_on_every_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: Any, num_workers: int) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C", count=12, dtype=np.int64)
    clean = write_cifar(tmp_path, monkeypatch, labels_of(12).tolist())
    data = CorruptionDataModule(
        None, test=CIFAR10C(tmp_path), stream=stream, num_workers=num_workers, normalization="cifar10", **CHOICE
    )
    module = run_test(data)
    images = module.images("test")
    normalization = Normalization.of("cifar10")
    expected = {("clean", index): clean[index] for index in range(12)}
    for name, array in written.items():
        if name in CHOICE["corruptions"]:
            for severity in (2, 5):
                rows = array[(severity - 1) * 12 :]
                expected |= {(f"{name}/{severity}", index): rows[index] for index in range(12)}
    assert images.keys() == expected.keys()
    for key, pixels in expected.items():
        assert torch.equal(images[key], normalization.apply(chw(pixels).float() / 255)), key
    for (_, labels), indices, _, _ in module.batches:
        assert labels.tolist() == labels_of(12)[list(indices)].tolist()


def test_folders_with_workers_and_without_clean_images(tmp_path: Path) -> None:
    written = write_folders(tmp_path / "ImageNet-C")
    data = CorruptionDataModule(None, test=ImageNetC(tmp_path), stream="sequential", num_workers=1, **CHOICE)
    assert data.stream_names == [cell.name for cell in data.cells] == ["fog/2", "fog/5", "contrast/2", "contrast/5"]
    assert data.rows == ("clean", "fog", "contrast"), "those of a bank, which has always a clean one"
    images = run_test(data).images("test")
    assert len(images) == 4 * 6
    for (cell, index), image in images.items():
        assert torch.equal((image * 255).round().byte(), chw(written[cell, sorted(NAMES)[index]]))


def test_what_on_the_fly_shows_is_what_was_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_clean(source)
    for layout, reader in (("cifar", CIFAR10C), ("imagenet", ImageNetC)):
        options: dict[str, Any] = {"layout": layout, "preset": "cifar", "seed": 3, "progress": False}
        if layout == "imagenet":
            options["image_format"] = "png"
        write_corrupted_set(source, tmp_path / layout, corruptions=("frost", "fog"), severities=(4,), **options)
        read = CorruptionDataModule(None, test=reader(tmp_path / layout, clean=source), batch_size=4)
        chosen: dict[str, Any] = {"corruptions": ("frost", "fog"), "severities": (4,)}
        made = CorruptionDataModule(None, test=source, seed=3, batch_size=5, **chosen)
        assert read.corruptions == made.corruptions
        assert read.severities == made.severities
        one, other = run_test(read).images("test"), run_test(made).images("test")
        assert one.keys() == other.keys()
        assert all(torch.equal(image, other[key]) for key, image in one.items())


def test_missing_cells_are_named_before_any_work(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    released = CIFAR10C(tmp_path)
    with pytest.raises(DataError, match=r"lacks gaussian_noise\.npy, "):
        CorruptionDataModule(None, test=released)
    with pytest.raises(DataError, match=r"lacks snow\.npy"):
        CorruptionDataModule(None, test=released, corruptions=("fog", "snow"))
    with pytest.raises(DataError, match="has no 'sparkles'"):
        CorruptionDataModule(None, test=released, corruptions=("sparkles",))
    write_folders(tmp_path / "ImageNet-C", ("fog",), severities=(1, 3))
    with pytest.raises(DataError, match=r"ImageNet-C' lacks fog/2/, fog/5/"):
        CorruptionDataModule(None, test=ImageNetC(tmp_path), corruptions=("fog",), severities=(1, 2, 5))
    for released in (ImageNetC(tmp_path), ImageNetC(tmp_path, corruptions=("fog",))):
        data = CorruptionDataModule(None, test=released, corruptions=("fog",))
        assert data.cells == [Cell("fog", 1), Cell("fog", 3)]
        assert released.cells == data.cells, "what is there"
    write_folders(tmp_path / "ImageNet-C", ("snow",), severities=(2,))
    with pytest.raises(DataError, match=r"lacks fog/2/.*snow/1/"):
        ImageNetC(tmp_path, corruptions=("fog", "snow"))


def test_another_image_size_is_warned_about(tmp_path: Path) -> None:
    write_folders(tmp_path / "ImageNet-C", size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CorruptionDataModule(None, test=ImageNetC(tmp_path), image_size=40, **CHOICE)
    with pytest.warns(UserWarning, match="image_size=32, and the images of ImageNet-C are 40 px already"):
        data = CorruptionDataModule(None, test=ImageNetC(tmp_path), image_size=32, **CHOICE)
    assert {image.shape[-1] for image in run_test(data).images("test").values()} == {32}


@pytest.mark.parametrize("stream", ["mixed", "sequential"])
def test_training_images_are_corrupted_as_ever(tmp_path: Path, stream: Any) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    train = random_images(40, 0)
    beside = CorruptionDataModule(train, test=CIFAR10C(tmp_path), **CHOICE)
    alone = CorruptionDataModule(train, test=random_images(12, 1), **CHOICE)
    seen = []
    for data in (beside, alone):
        data.stream = stream
        module = Recorder()
        trainer().validate(module, datamodule=data, verbose=False)
        loaders = data.row_loaders(images_per_row=20)
        rows = {row: torch.cat(list(batches)) for row, batches in loaders.items()}
        seen.append((module.images("validate"), rows, loaders.provenance, data.provenance()))
    assert seen[0][0].keys() == seen[1][0].keys()
    assert len(seen[0][0]) == 4 * 5, "clean too, though the test set has no clean images"
    assert all(torch.equal(image, seen[1][0][key]) for key, image in seen[0][0].items())
    assert all(torch.equal(images, seen[1][1][row]) for row, images in seen[0][1].items())
    assert seen[0][2:] == seen[1][2:]


def test_training_images_are_opened_only_if_they_are_needed(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    data = CorruptionDataModule(test=CIFAR10C(tmp_path), **CHOICE)  # whose source is "shapes"
    assert len(run_test(data).images("test")) == 12 * 4
    with pytest.raises(DataError, match=r"other classes for training.*airplane"):
        data.row_loaders()
    write_arrays(tmp_path / "CIFAR-10-C-Bar", ("ripple", "lines"))
    bar = CorruptionDataModule("shapes", test=CIFAR10CBar(tmp_path, corruptions=("ripple",)))
    assert len(run_test(bar).images("test")) == 12 * 5
    only_read = CorruptionDataModule(random_images(40, 0), test=CIFAR10CBar(tmp_path, corruptions=("ripple", "lines")))
    with pytest.raises(CorruptionError, match="'ripple' exists only in released sets"):
        list(only_read.row_loaders(images_per_row=4)["ripple"])
    with pytest.raises(DataError, match="no training images"):
        _ = CorruptionDataModule(None, test=CIFAR10C(tmp_path), **CHOICE).train_images


def test_the_protocol_says_what_was_read(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    released = CIFAR10C(tmp_path, subset=5)
    said = described_data(CorruptionDataModule(None, test=released, **CHOICE))
    assert said["source"] == "CIFAR-10-C"
    assert said["corrupted_by"] == "released"
    assert said["subset"] == "5 of 12 images, spread evenly"
    assert said["test_images"] == 5
    assert said["preset"] is said["frost_textures"] is said["clean"] is None
    assert "transform" not in said
    assert said["image_size"] == [32, 32]
    assert described_data(CorruptionDataModule(None, test=CIFAR10C(tmp_path), **CHOICE))["subset"] == "all"
    beside = CorruptionDataModule(random_images(40, 0), test=released, **CHOICE)
    assert described_data(beside, "validation")["source"] == "TensorDataset"
    assert described_data(beside)["source"] == "CIFAR-10-C"
    options: dict[str, Any] = {"clean": random_images(12, 0), "transform": lambda image: image}
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile(np.arange(12) % 4, 5))  # as those of the clean ones
    given = described_data(CorruptionDataModule(None, test=CIFAR10C(tmp_path, **options), **CHOICE))
    assert given["clean"] == "TensorDataset"
    assert given["transform"].endswith(".<lambda>>"), "without an address, which no two runs share"


def test_without_clean_images_one_warning_says_how_to_give_them(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    data = CorruptionDataModule(None, test=CIFAR10C(tmp_path), num_workers=1, **CHOICE)
    with pytest.warns(UserWarning, match="no clean images: .*pass clean=, a data set in its order or a folder"):
        run_test(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run_test(data)


def test_clean_images_are_opened_once_for_all_loader_processes(tmp_path: Path) -> None:
    class Opened(TensorDataset):
        """Which process looked at its targets: that is done where clean images are opened."""

        @property
        def targets(self) -> list[int]:
            with (tmp_path / "opened").open("a") as file:
                file.write(f"{os.getpid()}\n")
            return labels_of(12).tolist()

    write_arrays(tmp_path / "CIFAR-10-C")
    clean = Opened(random_images(12, 0).tensors[0], torch.from_numpy(labels_of(12)))
    data = CorruptionDataModule(None, test=CIFAR10C(tmp_path, clean=clean), num_workers=2, **CHOICE)
    for _ in range(2):
        assert ("clean", 11) in run_test(data).images("test")
    assert set((tmp_path / "opened").read_text().split()) == {str(os.getpid())}


def test_saying_what_a_datamodule_is_opens_nothing(tmp_path: Path) -> None:
    released = CIFAR10C(tmp_path / "data", download=True, corruptions=("fog",), subset=9)
    data = CorruptionDataModule(random_images(4, 0), test=released, severities=(5,))
    expected = (
        f"CorruptionDataModule(source=TensorDataset, test=CIFAR10C('{tmp_path}/data', corruptions=('fog',), subset=9), "
        "corruptions=('fog',), severities=(5,), stream='mixed')"
    )
    assert str(data) == repr(data) == expected
    assert not (tmp_path / "data").exists()
    assert repr(CIFAR10C(tmp_path, download=True, subset=[3, 4])) == f"CIFAR10C('{tmp_path}', subset=[2 listed])"


@pytest.mark.parametrize("change", ["pixels", "labels", "cells", "subset"])
def test_the_fingerprint_is_of_the_files(tmp_path: Path, change: str) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C", count=4)
    seed_changes_nothing = [
        CorruptionDataModule(None, test=CIFAR10C(tmp_path), seed=seed, **CHOICE).test_images.fingerprint
        for seed in (0, 1)
    ]
    assert seed_changes_nothing[0] == seed_changes_nothing[1]
    options, choice = {}, dict(CHOICE)
    if change == "pixels":
        written["contrast"][4 * 4] += 1  # at severity 5; there are fewer images than places that are looked at
        np.save(tmp_path / "CIFAR-10-C" / "contrast.npy", written["contrast"])
    elif change == "labels":
        np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile([0, 3, 6, 8], 5))
    elif change == "cells":
        choice["corruptions"] = ("fog",)
    else:
        options["subset"] = [0, 1, 3, 2]
    changed = CorruptionDataModule(None, test=CIFAR10C(tmp_path, **options), **choice)
    assert changed.test_images.fingerprint != seed_changes_nothing[0]


def test_evaluate_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corruptions = ("fog_3d", "bit_error")
    write_folders(tmp_path / "ImageNet-3DCC", corruptions)
    write_clean(tmp_path / "val")
    released = ImageNet3DCC(tmp_path, corruptions=corruptions, clean=tmp_path / "val")
    data = CorruptionDataModule(None, test=released, severities=(1, 4), batch_size=4, normalization="half")
    net = model(num_classes=3)
    methods, streams = ["source", "batch_stats"], ["mixed", "sequential"]
    evaluated = evaluate(net, data, methods=methods, streams=streams, output=tmp_path / "out", progress=False)
    block = evaluated["runs"][0]["methods"]["source"]
    assert block["cells"].keys() == {"fog_3d/1", "fog_3d/4", "bit_error/1", "bit_error/4"}
    assert block["clean"]["images"] == block["cells"]["bit_error/4"]["images"] == 6
    assert "skipped" not in block
    assert evaluated["protocol"]["source"] == "ImageNet-3DCC"
    records, _ = ImageRecords.load(tmp_path / "out" / block["records"])
    assert len(records) == 6 * 5
    with torch.no_grad():
        for index in range(6):
            pixels = released.image(index, "bit_error/4")
            logits = net(data.normalization.apply(pixels[None].float() / 255))
            row = (records.indices == index) & (records.cells == Cell("bit_error", 4).code)
            assert int(records.predictions[row]) == int(logits.argmax())
            assert int(records.labels[row]) == index // 2
    write_report([tmp_path / "out"], tmp_path / "out")
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| method | clean | fog_3d | bit_error | mean |" in table
    assert "corrupted_by" in (tmp_path / "out" / "report.html").read_text()
    examples = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "out" / "examples").iterdir()}
    assert examples == {"clean-0", "fog_3d-4", "bit_error-4"}
    callback = CorruptionReportCallback(tmp_path / "callback")
    trainer(callbacks=[BatchStatsCallback(), callback]).test(ClassifierModule(net), datamodule=data, verbose=False)
    (its,) = read_results(tmp_path / "callback")["runs"][0]["methods"].values()
    assert its["cells"] == evaluated["runs"][0]["methods"]["batch_stats"]["cells"]


def test_mce_of_released_sets_has_the_literatures_baseline(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    data = CorruptionDataModule(None, test=CIFAR10C(tmp_path), **CHOICE)
    evaluate(model(), data, methods=["source"], output=tmp_path / "out", progress=False)
    comparison = Comparison.read([tmp_path / "out"])
    assert comparison.baseline is not None
    assert comparison.baseline.name == "benz-cifar10"
    assert comparison.entries[0].block["clean"] is None


def test_figures_look_at_the_images_as_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C")
    write_cifar(tmp_path, monkeypatch, labels_of(12).tolist())
    data = CorruptionDataModule(None, test=CIFAR10C(tmp_path), corruptions=("contrast",), severities=(5,))
    seen = look_at_images(data, images=12, progress=False)
    pixels = torch.stack([chw(array) for array in written["contrast"][48:]]).float() / 255
    expected = log_amplitude_spectrum(opponent_channels(pixels)[:, :1]).double().mean(dim=(0, 1))
    torch.testing.assert_close(seen.spectra["contrast"], expected)
