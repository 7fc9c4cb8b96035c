"""Parts, threads and devices: what runs beside what, what is left behind, and what would wait for an accelerator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from sample_pictures import RANDOM, pictures

from dynbn_lightning.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dynbn_lightning.corruptions.geometry import _blur_by_gathering, _blur_by_slices
from dynbn_lightning.corruptions.parts import on_all_cores, parts_of
from dynbn_lightning.corruptions.randomness import Draws
from dynbn_lightning.corruptions.textures import _gather_crops, load_textures

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as workers:
        return workers.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("two_threads")
def test_parts_go_to_other_threads_and_torchs_settings_stay() -> None:
    assert threads_of_a_new_thread() == 2
    barrier = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int, str, bool]:
        barrier.wait()  # would break if both items went to one thread
        return item, torch.get_num_threads(), threading.current_thread().name, torch.is_grad_enabled()

    done = on_all_cores(work, range(4), CPU)
    assert [item for item, *_ in done] == [0, 1, 2, 3]
    assert {threads for _, threads, *_ in done} == {1}
    assert all(name.startswith("dynbn-corrupt") and not grad for *_, name, grad in done)
    assert torch.get_num_threads() == 2
    assert threads_of_a_new_thread() == 2
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_part_comes_out() -> None:
    def work(item: int) -> None:
        raise ValueError(f"part {item}")

    with pytest.raises(ValueError, match="part 0"):
        on_all_cores(work, range(3), CPU)


def test_parts_are_all_of_the_images() -> None:
    for count, side in ((1, 8), (700, 32), (5, 224), (3, 600)):
        parts = parts_of(torch.empty(count, 3, side, side))
        assert [image for part in parts for image in range(count)[part]] == list(range(count))
        assert len(parts) >= min(count, torch.get_num_threads())
    assert len(parts_of(torch.empty(12, 3, 224, 224))) >= 4


def double_in_child() -> None:
    assert on_all_cores(lambda item: 2 * item, range(4), CPU) == [0, 2, 4, 6]


@pytest.mark.usefixtures("two_threads")
def test_a_forked_process_does_not_wait_for_its_parents_threads() -> None:
    double_in_child()
    child = get_context("fork").Process(target=double_in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "jpeg_compression"])
def test_nothing_waits_for_an_accelerator(name: str, channels: int, severity: int) -> None:
    # Tensors on the device "meta" have shapes and no values: whatever asked for a value would fail.
    images = torch.empty(4, channels, 40, 52, dtype=torch.uint8, device="meta")
    made = corrupt(images, name, severity)
    assert (made.shape, made.dtype, made.device.type) == (images.shape, torch.uint8, "meta")
    mixed = corrupt(images, [name, "clean", name, "contrast"], [severity, 0, 1, 2])
    assert mixed.shape == images.shape


def test_an_accelerators_way_to_blur_along_a_direction_is_the_cpus() -> None:
    images = pictures(4, 3, 30, 41).float()
    weights = (0.4, 0.3, 0.2, 0.1)
    degrees = torch.tensor([-135.0, -45.0, 10.0, 45.0])
    gathered = _blur_by_gathering(images, degrees, weights)
    for image, angle in enumerate(degrees.double().deg2rad().tolist()):
        sliced = _blur_by_slices(images[image : image + 1], angle, weights)
        assert torch.allclose(gathered[image : image + 1], sliced, atol=1e-3)


def test_an_accelerators_way_to_crop_textures_is_the_cpus() -> None:
    textures = load_textures(None, 0.2, CPU)
    crops = textures.crops(torch.empty(6, 3, 32, 40), Draws(6, CPU, seeds=range(6)))
    again = Draws(6, CPU, seeds=range(6))
    which = again.integers(0, 5, (1,)).squeeze(1)
    assert torch.equal(_gather_crops(textures.sheets, which, again.uniform((2,)), 32, 40).float(), crops)


@pytest.mark.parametrize("streams", [True, False], ids=["a stream per image", "one generator"])
def test_draws_are_distributed_as_they_say(streams: bool) -> None:
    draws = Draws(10, CPU, torch.Generator().manual_seed(3))
    if not streams:  # as on an accelerator
        draws._streams, draws._generator = None, torch.Generator().manual_seed(3)
    normal = draws.normal((3, 64, 65)).double()
    assert normal.shape == (10, 3, 64, 65)
    assert normal.mean() == pytest.approx(0, abs=0.01)
    assert normal.std() == pytest.approx(1, abs=0.01)
    assert normal.pow(4).mean() == pytest.approx(3, abs=0.06)
    assert normal.flatten(1).unique(dim=0).shape[0] == 10
    uniform = draws.uniform((20000,), -45.0, 45.0).double()
    assert -45 <= uniform.min() < -44.9
    assert 44.9 < uniform.max() <= 45
    assert uniform.mean() == pytest.approx(0, abs=0.3)
    assert uniform.var() == pytest.approx(90**2 / 12, rel=0.02)
    for low, high in ((-3, 3), (0, 5), (7, 1020)):
        whole = draws.integers(low, high, (20000,))
        assert (int(whole.min()), int(whole.max())) == (low, high - 1)
        assert whole.double().mean() == pytest.approx((low + high - 1) / 2, rel=0.02, abs=0.05)
    assert draws.bits((20000,), torch.uint8).double().mean() == pytest.approx(127.5, abs=0.5)
    rates = torch.rand(10, 5000) * 20
    counts = draws.poisson(rates)
    assert torch.equal(counts, counts.round())
    assert (counts - rates).mean() == pytest.approx(0, abs=0.06)
    assert (counts - rates).pow(2).mean() == pytest.approx(10, rel=0.05)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")  # as an accelerator is worked on
@pytest.mark.parametrize("name", RANDOM)
def test_one_generator_serves_a_whole_batch(name: str) -> None:
    # What an accelerator does, in its ways that a CPU can go too.
    from dynbn_lightning.corruptions.batch import RANDOM as FUNCTIONS
    from dynbn_lightning.corruptions.presets import PRESETS

    images = pictures(1, 3, 32, 32).expand(6, -1, -1, -1)
    made = []
    for _ in range(2):
        draws = Draws(6, CPU, seeds=range(6))
        draws._streams, draws._generator = None, torch.Generator().manual_seed(3)
        textures = [load_textures(None, 0.2, CPU)] if name == "frost" else []
        made.append(FUNCTIONS[name](images, draws, *PRESETS["cifar"].constants(name, 5), *textures))
    assert torch.equal(*made)
    assert len(made[0].unique(dim=0)) == 6
