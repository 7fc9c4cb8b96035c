from __future__ import annotations

from typing import Any

import pytest

from dynbn_lightning.corruptions import CORRUPTIONS, PRESETS, SEVERITIES, resolve_preset
from dynbn_lightning.errors import CorruptionError


@pytest.mark.parametrize("name", ["imagenet", "tiny_imagenet", "cifar"])
def test_every_constant_is_the_published_one(name: str, severity_tables: dict[str, Any]) -> None:
    published = severity_tables[name]
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.image_size == published["image_size"]
    assert set(preset.severities) == set(CORRUPTIONS) == set(published) - {"image_size"}
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            constants = published[corruption][severity - 1]
            expected = tuple(constants) if isinstance(constants, list) else (constants,)
            assert preset.constants(corruption, severity) == expected, (corruption, severity)


def test_there_are_five_severities_of_every_corruption() -> None:
    for preset in PRESETS.values():
        assert all(len(rows) == 5 for rows in preset.severities.values())


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1, 1, "cifar"),
        (32, 32, "cifar"),
        (48, 300, "cifar"),
        (49, 49, "tiny_imagenet"),
        (64, 64, "tiny_imagenet"),
        (144, 144, "tiny_imagenet"),
        (145, 145, "imagenet"),
        (224, 224, "imagenet"),
        (600, 400, "imagenet"),
        (500, 40, "cifar"),
    ],
)
def test_auto_takes_the_nearest_size_by_the_shorter_side(height: int, width: int, expected: str) -> None:
    assert resolve_preset("auto", height, width) == expected


def test_a_named_preset_is_taken_whatever_the_size() -> None:
    assert resolve_preset("imagenet", 32, 32) == "imagenet"


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(CorruptionError, match="did you mean 'imagenet'"):
        resolve_preset("imagnet", 224, 224)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_preset_has_no_other_severities(severity: int) -> None:
    with pytest.raises(CorruptionError, match="severity"):
        PRESETS["cifar"].constants("fog", severity)
