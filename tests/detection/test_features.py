import pytest
import torch

from dynbn_lightning.detection.detail import log_detail
from dynbn_lightning.detection.features import corruption_features, num_features, opponent_channels
from dynbn_lightning.detection.spectrum import log_amplitude_spectrum


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
    torch.testing.assert_close(features[:, 3:], log_amplitude_spectrum(log_detail(opponents)))


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
