"""The embedded default data set, `"shapes"`: textured shapes on textured backgrounds, made by code, 10 classes, 32x32.

It stands for CIFAR-10 where no data can be downloaded. The class is the outline; place, size, turn, colours and both
textures are drawn for each image. The textures have the spectra of photographs (amplitude falling as 1/f) with stripes,
checks and gradients among them, and the shape stands out only a little, so that a network trained on clean images
depends on contrast and fine structure, which the corruptions take away.

Every number behind an image is a hash of (seed, split, index, what it is for): an image is the same whatever the size
of the set and whatever was made before it, and no image of `train` is in `test`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, did_you_mean

SHAPE_CLASSES: tuple[str, ...] = (
    "disk",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "crescent",
    "heart",
    "arrow",
    "hourglass",
)
SHAPE_SPLITS: dict[str, int] = {"train": 6000, "test": 1000}
"""The splits, each with its size unless another is asked for."""

GROUND = (0.43, 0.57)
"""Range of each channel of the background's colour, near the middle grey."""
CONTRAST = (0.15, 0.38)
"""Range of the distance in RGB between the colours of shape and background."""
TEXTURE = (0.02, 0.06)
"""Range of the textures' standard deviation per channel."""
RADIUS = (6.5, 11.0)
"""Range of the radius of the circle around a shape, in pixels."""
TURN = 0.35
"""The largest turn of a shape from upright, in radians."""

_SIDE = 32
_CHUNK = 500


class ShapesDataset(Dataset[tuple[Tensor, int]]):
    """Shapes to tell apart: item `i` is (uint8 image (3, 32, 32), label), the label being `i % 10`.

    Args:
        split: `"train"` or `"test"`; they share no image.
        size: number of images, by default 6,000 and 1,000; a smaller set is the beginning of a larger one.
        seed: of everything; another seed gives another data set of the same kind.

    Raises:
        DataError: an unknown split, or a size below 1.
    """

    classes: tuple[str, ...] = SHAPE_CLASSES

    def __init__(self, split: str = "train", size: int | None = None, seed: int = 0) -> None:
        if split not in SHAPE_SPLITS:
            raise DataError(f"unknown split {split!r} of shapes: {did_you_mean(str(split), SHAPE_SPLITS)}")
        size = SHAPE_SPLITS[split] if size is None else size
        if size < 1:
            raise DataError(f"shapes needs a size of at least 1, got {size}")
        self.split, self.seed = split, seed
        self.images = torch.cat(
            [shape_images(split, range(i, min(i + _CHUNK, size)), seed) for i in range(0, size, _CHUNK)]
        )
        self.targets = [index % len(SHAPE_CLASSES) for index in range(size)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def shape_images(split: str, indices: range, seed: int) -> Tensor:
    """The images of a split at these indices, uint8, shape (len(indices), 3, 32, 32)."""
    draw = _Draws(seed, list(SHAPE_SPLITS).index(split), np.asarray(indices, dtype=np.uint64))
    labels = torch.tensor([index % len(SHAPE_CLASSES) for index in indices])
    back_colour = draw.uniform(3, *GROUND)
    # Mostly lighter or darker, with some change of hue.
    direction = _unit(draw.normal(3) + draw.normal(1))
    front_colour = back_colour + draw.uniform(1, *CONTRAST) * direction
    back, front = _textured(draw, back_colour), _textured(draw, front_colour)
    pixels = back + (front - back) * _coverage(draw, labels)[:, None]
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


class _Draws:
    """Random numbers of each image, (N, count) in float32; each call gives new ones."""

    def __init__(self, seed: int, stream: int, indices: NDArray[np.uint64]) -> None:
        self._key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(stream))
        self._key = _mix(self._key + indices)[:, None]
        self._used = 0

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        counter = np.arange(self._used + 1, self._used + count + 1, dtype=np.uint64)
        self._used += count
        # 23 bits and a half: exact in float32, and never 0 or 1, where a normal would be infinite.
        bits = _mix(self._key + counter * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(41)
        zero_to_one = torch.from_numpy((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2**-23))
        return zero_to_one * (high - low) + low

    def normal(self, count: int) -> Tensor:
        deviates: Tensor = torch.special.ndtri(self.uniform(count))
        return deviates


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's last step (Steele, Lea and Flood 2014): 64 bits to 64, one to one, without visible order."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _grid() -> tuple[Tensor, Tensor]:
    axis = torch.arange(_SIDE) - (_SIDE - 1) / 2
    return axis[None, None, :], axis[None, :, None]


def _unit(vectors: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    unit: Tensor = vectors / lengths.clamp(min=1e-6)
    return unit


def _standardised(fields: Tensor) -> Tensor:
    fields = fields - fields.mean(dim=(-2, -1), keepdim=True)
    return fields / fields.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-6)


def _natural(draw: _Draws, count: int) -> Tensor:
    """Fields with a 1/f^a spectrum, a of each image from 1 to 1.8, zero mean, deviation 1: (N, count, 32, 32)."""
    white = draw.normal(count * _SIDE * _SIDE).view(-1, count, _SIDE, _SIDE)
    frequency = torch.hypot(torch.fft.fftfreq(_SIDE)[:, None], torch.fft.rfftfreq(_SIDE)[None, :])
    frequency[0, 0] = 1.0
    slope = draw.uniform(1, 1.0, 1.8)[:, :, None, None]
    return _standardised(torch.fft.irfft2(torch.fft.rfft2(white) * frequency**-slope, s=(_SIDE, _SIDE)))


def _waves(draw: _Draws) -> Tensor:
    x, y = _grid()
    angle, phase = (draw.uniform(1, 0, 2 * math.pi)[:, :, None] for _ in range(2))
    cycles = 0.04 * 5.0 ** draw.uniform(1)[:, :, None]
    return torch.sin(2 * math.pi * cycles * (x * angle.cos() + y * angle.sin()) + phase)


def _textured(draw: _Draws, colour: Tensor) -> Tensor:
    """Textures around the colours (N, 3): (N, 3, 32, 32).

    Each is a natural field and a pattern (stripes, checks, a gradient or nothing), changing the lightness, and a second
    natural field that changes the hue.
    """
    x, y = _grid()
    waves, across = _waves(draw), _waves(draw)
    sharpness = draw.uniform(1, 0.7, 3.0)[:, :, None]
    angle = draw.uniform(1, 0, 2 * math.pi)[:, :, None]
    patterns = torch.stack(
        [
            _standardised(torch.tanh(sharpness * waves)),
            _standardised(torch.tanh(sharpness * waves * across)),
            _standardised(x * angle.cos() + y * angle.sin()),
            torch.zeros_like(waves),
        ],
        dim=1,
    )
    kind = (draw.uniform(1) * patterns.shape[1]).long()[:, 0]
    pattern = patterns[torch.arange(len(kind)), kind]
    natural = _natural(draw, 2)
    share = draw.uniform(1, 0.2, 0.8)[:, :, None]
    lightness = share * pattern + (1 - share) * natural[:, 0]
    tint, second_tint = (_unit(draw.normal(3) * 0.5 + 1.0)[:, :, None, None] for _ in range(2))
    amount = draw.uniform(1, *TEXTURE)[:, :, None, None] * math.sqrt(3)
    return colour[:, :, None, None] + amount * (tint * lightness[:, None] + 0.5 * second_tint * natural[:, 1:])


def _coverage(draw: _Draws, labels: Tensor) -> Tensor:
    """How much of each pixel the shape covers, 0 to 1: (N, 32, 32)."""
    x, y = _grid()
    radius = draw.uniform(1, *RADIUS)[:, :, None]
    room = (_SIDE / 2 - radius).clamp(min=0)
    centre_x, centre_y = (draw.uniform(1, -1, 1)[:, :, None] * room for _ in range(2))
    angle = draw.uniform(1, -TURN, TURN)[:, :, None]
    stretch = draw.uniform(1, 0.88, 1.13)[:, :, None]
    x, y = (x - centre_x) / radius, (y - centre_y) / radius
    u, v = (x * angle.cos() + y * angle.sin()) * stretch, (y * angle.cos() - x * angle.sin()) / stretch
    distance = torch.empty_like(u)
    for label, outline in enumerate(_OUTLINES):
        chosen = labels == label
        distance[chosen] = outline(u[chosen], v[chosen])
    return (0.5 - distance * radius).clamp(0, 1)


def _disk(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.85


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.68).abs() - 0.22


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.74, 0.74)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(-v, math.sqrt(0.75) * u.abs() + 0.5 * v) - 0.5


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.27), _box(u, v, 0.27, 0.95))


def _star(u: Tensor, v: Tensor) -> Tensor:
    """Five points at radius 1; the edges lie on the lines of the pentagram."""
    turn = torch.atan2(u, v)
    sector = 2 * math.pi / 5
    turn = (turn - (turn / sector).round() * sector).abs()
    radius = torch.hypot(u, v)
    across = radius * torch.sin(turn)
    along = radius * torch.cos(turn)
    inner = 0.45
    end_u, end_v = inner * math.sin(sector / 2), inner * math.cos(sector / 2)
    length = math.hypot(end_u, 1 - end_v)
    return ((1 - end_v) * across + end_u * (along - 1)) / length


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.92, 0.72 - torch.hypot(u - 0.42, v))


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its corner, with a half disk on each of its upper sides."""
    half = 0.66
    square = (u.abs() + (v + 0.06).abs() - half) * math.sqrt(0.5)
    lobes = torch.hypot(u.abs() - half / 2, v + 0.06 + half / 2) - half * math.sqrt(0.5)
    return torch.minimum(square, lobes)


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    head = torch.maximum(-u, math.sqrt(0.5) * (u + v.abs()) - 0.62)
    shaft = _box(u + 0.45, v, 0.5, 0.24)
    return torch.minimum(head, shaft)


def _hourglass(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(0.8 * u.abs() - 0.6 * v.abs() - 0.06, v.abs() - 0.85)


_OUTLINES = (_disk, _ring, _square, _triangle, _cross, _star, _crescent, _heart, _arrow, _hourglass)
