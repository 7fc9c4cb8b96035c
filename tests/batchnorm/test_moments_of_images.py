"""Images' own moments against numpy, and gradients to the statistics that activations are normalised with."""

import numpy as np
import pytest
import torch
from batchnorm_reference import float64

from dynbn_lightning.batchnorm.normalization import image_moments, normalize_batch
from dynbn_lightning.errors import RoutingError

SHAPES = [(5, 3), (5, 3, 7), (5, 3, 1), (5, 3, 6, 4), (5, 3, 70, 90), (5, 3, 2, 3, 4), (1, 1, 9, 9)]


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_of_images_are_numpys(shape, dtype, memory):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 + 5).to(dtype)
    if memory == "channels_last" and x.dim() > 3:
        x = x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if memory == "strided":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    before = x.clone()
    mean, var = image_moments(x)
    assert mean.dtype == var.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert mean.shape == var.shape == shape[:2]
    values = float64(x).reshape(*shape[:2], -1)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(float64(mean), values.mean(2), rtol=tolerance)
    np.testing.assert_allclose(float64(var), values.var(2), rtol=tolerance * 2, atol=0)
    assert torch.equal(x, before)
    x.requires_grad_()
    for with_gradients, without in zip(image_moments(x), (mean, var), strict=True):
        torch.testing.assert_close(with_gradients.detach(), without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (3, 1, 200, 200), (3, 5, 256, 256), (2, 7, 280, 280)], ids=str)
def test_an_images_moments_keep_their_bits_whatever_the_batch(shape, memory_format, threads):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(memory_format=memory_format)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # long rows are added up by several
    try:
        together = image_moments(x)
        alone = [image_moments(x[image : image + 1]) for image in range(len(x))]
    finally:
        torch.set_num_threads(before)
    for image, moments in enumerate(alone):
        for one, all_of_them in zip(moments, together, strict=True):
            assert torch.equal(one[0], all_of_them[image])


# Normalising with gradients to the statistics


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("spatial", [(), (4,), (2, 3)], ids=str)
def test_gradients_to_statistics_are_finite_differences(spatial, per_image):
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(3, 2, *spatial, generator=generator, dtype=torch.float64).requires_grad_()
    shape = (3, 2) if per_image else (2,)
    tables = [torch.rand(shape, generator=generator, dtype=torch.float64).add(0.5).requires_grad_() for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *values: normalize_batch(*values, 0.05), (x, *tables))
    for affine in ((tables[2], None), (None, tables[3]), (None, None)):
        assert torch.autograd.gradcheck(lambda m, v, affine=affine: normalize_batch(x, m, v, *affine, 0.05), tables[:2])
    without = [table.detach() for table in tables]
    expected = normalize_batch(x.detach(), *without, 0.05)
    torch.testing.assert_close(normalize_batch(x, *tables, 0.05).detach(), expected, rtol=1e-12, atol=1e-12)


def test_with_gradients_too_the_dtype_and_format_are_of_the_activations_and_other_batches_are_refused():
    x = torch.randn(3, 2, 4, 5).bfloat16().to(memory_format=torch.channels_last)
    mean, var = torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2)
    out = normalize_batch(x, mean, var, None, None, 1e-5)
    assert (out.dtype, out.stride()) == (torch.bfloat16, x.stride())
    for images in (1, 2):
        with pytest.raises(RoutingError, match=f"statistics of {images} images for activations of 3"):
            normalize_batch(x, mean[:images], var[:images], None, None, 1e-5)
