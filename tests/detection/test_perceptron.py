import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynbn_lightning.detection import SpectrumPerceptron
from dynbn_lightning.errors import DetectorError


def quantised(shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255


def smooth_or_noisy(count, seed):
    """Images of two kinds that differ in their spectrum alone: their pixels have the same mean and deviation."""
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 2
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    images = torch.where(labels.view(-1, 1, 1, 1) == 1, blurred, images)
    images = (images - images.mean(dim=(1, 2, 3), keepdim=True)) / images.std(dim=(1, 2, 3), keepdim=True)
    return ((0.5 + 0.15 * images).clamp(0, 1) * 255).round() / 255, labels


def test_learns_what_only_the_spectrum_shows():
    torch.manual_seed(0)
    network = SpectrumPerceptron(2, 16, hidden=16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    images, labels = smooth_or_noisy(64, seed=1)
    for _ in range(30):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = smooth_or_noisy(200, seed=2)
    assert (network.eval()(images).argmax(1) == labels).float().mean() > 0.97


@pytest.mark.parametrize("size", [8, 32, 33, 224])
def test_any_size_and_less_than_5_megabytes(size):
    network = SpectrumPerceptron(96, size).eval()
    assert network(quantised((2, 3, size, size))).shape == (2, 96)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    assert buffer.tell() < 5 * 2**20


def test_has_no_batch_norm_to_be_mistaken_for_the_models():
    assert not any("BatchNorm" in type(module).__name__ for module in SpectrumPerceptron(3, 8).modules())
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in SpectrumPerceptron(3, 8).modules())


def test_each_image_is_judged_alone_and_rounding_errors_of_a_normalisation_do_not_matter():
    network = SpectrumPerceptron(5, 32)
    network(quantised((16, 3, 32, 32)))  # gathers statistics: it is in training mode
    network.eval()
    images = quantised((8, 3, 32, 32), seed=1)
    logits = network(images)
    torch.testing.assert_close(logits[3:4], network(images[3:4]), atol=1e-5, rtol=1e-5)
    mean, std = 0.449, 0.226
    there_and_back = ((images - mean) / std) * std + mean
    assert not torch.equal(there_and_back, images)
    assert torch.equal(network(there_and_back), logits)


def test_same_logits_under_autocast_but_for_its_rounding_and_in_double():
    network = SpectrumPerceptron(5, 32).eval()
    images = quantised((8, 3, 32, 32))
    logits = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(network(images).float(), logits, atol=0.05, rtol=0.05)
    torch.testing.assert_close(network.double()(images.double()).float(), logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 31, 32), r"shape \(N, 3, 32, 32\).*\(2, 3, 31, 32\)"),
        (torch.rand(2, 1, 32, 32), r"got \(2, 1, 32, 32\)"),
        (torch.rand(3, 32, 32), r"got \(3, 32, 32\)"),
        (torch.rand(0, 3, 32, 32), "at least 1"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "floating-point.*uint8"),
        (torch.randn(2, 3, 32, 32), "before the model's normalisation"),
        (torch.rand(2, 3, 32, 32) * 255, "before the model's normalisation"),
        (torch.full((2, 3, 32, 32), torch.nan), "nan"),
    ],
)
def test_refuses_images_it_was_not_made_for(images, message):
    with pytest.raises(DetectorError, match=message):
        SpectrumPerceptron(4, 32)(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 1, "image_size": 32}, "num_rows"),
        ({"num_rows": 2, "image_size": 1}, "image_size"),
        ({"num_rows": 2, "image_size": 8, "channels": 0}, "channels"),
        ({"num_rows": 2, "image_size": 8, "hidden": 0}, "hidden"),
        ({"num_rows": 2, "image_size": 8, "dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(DetectorError, match=message):
        SpectrumPerceptron(**arguments)
