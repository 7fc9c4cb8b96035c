import math

import numpy as np
import pytest
import scipy.fft
import torch

from dynbn_lightning.detection.spectrum import QUANTISATION_NOISE, log_amplitude_spectrum
from dynbn_lightning.errors import DetectorError


def reference(images: np.ndarray) -> np.ndarray:
    """The whole complex transform in float64, shifted and cut by hand."""
    height, width = images.shape[-2:]
    amplitude = np.abs(scipy.fft.fft2(images.astype(np.float64), norm="ortho"))
    rows = [(row - height // 2) % height for row in range(height)]
    return np.log(amplitude[..., rows, : width // 2 + 1] + QUANTISATION_NOISE)


@pytest.mark.parametrize("size", [(32, 32), (7, 9), (6, 12), (33, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_reference_transform(size, dtype):
    images = torch.rand(3, 2, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))
    spectrum = log_amplitude_spectrum(images)
    assert spectrum.dtype == dtype
    assert spectrum.shape == (3, 2, size[0], size[1] // 2 + 1)
    # Amplitudes near 0 lose digits to cancellation; the floor bounds what the logarithm makes of it.
    np.testing.assert_allclose(
        spectrum.numpy(), reference(images.numpy()), atol=2e-3 if dtype == torch.float32 else 1e-9
    )


def test_a_wave_stands_at_its_frequency():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    wave = 0.5 + 0.5 * torch.cos(2 * math.pi * (5 * y + 3 * x) / 32)
    spectrum = log_amplitude_spectrum(wave.expand(1, 1, 32, 32))[0, 0]
    spectrum[16, 0] = -math.inf  # the mean
    assert divmod(int(spectrum.argmax()), 17) == (16 + 5, 3)
    assert spectrum.max().exp() == pytest.approx(0.25 * 32, rel=1e-3)


def test_the_floor_is_what_rounding_to_8_bits_leaves():
    values = torch.rand(64, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rounding_error = (values * 255).round() / 255 - values
    amplitude = torch.fft.fft2(rounding_error, norm="ortho").abs()
    assert amplitude.square().mean().sqrt() == pytest.approx(QUANTISATION_NOISE, rel=0.02)


def test_flat_images_are_finite_and_at_the_floor():
    spectrum = log_amplitude_spectrum(torch.full((1, 3, 8, 8), 0.5))
    assert spectrum[0, 0, 4, 0] == pytest.approx(math.log(4.0 + QUANTISATION_NOISE))
    spectrum[:, :, 4, 0] = math.log(QUANTISATION_NOISE)
    torch.testing.assert_close(spectrum, torch.full_like(spectrum, math.log(QUANTISATION_NOISE)), atol=1e-3, rtol=0)


def test_autocast_changes_nothing():
    images = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = log_amplitude_spectrum(images)
    assert torch.equal(inside, log_amplitude_spectrum(images))
    assert log_amplitude_spectrum(images.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    "images", [torch.rand(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(0, 3, 8, 8)]
)
def test_refuses_what_has_no_spectrum(images):
    with pytest.raises(DetectorError, match="floating-point images of shape"):
        log_amplitude_spectrum(images)
