"""Input normalisation: undone exactly, compared by what it does, and refused when it is none."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from dynbn_lightning.errors import DataError
from dynbn_lightning.models import NORMALIZATIONS, Normalization
from dynbn_lightning.models.normalization import warn_of_other_normalization


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_undoing_gives_the_pixels_back(name: str) -> None:
    levels = torch.arange(256).repeat(3, 1).view(1, 3, 16, 16)
    normalization = Normalization.of(name)
    for dtype in (torch.float64, torch.float32, torch.float16):
        images = normalization.apply((levels / 255).double()).to(dtype)
        assert torch.equal((normalization.undo(images) * 255).round().long(), levels), dtype


def test_values_are_those_of_each_channel() -> None:
    normalization = Normalization((0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    out = normalization.apply(torch.ones(2, 3, 1, 1))
    torch.testing.assert_close(out[1].flatten(), torch.tensor([0.9, 1.6, 2.8]))
    assert Normalization(**normalization.to_dict()) == normalization
    assert Normalization.of(((0.1, 0.2, 0.3), (1, 0.5, 0.25))) == normalization


def test_agreement() -> None:
    none, zeros = NORMALIZATIONS["none"], Normalization((0, 0, 0), (1, 1, 1))
    assert none.agrees_with(zeros)
    assert zeros.agrees_with(none)
    assert not none.agrees_with(NORMALIZATIONS["half"])
    assert not NORMALIZATIONS["imagenet"].agrees_with(NORMALIZATIONS["cifar10"])
    assert not Normalization((0,), (1,)).agrees_with(Normalization((0, 0, 0.1), (1, 1, 1)))


def test_bad_normalizations() -> None:
    with pytest.raises(DataError, match="did you mean 'imagenet'"):
        Normalization.of("imagnet")
    with pytest.raises(DataError, match="as many means"):
        Normalization((0.5,), (0.5, 0.5))
    with pytest.raises(DataError, match="above 0"):
        Normalization((0.5,), (0.0,))
    with pytest.raises(DataError, match="3 channels, the images have 1"):
        NORMALIZATIONS["imagenet"].apply(torch.zeros(1, 1, 4, 4))


def test_pixels_from_0_to_255_are_refused() -> None:
    for mean, std in (((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), ((0.5,), (2.0,)), ((-0.5,), (0.5,))):
        with pytest.raises(DataError, match="divide both by 255"):
            Normalization(mean, std)


def test_a_model_that_takes_other_images_is_warned_of() -> None:
    inner = nn.Linear(1, 1)
    object.__setattr__(inner, "input_normalization", NORMALIZATIONS["imagenet"])
    model = nn.Sequential(inner)
    with pytest.warns(UserWarning, match=r"Linear takes images normalised with mean \(0.485.*normalization="):
        warn_of_other_normalization(model, NORMALIZATIONS["none"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_normalization(model, NORMALIZATIONS["imagenet"])
        warn_of_other_normalization(nn.Linear(1, 1), NORMALIZATIONS["none"])
