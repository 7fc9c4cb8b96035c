"""A corruption and a severity for each image: the same pixels as one by one, with one group per corruption."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from sample_pictures import RANDOM, pictures

from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dynbn_lightning.corruptions import corrupt as corrupt_function
from dynbn_lightning.errors import CorruptionError

NAMES = [name for name in ("clean", *CORRUPTIONS) for _ in SEVERITIES]
SEVERITIES_OF = [0 if name == "clean" else number for name in ("clean", *CORRUPTIONS) for number in SEVERITIES]


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("preset", ["cifar", "imagenet"])
def test_every_cell_in_one_batch_is_what_it_is_alone(preset: str, quantize: bool, as_float: bool) -> None:
    images = pictures(len(NAMES), 3, 32, 40)
    if as_float:
        images = images.float() / 255
        images[::2] *= 0.999  # every second image between the levels
    order = torch.randperm(len(NAMES), generator=torch.Generator().manual_seed(0)).tolist()
    names, severities = [NAMES[cell] for cell in order], [SEVERITIES_OF[cell] for cell in order]
    together = corrupt(images, names, severities, preset, seeds=order, quantize=quantize)
    for image, (name, severity, seed) in enumerate(zip(names, severities, order, strict=True)):
        here = images[image : image + 1]
        alone = corrupt(here, [name], [severity], preset, seeds=[seed], quantize=quantize)
        assert torch.equal(together[image], alone[0]), (name, severity)
        if name != "clean":
            assert torch.equal(alone, corrupt(here, name, severity, preset, seeds=[seed], quantize=quantize))


def test_clean_images_stay_as_they_are() -> None:
    images = pictures(3, 3, 32, 32)
    made = corrupt(images, "clean", [0, 0, 0])
    assert torch.equal(made, images)
    assert made.data_ptr() != images.data_ptr()
    between = torch.full((1, 1, 4, 4), 0.5)
    assert torch.equal(corrupt(between, ["clean"], [0], quantize=False), between)
    assert torch.equal(corrupt(between, ["clean"], [0]), torch.full((1, 1, 4, 4), 127 / 255))


@pytest.mark.parametrize("severities", [[1, 2, 3, 4, 5] * 4, torch.tensor([1, 2, 3, 4, 5] * 4)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_vector_of_severities(name: str, severities: Any) -> None:
    images = pictures(20, 3, 32, 32)
    made = corrupt(images, name, severities, seeds=range(20))
    for image in range(20):
        assert torch.equal(
            made[image : image + 1], corrupt(images[image : image + 1], name, image % 5 + 1, seeds=[image])
        )


def test_each_corruption_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    module = __import__("importlib").import_module("dynbn_lightning.corruptions.batch")
    for table in ("DETERMINISTIC", "RANDOM"):
        counted = {}
        for name, function in getattr(module, table).items():

            def call(*arguments: Any, name: str = name, function: Any = function) -> Any:
                calls[name] += 1
                return function(*arguments)

            counted[name] = call
        monkeypatch.setattr(module, table, counted)
    corrupt_function(pictures(len(NAMES), 3, 32, 32), NAMES, SEVERITIES_OF)
    assert calls == Counter(CORRUPTIONS)


def test_one_severity_for_all_leaves_clean_images_out() -> None:
    images = pictures(2, 3, 32, 32)
    made = corrupt(images, ["clean", "contrast"], 3)
    assert torch.equal(made[0], images[0])
    assert torch.equal(made[1:], corrupt(images[1:], "contrast", 3))


def test_a_generator_reproduces_a_mixed_batch() -> None:
    images = pictures(4, 3, 32, 32)
    names = [*RANDOM[:2], "clean", "contrast"]
    first, second = (corrupt(images, names, [1, 2, 0, 3], generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("names", "severities", "message"),
    [
        (["fog"], [1, 2], "1 names for 2 images"),
        ("fog", [1, 2, 3], "3 severities for 2 images"),
        (["fog", "fogg"], [1, 2], "did you mean 'fog'"),
        (["fog", "clean"], [1, 2], "clean images have severity 0"),
        (["fog", "snow"], [1, 0], "severity 0"),
        (["fog", "snow"], [1, 2.0], "severity 2.0"),
        ("fog", torch.tensor([1.0, 2.0]), "severity 1.0"),
        ("clean", 1, "unknown corruption 'clean'"),
    ],
)
def test_what_does_not_fit_is_refused(names: Any, severities: Any, message: str) -> None:
    with pytest.raises(CorruptionError, match=message):
        corrupt(pictures(2, 3, 8, 8), names, severities)
