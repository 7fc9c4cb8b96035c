import torch

from dynbn_lightning.detection.standardize import Standardize


def test_statistics_are_those_of_all_examples_whatever_the_batches():
    features = 3 + 2 * torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    features[500:] += 10  # batches that differ: what lies between them counts
    layer = Standardize(5).train()
    for batch in features.split([1, 499, 17, 483]):
        layer(batch)
    torch.testing.assert_close(layer.mean, features.mean(0))
    torch.testing.assert_close(layer.variance, features.var(0, correction=0))
    assert layer.count == 1000
    torch.testing.assert_close(layer.eval()(features), (features - features.mean(0)) / features.std(0, correction=0))


def test_evaluation_gathers_nothing_and_treats_each_image_alone():
    layer = Standardize(3).train()
    layer(torch.randn(64, 3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    batch = 5 + torch.randn(8, 3)
    layer.eval()
    assert torch.equal(layer(batch)[2:3], layer(batch[2:3]))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_feature_that_never_varies_stays_near_zero():
    layer = Standardize(1).train()
    layer(torch.full((16, 1), 7.0))
    assert layer.eval()(torch.full((4, 1), 7.0)).abs().max() < 1e-3
