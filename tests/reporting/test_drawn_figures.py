"""What is drawn in the figures: the numbers in their axes, and what stands beside them."""

from __future__ import annotations

import math
import sys
from io import BytesIO
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES, cells_of
from dynbn_lightning.detection import log_amplitude_spectrum
from dynbn_lightning.errors import DataError, DynBNError
from dynbn_lightning.reporting.figures import (
    confusion_figure,
    cost_figure,
    reliability_figure,
    severity_figure,
    spectra_figure,
)
from dynbn_lightning.reporting.figures.cost import round_numbers
from dynbn_lightning.reporting.figures.labels import spread
from dynbn_lightning.reporting.figures.spectra import full_spectrum


def titled(figure: Figure, title: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title() == title)
    return axes


def image_of(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.asarray(image.get_array())


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def half_spectra(*names: str, height: int = 8, width: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(height, width // 2 + 1, generator=generator) for name in names}


# Spectra


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 6), (6, 8), (7, 11)])
def test_both_halves_of_a_spectrum_are_those_of_the_full_transform(size: tuple[int, int]) -> None:
    height, width = size
    images = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = full_spectrum(log_amplitude_spectrum(images, floor=1e-3)[0, 0])
    assert ours.shape == (height + 1 - height % 2, width + 1 - width % 2)
    amplitude = np.abs(np.fft.fft2(images[0, 0].numpy(), norm="ortho"))
    for down in range(-(height // 2), height // 2 + 1):
        for right in range(-(width // 2), width // 2 + 1):
            expected = math.log(amplitude[down % height, right % width] + 1e-3)
            assert float(ours[height // 2 + down, width // 2 + right]) == pytest.approx(expected)


def test_spectra_are_differences_from_clean_on_one_scale_around_zero() -> None:
    spectra = half_spectra("clean", "fog", "contrast")
    figure = spectra_figure(spectra, caption="of some images")
    np.testing.assert_allclose(image_of(titled(figure, "clean")), full_spectrum(spectra["clean"]), rtol=1e-6)
    scales = set()
    for name in ("fog", "contrast"):
        axes = titled(figure, name)
        np.testing.assert_allclose(
            image_of(axes), full_spectrum(spectra[name].double() - spectra["clean"].double()), rtol=1e-6
        )
        low, high = axes.images[0].get_clim()
        assert low == -high
        scales.add((low, high))
        assert axes.images[0].get_cmap().name == "RdBu_r"
    assert len(scales) == 1
    assert titled(figure, "clean").images[0].get_clim() not in scales
    (bar,) = (axes for axes in figure.axes if "factor of clean" in axes.get_xlabel())
    ticks = dict(zip((tick.get_text() for tick in bar.get_xticklabels()), bar.get_xticks(), strict=True))
    assert ticks["as clean"] == 0
    assert ticks["×2"] == pytest.approx(math.log(2))
    assert ticks["÷2"] == pytest.approx(-math.log(2))
    assert "of some images" in figure.get_suptitle()


def test_frequencies_are_in_cycles_per_pixel() -> None:
    for size in (8, 9):
        figure = spectra_figure(half_spectra("clean", "fog", height=size, width=size))
        axes = titled(figure, "clean")
        assert axes.get_ylabel() == axes.get_xlabel() == "cycles per pixel"
        left, right, lower, upper = axes.images[0].get_extent()
        pixels = image_of(axes).shape[1]
        # A column of the picture is one step of 1 / size, its middle one is frequency 0.
        assert (right - left) / pixels == pytest.approx((lower - upper) / pixels) == pytest.approx(1 / size)
        assert left == -right


def test_one_extreme_frequency_does_not_make_the_others_pale() -> None:
    spectra = half_spectra("clean", "fog", "snow", height=32, width=32)
    largest = float((spectra["fog"] - spectra["clean"]).abs().max())
    spectra["fog"][0, 0] += 100
    assert titled(spectra_figure(spectra), "snow").images[0].get_clim()[1] < 2 * largest


@pytest.mark.parametrize(
    ("spectra", "message"),
    [
        ({}, "got none"),
        (half_spectra("fog", "snow"), "'clean'"),
        (half_spectra("clean"), "of a corruption"),
        ({**half_spectra("clean"), **half_spectra("fog", height=9)}, r"\(9, 5\) for 'fog'"),
        ({"clean": torch.zeros(3, 8, 5), "fog": torch.zeros(3, 8, 5)}, r"\(3, 8, 5\)"),
    ],
)
def test_bad_spectra_are_refused(spectra: dict[str, Tensor], message: str) -> None:
    with pytest.raises(DataError, match=message):
        spectra_figure(spectra)


# Confusion


def test_confusion_shows_shares_of_each_true_row() -> None:
    rows = ("clean", "fog", "snow", "frost")
    counts = torch.tensor([[6, 2, 0, 0], [0, 5, 0, 0], [1, 0, 998, 1], [0, 0, 0, 0]])
    figure = confusion_figure(counts, rows)
    axes = figure.axes[0]
    shares = image_of(axes)
    np.testing.assert_allclose(shares[:3], [[0.75, 0.25, 0, 0], [0, 1, 0, 0], [0.001, 0, 0.998, 0.001]])
    assert np.isnan(np.ma.filled(shares, np.nan)[3]).all(), "a row without images has no shares"
    places = {text.get_position(): text.get_text() for text in axes.texts}
    assert places == {(0, 0): "75", (1, 0): "25", (1, 1): "100", (2, 2): "100"}
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert tuple(tick.get_text() for tick in ticks) == rows
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true row", "detected row")
    assert "99.6% right" in figure.get_suptitle()  # 1009 of 1013


def test_rows_per_cell_are_grouped_and_not_numbered() -> None:
    rows = ("clean", *(cell.name for cell in cells_of(CORRUPTIONS, SEVERITIES)))
    axes = confusion_figure(torch.eye(96), rows).axes[0]
    assert not axes.texts
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["clean", *CORRUPTIONS]
    assert list(axes.get_yticks()[:3]) == [0, 3, 8]  # clean, then the middle of each five
    across = sorted(line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1])
    assert across == [0.5 + 5 * number for number in range(19)]
    np.testing.assert_array_equal(image_of(axes), np.eye(96))


@pytest.mark.parametrize(
    "confusion", [torch.zeros(3, 3), torch.zeros(2), torch.tensor([[1.0, -1], [0, 1]]), torch.full((2, 2), torch.nan)]
)
def test_bad_confusion_is_refused(confusion: Tensor) -> None:
    with pytest.raises(DataError, match="confusion matrix"):
        confusion_figure(confusion, ("clean", "fog"))


# Severity


def block(clean: float | None, *cells: tuple[str, float | None]) -> dict[str, Any]:
    return {
        "clean": None if clean is None else {"accuracy": clean},
        "cells": {cell: {"accuracy": accuracy} for cell, accuracy in cells},
        "mean": {"accuracy": 0.0},
    }


FALLING = block(0.9, ("fog/1", 0.8), ("fog/5", 0.4), ("snow/1", 0.6), ("snow/5", 0.3))
STEADY = block(0.88, ("fog/1", 0.8), ("fog/5", 0.7), ("snow/1", 0.8), ("snow/5", 0.6))
PROTOCOL = {"streams": ["sequential"], "model": "resnet20", "source": "cifar10", "test_images": 500}


def run(stream: str, batch_size: int = 200, **methods: dict[str, Any]) -> dict[str, Any]:
    return {"stream": stream, "batch_size": batch_size, "methods": methods}


RESULTS = {"protocol": {**PROTOCOL, "seed": 3}, "runs": [run("sequential", source=FALLING, new_method=STEADY)]}


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), round(float(y), 6)) for x, y in line.get_xydata()]
        for line in figure.axes[0].lines
    }


def test_severity_lines_are_means_over_corruptions_in_percent() -> None:
    figure = severity_figure(RESULTS)
    assert lines(figure) == {"source": [(0, 90), (1, 70), (5, 35)], "new_method": [(0, 88), (1, 80), (5, 65)]}
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["clean", "1", "5"]
    assert texts(axes) == ["source", "new_method"]
    ends = {text.get_text(): tuple(text.xy) for text in axes.texts}  # type: ignore[attr-defined]
    assert ends["source"] == pytest.approx((5, 35))
    assert len({line.get_color() for line in axes.lines}) == len({line.get_marker() for line in axes.lines}) == 2
    title = figure.get_suptitle()
    for said in ("2 corruptions", "resnet20 on cifar10", "500 test images", "sequential stream", "200", "seed 3"):
        assert said in title


def test_a_stream_is_taken_by_name() -> None:
    runs = [run("sequential", source=FALLING), run("mixed", source=STEADY), run("mixed", 16, source=FALLING)]
    results = {"protocol": {**PROTOCOL, "seeds": [0, 1]}, "runs": runs}
    assert lines(severity_figure(results))["source"][-1] == (5, 65), "mixed is preferred"
    assert lines(severity_figure(results, "sequential"))["source"][-1] == (5, 35)
    assert "seeds 0, 1" in severity_figure(results).get_suptitle()
    with pytest.raises(DataError, match="did you mean 'mixed'"):
        severity_figure(results, "mixd")
    with pytest.raises(DataError, match="stream 'mixed'"):
        severity_figure(RESULTS, "mixed")


def test_without_clean_images_lines_begin_at_the_first_severity() -> None:
    results = {"protocol": PROTOCOL, "runs": [run("sequential", source={**FALLING, "clean": None})]}
    assert lines(severity_figure(results)) == {"source": [(1, 70), (5, 35)]}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "no corrupted cells"),
        ([("fog/1", 0.5), ("fog/5", 0.5), ("snow/5", 0.5)], "same corruptions"),
        ([("fog/1", 0.5), ("fog/5", None)], "no accuracy for fog/5"),
    ],
)
def test_results_without_a_mean_over_corruptions_are_refused(
    cells: list[tuple[str, float | None]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        severity_figure({"protocol": PROTOCOL, "runs": [run("mixed", source=block(0.9, *cells))]})
    with pytest.raises(DataError, match="no results"):
        severity_figure({"protocol": PROTOCOL, "runs": []})


def test_labels_stay_apart_and_near_their_lines() -> None:
    assert spread([3.0, 1.0], 1, 0, 9) == [3.0, 1.0]
    assert spread([5.0, 5.2, 1.0, 5.1], 1, 0, 9) == pytest.approx([4.1, 6.1, 1.0, 5.1])
    assert spread([0.1, 0.0], 1, 0, 9) == [1.0, 0.0], "not below the lowest"
    assert spread([9.0, 9.0], 1, 0, 9) == [8.0, 9.0], "not above the highest"
    near = {f"method {number}": block(0.9, ("fog/1", 0.5 + number / 1000)) for number in range(9)}
    figure = severity_figure({"protocol": PROTOCOL, "runs": [run("mixed", **near)]})
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    for lower, upper in pairwise(boxes):
        assert lower.y1 <= upper.y0 + 1
    assert all(figure.bbox.x1 >= box.x1 and box.y0 >= 0 for box in boxes)


# Reliability


def test_reliability_points_gaps_and_numbers_of_images() -> None:
    confidences = torch.tensor([0.1, 0.3, 0.95, 0.85, 0.9, 1.0])
    correct = torch.tensor([False, True, True, False, True, True])
    figure = reliability_figure(confidences, correct, bins=5)
    upper, lower = figure.axes
    diagonal, points = upper.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    np.testing.assert_allclose(points.get_xydata(), [[0.1, 0], [0.3, 1], [0.925, 0.75]], rtol=1e-6)
    (gaps,) = (found for found in upper.collections if isinstance(found, LineCollection))
    ends = [sorted(segment[:, 1]) for segment in gaps.get_segments()]
    np.testing.assert_allclose(ends, [[0, 0.1], [0.3, 1], [0.75, 0.925]], rtol=1e-6)
    assert [bar.get_height() for bar in lower.patches] == [1, 1, 0, 0, 4]
    assert texts(lower) == ["1", "1", "4"]
    # By hand: (1 * 0.1 + 1 * 0.7 + 4 * 0.175) / 6
    assert "calibration error 0.250" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("confidences", "correct", "bins"),
    [
        (torch.rand(3), torch.ones(4), 15),
        (torch.rand(3, 2), torch.ones(3, 2), 15),
        (torch.rand(0), torch.ones(0), 15),
        (torch.tensor([1.2]), torch.ones(1), 15),
        (torch.tensor([math.nan]), torch.ones(1), 15),
        (torch.rand(2), torch.tensor([0.5, 1]), 15),
        (torch.rand(2), torch.ones(2), 0),
    ],
)
def test_bad_confidences_are_refused(confidences: Tensor, correct: Tensor, bins: int) -> None:
    with pytest.raises(DataError, match=r"expected|confidences|correct"):
        reliability_figure(confidences, correct, bins)


# Cost


def test_cost_points_are_labelled_and_in_percent() -> None:
    figure = cost_figure({"source": (1.5, 0.6), "dynamic_bn": (3.0, 0.75), "mine": (9.0, 0.7)}, caption="one core")
    points = {str(line.get_label()): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert points == {"source": [[1.5, 60]], "dynamic_bn": [[3, 75]], "mine": [[9, 70]]}
    assert texts(figure.axes[0]) == ["source", "dynamic BN", "mine"]
    assert "one core" in figure.get_suptitle()
    assert figure.axes[0].get_xscale() == "linear"


def test_times_far_apart_are_on_a_logarithmic_scale_with_plain_numbers() -> None:
    axes = cost_figure({"source": (0.2, 0.6), "tent": (3.0, 0.75)}).axes[0]
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.2", "0.5", "1", "2"]
    assert round_numbers(0.9, 4000) == [1, 10, 100, 1000]


@pytest.mark.parametrize("numbers", [(0.0, 0.5), (-1.0, 0.5), (math.inf, 0.5), (1.0, math.nan)])
def test_bad_costs_are_refused(numbers: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="'tent' took"):
        cost_figure({"tent": numbers})
    with pytest.raises(DataError, match="no methods"):
        cost_figure({})


# All


def all_figures() -> list[Figure]:
    return [
        spectra_figure(half_spectra("clean", "fog")),
        confusion_figure(torch.eye(2), ("clean", "fog")),
        severity_figure(RESULTS),
        reliability_figure(torch.rand(20), torch.ones(20)),
        cost_figure({"source": (1.0, 0.6), "tent": (3.0, 0.7)}),
    ]


def test_figures_render_and_leave_pyplot_alone() -> None:
    backend = plt.get_backend()
    for figure in all_figures():
        file = BytesIO()
        figure.savefig(file, format="png")
        assert plt.imread(file.seek(0) or file).std() > 0.05
        assert figure.get_figwidth() * figure.dpi <= 1000, "as wide as the column of a README"
    assert plt.get_fignums() == []
    assert plt.get_backend() == backend


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DynBNError, match=r'pip install "dynbn-lightning\[report\]"'):
        severity_figure(RESULTS)
