import pytest
import torch

from dynbn_lightning.detection.tiles import MOST_TILES, TILE, cut_tiles, tile_starts


@pytest.mark.parametrize(
    ("length", "starts"),
    [(1, [0]), (20, [0]), (32, [0]), (33, [0, 1]), (64, [0, 32]), (100, [0, 23, 45, 68]), (224, [0, 64, 128, 192])],
)
def test_starts_are_spread_evenly(length, starts):
    assert tile_starts(length) == starts


@pytest.mark.parametrize("length", range(1, MOST_TILES * TILE + 1))
def test_short_axes_are_covered(length):
    covered = {pixel for start in tile_starts(length) for pixel in range(start, start + TILE)}
    assert set(range(length)) <= covered
    assert max(covered) < max(length, TILE)


def test_random_starts_stay_inside_on_the_grid_of_jpeg_blocks_and_follow_the_seed():
    torch.manual_seed(0)
    drawn = [tile_starts(100, at_random=True) for _ in range(200)]
    assert {start for starts in drawn for start in starts} == set(range(0, 69, 8))
    assert {len(starts) for starts in drawn} == {4}
    torch.manual_seed(0)
    assert tile_starts(100, at_random=True) == drawn[0]
    assert tile_starts(32, at_random=True) == [0]


def test_tiles_are_cut_from_the_image():
    images = torch.rand(2, 3, 70, 40)
    tiles = cut_tiles(images)
    assert tiles.shape == (2, 6, 3, 32, 32)
    expected = [images[:, :, row : row + 32, column : column + 32] for row in (0, 19, 38) for column in (0, 8)]
    for number, tile in enumerate(expected):
        assert torch.equal(tiles[:, number], tile)


def test_a_small_image_is_its_own_tile():
    images = torch.rand(2, 3, 32, 20)
    tiles = cut_tiles(images)
    assert tiles.shape == (2, 1, 3, 32, 20)
    assert tiles.data_ptr() == images.data_ptr()
