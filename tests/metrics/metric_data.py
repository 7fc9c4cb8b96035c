"""Random streams of cells, and what may not happen on a device that one would have to wait for."""

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dynbn_lightning.metrics import NUM_CELLS


def random_stream(count=2000, classes=7, seed=0):
    """Logits that vary in sharpness and are right more often than not, labels, and cells."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1
    logits *= torch.rand(count, 1, generator=generator) * 6
    return logits, labels, torch.randint(0, NUM_CELLS, (count,), generator=generator)


@contextmanager
def no_values_known():
    """Tensors without values, which may be on CUDA: reading one, or a shape that depends on one, raises."""
    with FakeTensorMode():
        yield
