import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynbn_lightning.detection import NearestPrototype, corruption_features
from dynbn_lightning.detection.prototype import BANDS, EVIDENCE_POWER, SCALES, SHRINKAGE
from dynbn_lightning.errors import DetectorError

SIZE = 16
ROWS = 4


def images_of(rows, seed=0):
    """Textures of random smoothness and strength, which differ between rows in both."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(rows), 3, SIZE, SIZE, generator=generator)
    smooth = F.avg_pool2d(F.pad(noise, (1, 1, 1, 1), mode="circular"), 3, stride=1)
    part = (rows / ROWS + 0.3 * torch.rand(len(rows), generator=generator)).clamp(max=1).view(-1, 1, 1, 1)
    strength = 0.05 + 0.2 * torch.rand(len(rows), 1, 1, 1, generator=generator)
    images = 0.5 + strength * (part * smooth + (1 - part) * noise)
    return (images.clamp(0, 1) * 255).round() / 255


def some(count=120, seed=0):
    rows = torch.arange(count) % ROWS
    return images_of(rows, seed), rows


def bin_edges(length, bins):
    return [(number * length // bins, -(-(number + 1) * length // bins)) for number in range(bins)]


def banded(images):
    """The features by a plain loop over bands, float64."""
    features = corruption_features(images.double()).numpy()
    spectra = features[:, : 6 * SIZE * (SIZE // 2 + 1)].reshape(-1, 6, SIZE, SIZE // 2 + 1)
    means = [
        spectra[:, :, top:bottom, left:right].mean((2, 3))
        for top, bottom in bin_edges(SIZE, BANDS[0])
        for left, right in bin_edges(SIZE // 2 + 1, BANDS[1])
    ]
    return np.concatenate([np.stack(means, axis=2).reshape(len(images), -1), features[:, spectra[0].size :]], axis=1)


def reference(images, rows, tested):
    """Means, covariance and half squared distances in float64, straight from their definitions."""
    features, rows = banded(images), rows.numpy()
    means = np.stack([features[rows == row].mean(0) for row in range(ROWS)])
    around = features - means[rows]
    covariance = around.T @ around / len(rows)
    shrunk = covariance.copy()
    off = ~np.eye(len(shrunk), dtype=bool)
    shrunk[off] *= 1 - SHRINKAGE
    diagonal = np.maximum(np.sqrt(np.diag(covariance)), 1e-3)
    shrunk[~off] = diagonal**2
    precision = np.linalg.inv(shrunk)
    distances = np.empty((len(tested), ROWS))
    for image, own in enumerate(banded(tested)):
        for row in range(ROWS):
            offset = own - means[row]
            distances[image, row] = offset @ precision @ offset / 2
    return means, covariance, distances


def gathered(images, rows, batches):
    network = NearestPrototype(ROWS, SIZE)
    for chosen in torch.arange(len(rows)).split(batches):
        network.gather(images[chosen], rows[chosen])
    return network.eval()


def test_equals_the_definitions():
    images, rows = some(300)
    tested, _ = some(10, seed=1)
    means, covariance, distances = reference(images, rows, tested)
    network = gathered(images, rows, 300)
    np.testing.assert_allclose(network.means, means, atol=1e-3)
    np.testing.assert_allclose(network.covariance, covariance, atol=1e-3)
    assert network.scale == 1
    np.testing.assert_allclose(network(tested).double(), -distances, rtol=0.02)
    double = NearestPrototype(ROWS, SIZE).double()
    double.gather(images.double(), rows)
    np.testing.assert_allclose(double(tested.double()), -distances, rtol=1e-6)


def test_batches_and_order_do_not_matter():
    images, rows = some(200)
    images, rows = images[10:], torch.cat([rows[10:100], rows[100:] * 0])  # rows of unlike size
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    whole = gathered(images, rows, len(rows))
    parts = gathered(images[shuffled], rows[shuffled], [1, 60, 2, 127])
    assert torch.equal(whole.counts, parts.counts)
    assert torch.equal(whole.counts, torch.bincount(rows))
    torch.testing.assert_close(whole.means, parts.means, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.covariance, parts.covariance, atol=1e-4, rtol=1e-3)


def test_the_scale_is_what_the_batches_before_it_was_gathered_say():
    images, rows = some(400)
    parts = torch.arange(400).split(100)
    network = NearestPrototype(ROWS, SIZE)
    losses = np.zeros(len(SCALES))
    for number, part in enumerate(parts):
        if number:
            halves = torch.from_numpy(reference(images[: 100 * number], rows[: 100 * number], images[part])[2])
            new = [float(F.cross_entropy(-scale * halves, rows[part], reduction="sum")) for scale in SCALES]
            losses += (100 * (number + 1)) ** EVIDENCE_POWER * np.array(new)
        network.gather(images[part], rows[part])
    # In the network each batch weighs less as more are gathered; together that is a power of the images so far,
    # up to a factor common to all.
    np.testing.assert_allclose(network.losses / network.losses[-1], losses / losses[-1], rtol=0.02)
    assert network.scale == pytest.approx(SCALES[int(losses.argmin())])
    assert network.scale < 1  # so it does move
    tested, _ = some(10, seed=1)
    distances = reference(images, rows, tested)[2]
    np.testing.assert_allclose(network(tested).double(), -distances * float(network.scale), rtol=0.02)


def test_recognises_rows_on_images_it_has_not_seen():
    network = gathered(*some(800), 100)
    tested, rows = some(200, seed=5)
    probabilities = network(tested).softmax(1)
    assert (probabilities.argmax(1) == rows).float().mean() > 0.7
    assert F.nll_loss(probabilities.log(), rows) < 0.8  # by chance 1.39


def test_state_comes_back_and_is_less_than_5_megabytes():
    network = gathered(*some(), 60)
    again = NearestPrototype(ROWS, SIZE).eval()
    with pytest.raises(DetectorError, match="no image was gathered"):
        again(some(2)[0])
    again.load_state_dict(network.state_dict())
    tested, _ = some(5, seed=2)
    assert torch.equal(again(tested), network(tested))
    assert not list(network.parameters())
    again.load_state_dict(NearestPrototype(ROWS, SIZE).state_dict())
    with pytest.raises(DetectorError, match="no image was gathered"):
        again(tested)
    buffer = io.BytesIO()
    torch.save(NearestPrototype(96, 224).state_dict(), buffer)
    assert buffer.tell() < 5 * 2**20


def test_rows_without_images_are_named():
    images, rows = some(40)
    network = gathered(images, rows // 2, 40)
    with pytest.raises(DetectorError, match=r"2 of 4 rows: number 2, number 3\. Fit the detector"):
        network(images)
    network.row_names = ("clean", "fog", "snow/3", "frost")
    with pytest.raises(DetectorError, match="snow/3, frost"):
        network(images)
    assert network.missing_rows == [2, 3]


def test_features_that_never_vary_and_constant_images_are_finite():
    flat = (torch.arange(8) % ROWS).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE) / 8
    network = NearestPrototype(ROWS, SIZE)
    network.gather(flat, torch.arange(8) % ROWS)
    network.eval()
    assert network(flat).isfinite().all()
    assert torch.equal(network(flat).argmax(1), torch.arange(8) % ROWS)


def test_half_precision_and_autocast_give_the_same_logits_but_for_rounding():
    network = gathered(*some(), 60)
    tested, _ = some(5, seed=2)
    logits = network(tested)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(tested), logits)
        again = gathered(*some(), 60)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(network.half()(tested).float(), logits, rtol=0.1, atol=1)
    with pytest.raises(DetectorError, match="gathered in float32 or float64"):
        network.gather(*some(8))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "a row, int64, for each of 4 images"),
        (torch.zeros(4), "a row, int64"),
        (torch.tensor([0, 1, 2, ROWS]), "from 0 to 3, got some from 0 to 4"),
        (torch.tensor([0, 1, 2, -1]), "got some from -1"),
    ],
)
def test_refuses_rows_that_are_none(rows, message):
    with pytest.raises(DetectorError, match=message):
        NearestPrototype(ROWS, SIZE).gather(some(4)[0], rows)


def test_refuses_images_it_was_not_made_for():
    network = gathered(*some(8), 8)
    for wrong, message in ((torch.rand(2, 3, 8, 8), "was made for images"), (torch.randn(2, 3, SIZE, SIZE), "before")):
        with pytest.raises(DetectorError, match=message):
            network(wrong)
        with pytest.raises(DetectorError, match=message):
            network.gather(wrong, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DetectorError, match="num_rows"):
        NearestPrototype(1, SIZE)
