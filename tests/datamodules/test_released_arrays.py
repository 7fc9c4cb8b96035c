"""Readers of the layout of CIFAR-10-C: pixels and labels against plain numpy, and wrong files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_sets import chw, labels_of, write_arrays, write_cifar
from torchvision.datasets import CIFAR10

from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import COMMON_CORRUPTIONS, SEVERITIES, Cell
from dynbn_lightning.corruptions.cells import CIFAR_BAR_CORRUPTIONS
from dynbn_lightning.datamodules import CIFAR10C, CIFAR100C, CIFAR10CBar, ReleasedSet
from dynbn_lightning.errors import CorruptionError, DataError


@pytest.mark.parametrize("inside", [True, False], ids=["root", "the folder itself"])
@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (7, np.int64), (23, np.int32)])
def test_every_image_of_every_cell(tmp_path: Path, count: int, dtype: Any, inside: bool) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C", count=count, dtype=dtype)
    released = CIFAR10C(tmp_path if inside else tmp_path / "CIFAR-10-C", corruptions=("fog", "contrast"))
    assert len(released) == count
    assert released.labels == labels_of(count).tolist()
    assert all(type(label) is int for label in released.labels)
    assert released.cells == [Cell(name, severity) for name in ("fog", "contrast") for severity in SEVERITIES]
    for name, array in written.items():
        for severity in SEVERITIES:
            for index in range(count):
                image = released.image(index, f"{name}/{severity}")
                assert image.dtype == torch.uint8
                assert torch.equal(image, chw(array[(severity - 1) * count + index]))
    pixels, label = released[count - 1, "fog/5"]
    assert torch.equal(pixels, chw(written["fog"][-1]))
    assert label == labels_of(count)[-1]


@pytest.mark.parametrize(
    ("reader", "folder", "corruptions"),
    [(CIFAR100C, "CIFAR-100-C", ("fog",)), (CIFAR10CBar, "CIFAR-10-C-Bar", CIFAR_BAR_CORRUPTIONS)],
)
def test_other_sets_of_the_layout(
    tmp_path: Path, reader: type[ReleasedSet], folder: str, corruptions: tuple[str, ...]
) -> None:
    written = write_arrays(tmp_path / folder, corruptions, count=3, dtype=np.int64)
    released = reader(tmp_path, corruptions=None if len(corruptions) > 1 else corruptions)
    assert released.corruptions == corruptions
    for name in corruptions:
        assert torch.equal(released.image(2, f"{name}/4"), chw(written[name][3 * 3 + 2]))


def test_by_default_the_benchmarks_corruptions(tmp_path: Path) -> None:
    write_arrays(tmp_path / "CIFAR-10-C")
    released = CIFAR10C(tmp_path)
    assert released.corruptions == COMMON_CORRUPTIONS
    with pytest.raises(DataError, match=r"CIFAR-10-C' lacks gaussian_noise\.npy, shot_noise\.npy.*download=True"):
        released.check(released.corruptions)


def test_subsets_are_spread_evenly_or_listed(tmp_path: Path) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C", count=10)["fog"]
    for subset, expected in ((4, [0, 2, 5, 7]), ([9, 0, 3], [9, 0, 3]), (10, list(range(10)))):
        released = CIFAR10C(tmp_path, subset=subset)
        assert released.labels == labels_of(10)[expected].tolist()
        for index, number in enumerate(expected):
            assert torch.equal(released.image(index, "fog/2"), chw(written[10 + number]))
    with pytest.raises(DataError, match="no image 10: expected 0 to 9"):
        released.image(10, "fog/2")


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (0, "at least 1"),
        (13, "only 12 images"),
        ([], "is empty"),
        ([3, 3], "twice"),
        ([0, 12], "has image 12.*0 to 11"),
        ([-1], "has image -1"),
        (["a/b"], "have none: pass their numbers"),
        ([1, "a"], "other things"),
        ("five", "how many images"),
        (True, "how many images"),
    ],
)
def test_subsets_that_are_none(tmp_path: Path, subset: Any, message: str) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=12)
    with pytest.raises(DataError, match=message):
        len(CIFAR10C(tmp_path, subset=subset))


def test_clean_images_are_torchvisions_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=12)
    clean = write_cifar(tmp_path, monkeypatch, labels_of(12).tolist())
    for root in (tmp_path, tmp_path / "CIFAR-10-C"):
        released = CIFAR10C(root, corruptions=("fog",), subset=5)
        assert released.cells[0] == Cell.clean()
        for index, number in enumerate([0, 2, 4, 7, 9]):
            assert torch.equal(released.image(index, "clean"), chw(clean[number]))


def test_clean_images_that_are_not_the_same_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=12)
    write_cifar(tmp_path / "longer", monkeypatch, labels_of(13).tolist())
    write_cifar(tmp_path / "shuffled", monkeypatch, labels_of(12)[::-1].tolist())
    wrong = {"longer": "are 13, and CIFAR-10-C has 12", "shuffled": "image 0 is of class 3.*class 0"}
    for folder, message in wrong.items():
        (tmp_path / folder / "cifar-10-batches-py").rename(tmp_path / "cifar-10-batches-py")
        released = CIFAR10C(tmp_path, corruptions=("fog",))
        with pytest.warns(UserWarning, match=f"there will be no clean images: .*{message}"):
            assert not released.has_clean
        assert Cell.clean() not in released.cells
        given = CIFAR10C(tmp_path, clean=CIFAR10(str(tmp_path), train=False))
        with pytest.raises(DataError, match=message):
            given.image(0, "clean")
        (tmp_path / "cifar-10-batches-py").rename(tmp_path / folder / "used")
    with pytest.raises(DataError, match="no clean images: pass them as clean="):
        released.image(0, "clean")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "CIFAR-10-C"
    write_arrays(folder, ("fog", "snow", "frost", "contrast", "brightness", "zoom_blur"), count=4)
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[: len(whole) // 2])
    (folder / "snow.npy").write_bytes(b"no array")
    np.save(folder / "frost.npy", np.zeros((16, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "contrast.npy", np.zeros((20, 32, 32, 3), dtype=np.float32))
    np.save(folder / "brightness.npy", np.zeros((20, 3, 32, 32), dtype=np.uint8))
    np.save(folder / "zoom_blur.npy", np.array([{}], dtype=object))
    released = CIFAR10C(tmp_path)
    for name, message in {
        "fog": "only a part",
        "snow": "no array",
        "frost": r"uint8 \(16, 32, 32, 3\): expected uint8 \(20,",
        "contrast": "float32",
        "brightness": r"\(20, 3, 32, 32\)",
        "zoom_blur": "no array",
    }.items():
        with pytest.raises(DataError, match=rf"{name}\.npy .*{message}"):
            released.image(0, f"{name}/1")
        with pytest.raises(DataError, match=rf"{name}\.npy"):
            released.layout.check([Cell(name, 1)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(21), "21 labels, which is no multiple of its 5"),
        (np.zeros(0, dtype=np.int64), "0 labels"),
        (np.arange(20) % 10, "other labels at one severity"),
        (np.zeros(20), "float64"),
        (np.zeros((20, 1), dtype=np.int64), r"\(20, 1\)"),
        (np.full(20, 10), "labels from 10 to 10: CIFAR-10-C has 0 to 9, so these are other images"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, labels: Any, message: str) -> None:
    write_arrays(tmp_path / "CIFAR-10-C", count=4)
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", labels)
    with pytest.raises(DataError, match=message):
        len(CIFAR10C(tmp_path))


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR-10-C is not in .*labels\.npy.*root=.*download=True"):
        CIFAR10C(tmp_path)
    with pytest.raises(DataError, match=r"augmentation-corruption"):
        CIFAR10CBar(tmp_path)
    with pytest.raises(DataError, match=r"no official archive.*make_cifar10_c_bar\.py"):
        CIFAR10CBar(tmp_path, download=True)
    write_arrays(tmp_path / "CIFAR-10-C")
    with pytest.raises(DataError, match=r"has no 'sparkles'"):
        CIFAR10C(tmp_path, corruptions=("sparkles",))
    with pytest.raises(CorruptionError, match="did you mean 'contrast'"):
        CIFAR10C(tmp_path, corruptions=("contrasts",))
    with pytest.raises(DataError, match="different ones"):
        CIFAR10C(tmp_path, corruptions=("fog", "fog"))


def test_arrays_are_opened_anew_where_a_set_is_sent(tmp_path: Path) -> None:
    written = write_arrays(tmp_path / "CIFAR-10-C", count=500)
    released = CIFAR10C(tmp_path)
    first = released.image(499, "fog/5")
    sent = pickle.dumps(released)
    assert len(sent) < 20_000, "no pixels are sent"
    assert torch.equal(pickle.loads(sent).image(499, "fog/5"), first)
    assert torch.equal(first, chw(written["fog"][-1]))


def test_sets_that_dynbn_corrupt_wrote(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_corrupted_set("shapes", made, corruptions=("contrast", "spatter"), severities=(4, 2), progress=False)
    released = CIFAR10C(made)
    assert released.corruptions == ("contrast", "spatter")
    assert released.severities == (4, 2)
    assert released.name == "shapes"
    array = np.load(made / "spatter.npy")
    for block, severity in enumerate((4, 2)):
        assert torch.equal(released.image(17, f"spatter/{severity}"), chw(array[block * 1000 + 17]))
    assert "preset cifar, seed 0" in released.described()["corrupted_by"]
    with pytest.raises(DataError, match=r"has no severity 1: .*4, 2"):
        released.check(("contrast",), (1, 2))
    with pytest.raises(DataError, match="severities 4, 2, not 3"):
        released.image(0, "spatter/3")
