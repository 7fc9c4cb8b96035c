"""The names of corruptions that exist in released sets only: cells have them, nothing makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynbn_lightning import Corrupt, CorruptionDataModule, corrupt
from dynbn_lightning.corrupted_set import write_corrupted_set
from dynbn_lightning.corruptions import (
    ALL_CORRUPTIONS,
    COMMON_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    PRESETS,
    RELEASED_CORRUPTIONS,
    SEVERITIES,
    Cell,
)
from dynbn_lightning.errors import CorruptionError, did_you_mean
from dynbn_lightning.metrics import Baseline

IMAGES = torch.zeros(2, 3, 32, 32)


def test_codes_never_change() -> None:
    assert (len(COMMON_CORRUPTIONS), len(EXTRA_CORRUPTIONS), len(RELEASED_CORRUPTIONS)) == (15, 4, 27)
    assert ALL_CORRUPTIONS[:19] == CORRUPTIONS
    assert ALL_CORRUPTIONS[19:] == RELEASED_CORRUPTIONS
    known = {
        "clean": 0,
        "gaussian_noise/1": 1,
        "saturate/5": 95,
        "near_focus/1": 96,
        "h265_crf/5": 155,
        "blue_noise_sample/1": 156,
        "sparkles/5": 205,
        "pinch_and_twirl/1": 206,
        "transverse_chromatic_abberation/5": 230,
    }
    for name, code in known.items():
        assert Cell.parse(name).code == code
        assert Cell.from_code(code).name == name
    names = [Cell.from_code(code).name for code in range(231)]
    assert len(set(names)) == 231
    assert [Cell.parse(name).code for name in names] == list(range(231))
    with pytest.raises(CorruptionError, match="did you mean 'sparkles'"):
        Cell("sparkle", 1)


@pytest.mark.parametrize("name", RELEASED_CORRUPTIONS)
def test_nothing_makes_them(name: str, tmp_path: Path) -> None:
    message = f"'{name}' exists only in released sets and can't be generated"
    for make in (
        lambda: corrupt(IMAGES, name, 3),
        lambda: corrupt(IMAGES, [name, "fog"], [3, 3]),
        lambda: corrupt(IMAGES, ["clean", name], [0, 3]),
        lambda: Corrupt(name),
        lambda: Corrupt(["fog", name]),
        lambda: PRESETS["cifar"].constants(name, 3),
        lambda: write_corrupted_set("shapes", tmp_path / "out", corruptions=(name,), progress=False),
        lambda: CorruptionDataModule("shapes", corruptions=(name,)),
    ):
        with pytest.raises(CorruptionError, match=message):
            make()
    assert not (tmp_path / "out").exists()


def test_baselines_may_be_of_them() -> None:
    baseline = Baseline.from_errors("mine", {"fog_3d/1": 0.5, "fog_3d/2": 0.7})
    assert baseline.sum_of_errors("fog_3d", (1, 2)) == pytest.approx(1.2)
    assert did_you_mean("fog_3", ALL_CORRUPTIONS) == "did you mean 'fog_3d'?"
    assert SEVERITIES == (1, 2, 3, 4, 5)
