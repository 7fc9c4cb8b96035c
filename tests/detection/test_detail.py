import math

import torch

from dynbn_lightning.detection.detail import DETAIL_FLOOR, detail, log_detail


def test_equals_a_plain_loop():
    images = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(images)
    for y in range(5):
        for x in range(6):
            for dy, weight_y in ((-1, 1), (0, -2), (1, 1)):
                for dx, weight_x in ((-1, 1), (0, -2), (1, 1)):
                    expected[..., y, x] += weight_y * weight_x * images[..., (y + dy) % 5, (x + dx) % 6] / 4
    torch.testing.assert_close(detail(images), expected)
    torch.testing.assert_close(log_detail(detail(images)), torch.log(expected.abs() + DETAIL_FLOOR))


def test_rows_and_columns_leave_nothing_and_noise_half_as_much_again():
    noise = torch.randn(4, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    surface = noise[:, :, :1] + noise[:, :, :, 1:2]
    torch.testing.assert_close(detail(surface), torch.zeros_like(surface))
    torch.testing.assert_close(log_detail(detail(surface)), torch.full_like(surface, math.log(DETAIL_FLOOR)))
    assert abs(detail(noise).std() / noise.std() - 1.5) < 0.05


def test_rounding_to_8_bits_moves_it_by_the_floor_at_most():
    images = torch.rand(8, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = (detail((images * 255).round() / 255) - detail(images)).abs().max()
    assert DETAIL_FLOOR / 2 < moved <= DETAIL_FLOOR


def test_exact_on_whole_levels():
    levels = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    assert torch.equal(detail(levels.float()).double(), detail(levels.double()))
