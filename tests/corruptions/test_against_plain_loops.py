"""Each building block against an independent reference: plain float64 loops, scipy, Pillow, colorsys."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sample_pictures import pictures
from scipy import ndimage

from dynbn_lightning.corruptions import PRESETS, SEVERITIES, corrupt
from dynbn_lightning.corruptions.blur import disk_kernel, glass_blur
from dynbn_lightning.corruptions.color import from_hsv, to_hsv
from dynbn_lightning.corruptions.digital import elastic_transform
from dynbn_lightning.corruptions.drops import distances, edges, equalize
from dynbn_lightning.corruptions.filters import blur_gaussian
from dynbn_lightning.corruptions.geometry import sample_bilinear, zoom_centre
from dynbn_lightning.corruptions.noise import impulse_noise, shot_noise
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.weather import plasma_fractal

CPU = torch.device("cpu")


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(count, CPU, seeds=range(seed, seed + count))


@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.3, 20.0])
def test_gaussian_blur_is_scipys(sigma: float, border: str) -> None:
    for height, width in ((33, 20), (90, 120)):
        images = pictures(2, 3, height, width)
        expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode=border, truncate=3.0)
        for levels in (images, images.float()):
            made = blur_gaussian(levels, sigma, 3.0, border)  # type: ignore[arg-type]
            assert np.abs(made.numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("preset", ["cifar", "tiny_imagenet", "imagenet"])
def test_defocus_is_a_correlation_with_the_disk(preset: str) -> None:
    images = pictures(1, 3, 40, 31)
    for severity in SEVERITIES:
        kernel = disk_kernel(*PRESETS[preset].constants("defocus_blur", severity))
        # A disk that touches the border of its grid gains a little when its rim is smoothed there, as published.
        assert kernel.sum() == pytest.approx(1.0, abs=0.02 if preset == "imagenet" else 1e-12)
        assert np.allclose(kernel, kernel.T, rtol=0, atol=1e-15)
        assert np.allclose(kernel, kernel[::-1], rtol=0, atol=1e-15)
        made = corrupt(images.float() / 255, "defocus_blur", severity, preset, quantize=False)
        expected = ndimage.correlate(images.double().numpy() / 255, kernel[None, None], mode="mirror").clip(0, 1)
        assert np.abs(made.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.25, 2.25, 4.5])
def test_zooming_is_scipys(factor: float) -> None:
    images = pictures(2, 3, 33, 47).double().numpy() / 255
    crops = [math.ceil(size / factor) for size in (33, 47)]
    tops = [(size - crop) // 2 for size, crop in zip((33, 47), crops, strict=True)]
    crop = images[:, :, tops[0] : tops[0] + crops[0], tops[1] : tops[1] + crops[1]]
    zoomed = ndimage.zoom(crop, (1, 1, factor, factor), order=1)
    trims = [(zoomed.shape[2] - 33) // 2, (zoomed.shape[3] - 47) // 2]
    expected = zoomed[:, :, trims[0] : trims[0] + 33, trims[1] : trims[1] + 47]
    assert np.abs(zoom_centre(torch.from_numpy(images).float(), factor).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("border", ["reflect", "mirror"])
def test_bilinear_sampling_is_scipys(border: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((9, 12))
    rows, columns = rng.uniform(-20, 30, (2, 14, 15))
    expected = ndimage.map_coordinates(image, (rows, columns), order=1, mode=border)
    positions = (torch.from_numpy(part)[None].float() for part in (rows, columns))
    made = sample_bilinear(torch.from_numpy(image)[None, None].float(), *positions, border)  # type: ignore[arg-type]
    assert np.abs(made[0, 0].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize(("reach", "sweeps"), [(1, 1), (1, 3), (2, 2), (4, 2)])
def test_glass_is_the_copying_of_near_pixels_one_after_the_other(reach: int, sweeps: int) -> None:
    height, width = 19, 24
    images = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(0)).mul(255).floor().div(255)
    made = glass_blur(images, draws(2), 0.01, reach, sweeps)
    expected = images.numpy().copy()
    again = draws(2)
    for _ in range(sweeps):
        offsets = again.integers(-reach, reach, (2, height - 2 * reach, width - 2 * reach))
        for image in range(2):
            for i, row in enumerate(range(height - reach, reach, -1)):
                for j, column in enumerate(range(width - reach, reach, -1)):
                    down, right = offsets[image, :, -1 - i, -1 - j].tolist()
                    expected[image, :, row, column] = expected[image, :, row + down, column + right]
    assert np.abs(made.numpy() - expected).max() < 1e-6


def test_glass_offsets_are_uniform_and_leave_out_the_upper_end() -> None:
    offsets = draws(50).integers(-2, 2, (2, 30, 30))
    assert offsets.unique().tolist() == [-2, -1, 0, 1]
    assert offsets.double().mean() == pytest.approx(-0.5, abs=0.02)


def test_elastic_is_an_affine_warp_and_then_a_displacement() -> None:
    height, width = 36, 45
    strength, smoothness, jitter = 3.2, 1.28, 1.6
    images = pictures(2, 3, height, width).double() / 255
    made = elastic_transform(images.float(), draws(2), strength, smoothness, jitter)
    again = draws(2)
    moves = again.uniform((3, 2), -jitter, jitter).double().numpy()
    fields = again.uniform((2, height, width), -1.0, 1.0).double().numpy()
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    half = min(height, width) // 3
    middle = np.array([width // 2, height // 2], dtype=float)
    corners = np.stack([middle + half, middle + np.array([half, -half]), middle - half])
    for image in range(2):
        moved = corners + moves[image]
        # Solve for the affine map from the moved corners back to the corners.
        system = np.concatenate([moved, np.ones((3, 1))], axis=1)
        back = np.linalg.solve(system, corners)
        source = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
        source = np.floor(source * 32 + 0.5) / 32
        field = (
            ndimage.gaussian_filter(fields[image], (0, smoothness, smoothness), mode="reflect", truncate=3.0) * strength
        )
        for channel in range(3):
            tilted = ndimage.map_coordinates(
                images[image, channel].numpy(), (source[..., 1], source[..., 0]), order=1, mode="mirror"
            )
            expected = ndimage.map_coordinates(tilted, (rows + field[0], columns + field[1]), order=1, mode="reflect")
            # A position a hair's breadth from a 64th of a pixel may be rounded either way.
            assert np.mean(np.abs(made[image, channel].numpy() - expected) > 1e-4) < 0.001


def test_hsv_is_colorsys() -> None:
    images = pictures(2, 3, 8, 9).double() / 255
    images[0, :, 0] = 0.25
    images[0, :, 1] = 0.0
    hue, saturation, value = to_hsv(images)
    for image, row, column in np.ndindex(2, 8, 9):
        expected = colorsys.rgb_to_hsv(*images[image, :, row, column].tolist())
        made = (hue[image, row, column], saturation[image, row, column], value[image, row, column])
        assert made == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(from_hsv(hue, saturation, value), images, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", ["cifar", "imagenet"])
def test_pixelate_and_jpeg_are_pillows(preset: str, channels: int) -> None:
    images = pictures(2, channels, 47, 32)
    for severity in SEVERITIES:
        (factor,) = PRESETS[preset].constants("pixelate", severity)
        (quality,) = PRESETS[preset].constants("jpeg_compression", severity)
        pixelated = corrupt(images, "pixelate", severity, preset)
        compressed = corrupt(images, "jpeg_compression", severity, preset)
        for image in range(2):
            pillow = Image.fromarray(images[image].movedim(0, -1).numpy().squeeze())
            small = pillow.resize((int(32 * factor), int(47 * factor)), Image.Resampling.BOX)
            expected = np.asarray(small.resize((32, 47), Image.Resampling.BOX))
            assert np.array_equal(pixelated[image].movedim(0, -1).numpy().squeeze(), expected)
            file = io.BytesIO()
            pillow.save(file, "JPEG", quality=int(quality))
            difference = compressed[image].movedim(0, -1).numpy().squeeze().astype(int) - np.asarray(Image.open(file))
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_shrinks_about_the_mean_of_each_channel(severity: int) -> None:
    images = pictures(3, 3, 21, 40).double() / 255
    (factor,) = PRESETS["cifar"].constants("contrast", severity)
    mean = images.mean(dim=(2, 3), keepdim=True)
    made = corrupt(images, "contrast", severity, quantize=False)
    assert (made - ((images - mean) * factor + mean).clamp(0, 1)).abs().max() < 1e-6


def test_a_plasma_fractal_is_built_square_by_square() -> None:
    size, decay = 16, 1.75
    made = plasma_fractal(draws(1), size, decay)[0].double().numpy()
    heights = np.zeros((size, size))
    again, step, wobble = draws(1), size, 100.0
    while step >= 2:
        cells, half = size // step, step // 2
        displacement = again.uniform((3, cells, cells), -1.0, 1.0)[0].double().numpy() * wobble**2
        for i, row in enumerate(range(0, size, step)):
            for j, column in enumerate(range(0, size, step)):
                corners = [heights[(row + a) % size, (column + b) % size] for a in (0, step) for b in (0, step)]
                heights[row + half, column + half] = np.mean(corners) + displacement[0, i, j]
        before = heights.copy()
        for i, row in enumerate(range(0, size, step)):
            for j, column in enumerate(range(0, size, step)):
                for which, (y, x) in enumerate([(row, column + half), (row + half, column)], start=1):
                    around = [
                        before[(y + a) % size, (x + b) % size]
                        for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))
                    ]
                    heights[y, x] = np.mean(around) + displacement[which, i, j]
        assert np.abs(displacement).max() <= wobble**2
        step, wobble = half, wobble / decay
    assert step == 1
    heights = (heights - heights.min()) / (heights.max() - heights.min())
    assert np.abs(made - heights).max() < 1e-5


@pytest.mark.parametrize("photons", [3.0, 60.0, 500.0])
def test_shot_noise_has_the_moments_of_a_poisson_number(photons: float) -> None:
    counts = draws(20).poisson(torch.full((20, 3, 32, 32), 0.3 * photons))
    assert counts.mean() == pytest.approx(0.3 * photons, rel=0.02)
    assert counts.var() == pytest.approx(0.3 * photons, rel=0.03)
    assert torch.equal(counts, counts.round())
    noisy = shot_noise(torch.full((2, 3, 8, 8), 0.3), draws(2), photons)
    assert torch.allclose((noisy * photons).round(), noisy * photons, atol=1e-3)


def test_impulses_are_half_salt_and_half_pepper() -> None:
    made = impulse_noise(torch.full((20, 3, 32, 32), 0.5), draws(20), 0.27)
    assert (made == 1).double().mean() == pytest.approx(0.135, abs=0.006)
    assert (made == 0).double().mean() == pytest.approx(0.135, abs=0.006)
    assert (made == 0.5).double().mean() == pytest.approx(0.73, abs=0.008)


def plain_canny(levels: np.ndarray, low: int, high: int) -> np.ndarray:
    height, width = levels.shape
    padded = np.pad(levels.astype(int), 1, mode="edge")
    smooth, slope = np.array([1, 2, 1]), np.array([-1, 0, 1])
    dx, dy = np.zeros((2, height, width), dtype=int)
    for row in range(height):
        for column in range(width):
            around = padded[row : row + 3, column : column + 3]
            dx[row, column], dy[row, column] = smooth @ around @ slope, slope @ around @ smooth
    size = np.pad(np.abs(dx) + np.abs(dy), 1)
    crest = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            x, y, here = abs(dx[row, column]), abs(dy[row, column]), size[row + 1, column + 1]
            if y < math.tan(math.pi / 8) * x:
                keeps = here > size[row + 1, column] and here >= size[row + 1, column + 2]
            elif y > math.tan(3 * math.pi / 8) * x:
                keeps = here > size[row, column + 1] and here >= size[row + 2, column + 1]
            else:
                side = -1 if (dx[row, column] < 0) != (dy[row, column] < 0) else 1
                keeps = here > size[row, column + 1 - side] and here > size[row + 2, column + 1 + side]
            crest[row, column] = keeps and here > low
    strong = crest & (size[1:-1, 1:-1] > high)
    labels, _ = ndimage.label(crest, np.ones((3, 3)))
    return np.isin(labels, labels[strong]) & crest


def test_edges_are_cannys() -> None:
    noise = np.random.default_rng(0).normal(0.6, 0.6, (4, 30, 41))
    levels = np.clip(ndimage.gaussian_filter(noise, (0, 1.5, 1.5)) * 255, 0, 255).astype(np.uint8)
    levels[levels < 150] = 0
    made = edges(torch.from_numpy(levels).float().unsqueeze(1), 50, 150)
    for image in range(4):
        expected = plain_canny(levels[image], 50, 150)
        assert expected.any()
        assert np.array_equal(made[image, 0].numpy(), expected)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.05])
def test_distances_are_nearly_euclidean_and_capped(share: float) -> None:
    marked = np.random.default_rng(1).random((3, 40, 33)) < share
    made = distances(torch.from_numpy(marked).to(torch.uint8).unsqueeze(1))[:, 0].numpy()
    for image in range(3):
        exact = ndimage.distance_transform_edt(~marked[image]) if marked[image].any() else np.full((40, 33), 20.0)
        expected = np.minimum(exact, 20)
        assert np.abs(made[image] - expected).max() <= 0.025 * 20
        assert np.array_equal(made[image] == 0, marked[image])


def test_equalizing_spreads_a_histogram_and_leaves_flat_images() -> None:
    levels = torch.tensor([[0.0, 0.0, 1.0, 3.0], [5.0] * 4]).view(2, 1, 2, 2)
    assert equalize(levels, 20).view(2, 4).tolist() == [[0.0, 0.0, 128.0, 255.0], [5.0] * 4]
