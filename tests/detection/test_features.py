import numpy as np
import pytest
import scipy.fft
import torch

from dynbn_lightning.detection.detail import DETAIL_FLOOR, detail, log_detail
from dynbn_lightning.detection.features import corruption_features, num_features, opponent_channels, split_features
from dynbn_lightning.detection.histograms import DETAIL_EDGES, LEVEL_EDGES, MASS_FLOOR
from dynbn_lightning.detection.spectrum import QUANTISATION_NOISE, log_amplitude_spectrum


def quantised(shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255


def test_opponent_channels_of_gray_are_brightness_alone():
    gray = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    expected = torch.cat([gray[:, :1], torch.zeros(2, 2, 4, 4)], dim=1)
    torch.testing.assert_close(opponent_channels(gray), expected, atol=1e-6, rtol=0)
    red_only = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(opponent_channels(red_only).flatten(), torch.tensor([1 / 3, 1 / 2, 1 / 4]))
    assert torch.equal(opponent_channels(gray[:, :1]), gray[:, :1])


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 10), (4, 40, 33), (3, 224, 224)])
def test_length(channels, height, width):
    features = corruption_features(quantised((2, channels, height, width)))
    assert features.shape == (2, num_features(channels, height, width))
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_two_spectra_come_first():
    images = quantised((2, 3, 32, 32))
    features = corruption_features(images)[:, : 6 * 32 * 17].view(2, 6, 32, 17)
    opponents = opponent_channels(images)
    torch.testing.assert_close(features[:, :3], log_amplitude_spectrum(opponents))
    expected = log_amplitude_spectrum(log_detail(detail(opponents.double())))
    torch.testing.assert_close(features[:, 3:].double(), expected, atol=5e-3, rtol=0)


def second_differences(image):
    for axis in (1, 2):
        image = np.roll(image, 1, axis) + np.roll(image, -1, axis) - 2 * image
    return image / 4


def reference(image, row_starts, column_starts, size=32):
    """The features of one RGB image by float64 numpy, tile by tile."""
    spectra, detail_spectra, levels, details = [], [], [], []
    for top in row_starts:
        for left in column_starts:
            tile = np.round(image[:, top : top + size, left : left + size] * 255)
            red, green, blue = tile / 255
            opponents = np.stack([(red + green + blue) / 3, (red - blue) / 2, (red - 2 * green + blue) / 4])
            rough = np.log(np.abs(second_differences(opponents)) + DETAIL_FLOOR)
            for values, found in ((opponents, spectra), (rough, detail_spectra)):
                amplitude = np.abs(scipy.fft.fftshift(scipy.fft.fft2(values, norm="ortho"), axes=1))
                found.append(np.log(amplitude[:, :, : size // 2 + 1] + QUANTISATION_NOISE))
            levels.append(tile.reshape(3, -1))
            details.append(np.abs(second_differences(tile)).reshape(3, -1))
    parts = [np.mean(spectra, axis=0).ravel(), np.mean(detail_spectra, axis=0).ravel()]
    for values, edges in ((levels, LEVEL_EDGES), (details, DETAIL_EDGES)):
        for channel in np.concatenate(values, axis=1):
            counts, _ = np.histogram(channel, bins=[-np.inf, *edges, np.inf])
            parts.append(np.log(counts / channel.size + MASS_FLOOR))
    return np.concatenate(parts)


@pytest.mark.parametrize(
    ("height", "width", "row_starts", "column_starts"),
    [(32, 32, [0], [0]), (40, 64, [0, 8], [0, 32]), (224, 100, [0, 64, 128, 192], [0, 23, 45, 68])],
)
def test_equals_the_reference(height, width, row_starts, column_starts):
    images = quantised((3, 3, height, width)).double()
    images[1] = (images[1] * 0.3 + 0.5).mul(255).round() / 255
    features = corruption_features(images)
    for image, found in zip(images.numpy(), features.numpy(), strict=True):
        np.testing.assert_allclose(found, reference(image, row_starts, column_starts), atol=1e-6)
    # Amplitudes near 0 lose digits to cancellation; the floor bounds what the logarithm makes of it.
    np.testing.assert_allclose(corruption_features(images.float()), features, atol=5e-3)


@pytest.mark.parametrize(("count", "size"), [(150, 32), (9, 128)])
def test_images_do_not_depend_on_what_they_are_computed_with(count, size):
    images = quantised((count, 3, size, size))
    features = corruption_features(images)
    torch.testing.assert_close(features[-3:], corruption_features(images[-3:]), atol=1e-5, rtol=1e-5)


def test_compiles_whole_and_changes_nothing():
    images = quantised((4, 3, 40, 40))
    compiled = torch.compile(corruption_features, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), corruption_features(images), atol=1e-5, rtol=1e-5)


def test_random_tiles_are_other_tiles_of_large_images_only():
    images = quantised((2, 3, 100, 100))
    fixed = corruption_features(images)
    assert torch.equal(fixed, corruption_features(images))
    assert not torch.equal(fixed, corruption_features(images, random_tiles=True))
    small = images[:, :, :32, :32]
    assert torch.equal(corruption_features(small), corruption_features(small, random_tiles=True))


def test_noise_has_the_same_features_at_any_size():
    """A feature means the same at 32 and 224 px, up to the spread of a single tile."""
    small, large = (corruption_features(quantised((50, 3, size, size))).mean(0) for size in (32, 224))
    spectra, histograms = split_features(torch.stack([small, large]), 3, 32, 32)
    assert spectra.shape == (2, 6, 32, 17)
    assert histograms.shape == (2, 3 * (18 + 16))
    spectra[:, :, 16, 0] = 0  # the mean of the image, from one number in each tile
    assert (spectra[0] - spectra[1]).abs().max() < 0.8
    assert (spectra[0] - spectra[1]).abs().mean() < 0.08
    assert (histograms[0] - histograms[1]).abs().mean() < 0.04


def test_extreme_images_are_finite():
    for value in (0.0, 0.5, 1.0):
        assert corruption_features(torch.full((1, 3, 32, 32), value)).isfinite().all()


def test_autocast_changes_nothing_and_double_little():
    images = quantised((4, 3, 32, 32))
    features = corruption_features(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(corruption_features(images), features)
    double = corruption_features(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(features.double(), double, atol=5e-3, rtol=1e-3)


def test_what_half_precision_and_a_normalisation_did_to_pixels_is_undone():
    images = quantised((4, 3, 32, 32))
    normalised = ((images - 0.449) / 0.226).half()
    restored = normalised.float() * 0.226 + 0.449
    assert not torch.equal(restored, images)
    assert torch.equal(corruption_features(restored), corruption_features(images))
