"""The deterministic corruptions against images that the published generators made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynbn_lightning.corruptions import PRESETS, SEVERITIES, corrupt
from dynbn_lightning.corruptions.geometry import blur_along

Golden = dict[str, dict[str, Tensor]]

# Mean absolute difference allowed, in levels; what was measured is next to it.
TOLERANCES = {
    "defocus_blur": 0.04,  # 0.035 at 224 px, severity 1; else 0.006
    "zoom_blur": 0.005,  # 0.003
    "gaussian_blur": 0.001,  # 0.0008
    "brightness": 0.002,  # 0.001
    "contrast": 0.001,  # 0.0005
    "pixelate": 0.0,
    "saturate": 0.06,  # 0.056 at 224 px, severity 3, where every second level is one of two; else 0.04
    "jpeg_compression": 0.0,
}


@pytest.mark.parametrize("as_float", [False, True], ids=["uint8", "float"])
@pytest.mark.parametrize("preset", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", TOLERANCES)
def test_deterministic_corruptions_make_the_golden_images(
    name: str, preset: str, as_float: bool, golden: Golden
) -> None:
    clean = golden[preset]["clean"]
    for severity in SEVERITIES:
        made = corrupt(clean.float() / 255 if as_float else clean, name, severity, "auto")
        levels = (made * 255).round() if as_float else made
        difference = (levels.int() - golden[preset][name][severity - 1].int()).abs()
        assert difference.max() <= 1, (severity, int(difference.max()))
        assert difference.float().mean() <= TOLERANCES[name], (severity, float(difference.float().mean()))


def test_the_comparison_can_fail(golden: Golden) -> None:
    clean = golden["cifar"]["clean"]
    made = corrupt(clean, "defocus_blur", 3)
    assert (made.int() - golden["cifar"]["defocus_blur"][3].int()).abs().float().mean() > 0.5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_some_angle_of_motion_makes_each_golden_image(severity: int, golden: Golden) -> None:
    radius, sigma = PRESETS["cifar"].constants("motion_blur", severity)
    angles = torch.arange(-45.0, 45.0, 0.25)
    for image in (0, 3):
        clean = golden["cifar"]["clean"][image].float().div(255).expand(len(angles), -1, -1, -1)
        blurred = blur_along(clean, angles, int(radius), sigma).mul(255).add(2e-4).floor()
        differences = (blurred - golden["cifar"]["motion_blur"][severity - 1, image].float()).abs()
        best = differences.mean(dim=(1, 2, 3)).argmin()
        assert differences[best].max() <= 1
        assert differences[best].mean() < 0.02
        assert differences.mean(dim=(1, 2, 3)).max() > 1
