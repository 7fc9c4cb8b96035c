"""A calibration or refinement with a path: interrupted anywhere, it goes on to the same bank, or refuses another's."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tuning_models import (
    NovelStripeDetector,
    StripeDetector,
    assert_untouched,
    batches_drawn,
    make_bank,
    make_data,
    make_model,
    snapshot,
    striped_images,
)

from dynbn_lightning import BNStatsBank, CorruptionDataModule, calibrate, refine
from dynbn_lightning.batchnorm import Calibration
from dynbn_lightning.errors import BankError, OutputError
from dynbn_lightning.tuning import UnfinishedTuning

pytestmark = pytest.mark.filterwarnings("ignore:calibration gained nothing")

CONFIDENCE, STEPS, CHECK = 2, 6, 1
"""Batches of each phase of calibrating; refining has the steps alone."""

IMAGES = 64 * STEPS
LOOKS = CONFIDENCE + STEPS + 2 * CHECK


class Uneven(nn.Sequential):
    """Its answers depend on how many images it gets at a time, as rounding errors do, but so that no test misses it."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        return logits + 1e-3 * len(images) * torch.arange(4)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Uneven(*make_model().children()).eval()


@pytest.fixture(scope="module")
def bank(model: nn.Module) -> BNStatsBank:
    return make_bank(model, make_data())


@pytest.fixture(scope="module")
def blended(bank: BNStatsBank) -> BNStatsBank:
    shares = torch.tensor([[0.0, 0.0], [0.2, 0.4], [0.3, 0.1]])
    return replace(bank, calibration=Calibration(shares, shares.flip(1) / 2))


@pytest.fixture(scope="module")
def whole(model: nn.Module, bank: BNStatsBank) -> BNStatsBank:
    return calibrated(model, bank)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cifar.bank.safetensors"


def kept_beside(path: Path, doing: str = "calibrating") -> Path:
    return path.with_name(f"cifar.bank.{doing}.pt")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def calibrated(
    model: nn.Module,
    bank: BNStatsBank,
    path: Path | None = None,
    *,
    detector: nn.Module | None = None,
    data: CorruptionDataModule | None = None,
    **options: Any,
) -> BNStatsBank:
    options = {"images": IMAGES, "progress": False, "path": path, **options}
    return calibrate(model, bank, detector or NovelStripeDetector(), data or make_data(), **options)


def refined(
    model: nn.Module,
    bank: BNStatsBank,
    path: Path | None = None,
    *,
    data: CorruptionDataModule | None = None,
    **options: Any,
) -> BNStatsBank:
    return refine(model, bank, data or make_data(), **{"images": IMAGES, "progress": False, "path": path, **options})


def stop_at(call: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[], None]:
    """Raises at that call, counted from 1."""
    calls = itertools.count(1)

    def stop() -> None:
        if next(calls) == call:
            raise error("stop")

    return stop


def stopping_before(function: Callable[..., Any], stop: Callable[[], None]) -> Callable[..., Any]:
    def stopping(*arguments: Any, **options: Any) -> Any:
        stop()
        return function(*arguments, **options)

    return stopping


def stopping_after(function: Callable[..., Any], stop: Callable[[], None]) -> Callable[..., Any]:
    def stopping(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        stop()
        return result

    return stopping


def interrupt(model: nn.Module, bank: BNStatsBank, path: Path, look: int = CONFIDENCE + 4, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt, match="stop"):
        calibrated(model, bank, path, detector=NovelStripeDetector(interrupt=stop_at(look)), **options)


def interrupt_refining(model: nn.Module, bank: BNStatsBank, path: Path, step: int = 4, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stopping_after(torch.optim.Adam.step, stop_at(step)))
        with pytest.raises(KeyboardInterrupt, match="stop"):
            refined(model, bank, path, **options)


def assert_equal_banks(one: BNStatsBank, other: BNStatsBank) -> None:
    for name in ("mean", "var", "weight", "bias"):
        mine, its = getattr(one, name), getattr(other, name)
        assert (mine is None) == (its is None)
        assert mine is None or torch.equal(mine, its), name
    for name in ("rows", "skip"):
        assert tuple(getattr(one, name)) == tuple(getattr(other, name))
    for name in ("layers", "fingerprints", "provenance"):
        assert dict(getattr(one, name)) == dict(getattr(other, name))
    assert (one.calibration is None) == (other.calibration is None)
    if one.calibration is not None and other.calibration is not None:
        for name in ("source_share", "image_share"):
            mine, its = getattr(one.calibration, name), getattr(other.calibration, name)
            assert (mine is None) == (its is None)
            assert mine is None or torch.equal(mine, its), name
        for name in ("temperature", "novelty_limit", "detector", "provenance"):
            assert getattr(one.calibration, name) == getattr(other.calibration, name), name


# Going on


def remaining(look: int) -> dict[str, int]:
    """The batches that are left to a calibration interrupted at that look of the detector."""
    steps_done = min(max(look - CONFIDENCE - 1, 0), STEPS)
    again = CONFIDENCE if look <= CONFIDENCE else 0
    left = {"choose": again + STEPS - steps_done, "check": CHECK}
    return {part: count for part, count in left.items() if count}


@pytest.mark.parametrize(
    ("look", "error"),
    [*((look, KeyboardInterrupt) for look in range(1, LOOKS + 1)), *((look, OSError) for look in (2, 6, LOOKS))],
)
def test_interrupted_at_any_look_it_goes_on_to_the_same_bank(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, look: int, error: type[BaseException]
) -> None:
    bank.save(path)
    before, model_before = path.read_bytes(), snapshot(model)
    with pytest.raises(error, match="stop"):
        calibrated(model, bank, path, detector=NovelStripeDetector(interrupt=stop_at(look, error)))
    assert_untouched(model, model_before)
    assert path.read_bytes() == before
    kept = {kept_beside(path).name} if look > CONFIDENCE else set()
    assert files(path.parent).keys() == {path.name} | kept
    data = make_data()
    drawn = batches_drawn(data)
    torch.manual_seed(look)
    assert_equal_banks(calibrated(model, BNStatsBank.load(path), path, data=data), whole)
    assert drawn == remaining(look)
    assert list(files(path.parent)) == [path.name]
    assert_equal_banks(BNStatsBank.load(path, model), whole)
    assert_untouched(model, model_before)


@pytest.mark.parametrize(
    "options", [{"criterion": "labels"}, {"image_moments": False}, {"detector": StripeDetector}], ids=str
)
def test_with_any_options_and_after_many_interrupts(
    model: nn.Module, bank: BNStatsBank, path: Path, options: dict[str, Any]
) -> None:
    make_detector = options.pop("detector", NovelStripeDetector)
    expected = calibrated(model, bank, detector=make_detector(), **options)
    data = make_data()
    drawn = batches_drawn(data)
    for look in (2, CONFIDENCE + 1, 2, 3, 1, 2):  # of each call: in the confidence, at steps 1, 2, 4, 4, 5
        detector = make_detector(interrupt=stop_at(look))
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, bank, path, detector=detector, data=data, **options)
    assert_equal_banks(calibrated(model, bank, path, detector=make_detector(), data=data, **options), expected)
    finished, interrupted = CONFIDENCE + STEPS, 2 + 5  # the confidence had two looks, the second one was interrupted
    assert drawn == {"choose": finished + interrupted, "check": CHECK}


@pytest.mark.parametrize(
    ("step", "criterion"), [(1, "labels"), (2, "labels"), (4, "consistency"), (STEPS, "consistency")]
)
def test_refining_interrupted_in_any_step_goes_on_to_the_same_bank(
    model: nn.Module, blended: BNStatsBank, path: Path, step: int, criterion: Any
) -> None:
    """Right after the optimiser has changed the parameters, before the schedule has moved on."""
    expected = refined(model, blended, criterion=criterion)
    blended.save(path)
    before, model_before = path.read_bytes(), snapshot(model)
    interrupt_refining(model, blended, path, step, criterion=criterion)
    assert_untouched(model, model_before)
    assert path.read_bytes() == before
    assert files(path.parent).keys() == {path.name} | ({kept_beside(path, "refining").name} if step > 1 else set())
    data = make_data()
    drawn = batches_drawn(data)
    bank = refined(model, BNStatsBank.load(path), path, data=data, criterion=criterion)
    assert_equal_banks(bank, expected)
    assert drawn == {"fit": STEPS - step + 1}
    assert list(files(path.parent)) == [path.name]
    assert_equal_banks(BNStatsBank.load(path, model), expected)


def test_interrupted_while_the_bank_is_written_only_the_check_is_done_again(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.save(path)
    before = path.read_bytes()
    move = Path.replace

    def stop_or_move(self: Path, target: Any) -> Path:
        if Path(target) == path:
            raise KeyboardInterrupt
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_or_move)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, bank, path)
    assert path.read_bytes() == before
    assert files(path.parent).keys() == {path.name, kept_beside(path).name}
    data = make_data()
    drawn = batches_drawn(data)
    assert_equal_banks(calibrated(model, BNStatsBank.load(path), path, data=data), whole)
    assert drawn == {"check": CHECK}


def test_interrupted_between_the_bank_and_the_end_it_can_be_called_again(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(model, bank, path, LOOKS)
    with monkeypatch.context() as patch:
        patch.setattr(BNStatsBank, "save", stopping_after(BNStatsBank.save, stop_at(1)))
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, bank, path)
    written = BNStatsBank.load(path)
    assert_equal_banks(written, whole)
    assert_equal_banks(calibrated(model, written, path), whole)
    assert list(files(path.parent)) == [path.name]


def test_without_an_interrupt_it_writes_the_bank_and_begins_anew_the_next_time(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path
) -> None:
    for images in (IMAGES, 64):
        data = make_data()
        drawn = batches_drawn(data)
        found = calibrate(model, bank, NovelStripeDetector(), data, images=images, progress=False, path=str(path))
        assert drawn["choose"] >= images / 64 * 1.25
        assert list(files(path.parent)) == [path.name]
        assert_equal_banks(BNStatsBank.load(path), found)
        if images == IMAGES:
            assert_equal_banks(found, whole)


def test_without_a_path_nothing_is_written(
    model: nn.Module, bank: BNStatsBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        calibrated(model, bank, detector=NovelStripeDetector(interrupt=stop_at(LOOKS)))
    assert files(tmp_path) == {}


def test_both_can_be_under_way_for_one_path(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path
) -> None:
    expected = refined(model, bank)
    interrupt(model, bank, path)
    interrupt_refining(model, bank, path)
    assert_equal_banks(calibrated(model, bank, path), whole)
    assert_equal_banks(refined(model, bank, path), expected)
    assert list(files(path.parent)) == [path.name]


# Keeping


def write_always(patch: pytest.MonkeyPatch) -> None:
    """As if much time went by between any two steps."""
    hours = itertools.count(1)
    patch.setattr("dynbn_lightning.tuning.time", SimpleNamespace(monotonic=lambda: 3600.0 * 100 ** next(hours)))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_it_is_written_as_time_goes_by_but_not_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("dynbn_lightning.tuning.time", SimpleNamespace(monotonic=clock.monotonic))
    save, seconds, written = torch.save, [0.0], list[float]()

    def slow(*arguments: Any) -> None:
        written.append(clock.now)
        clock.now += seconds[0]
        save(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    file = tmp_path / "bank.calibrating.pt"
    with UnfinishedTuning(tmp_path / "bank.safetensors", "calibrating", {}, {}) as unfinished:
        for step in range(60):
            clock.now += 1
            unfinished.keep(step=step)
            assert file.exists() == bool(written)
        assert written == [120, 140, 160]
        seconds[0] = 3.0  # then the next one is a minute later
        for step in range(100):
            clock.now += 1
            unfinished.keep(step=step)
    assert written == [120, 140, 160, 180, 243]
    assert len(files(tmp_path)) == 1


def test_a_process_that_is_killed_loses_what_was_not_written_alone(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there at a look is what would lie there if the process had been killed then."""
    write_always(monkeypatch)
    found: list[dict[str, bytes]] = []
    calibrated(model, bank, path, detector=NovelStripeDetector(interrupt=lambda: found.append(files(path.parent))))
    assert [len(left) for left in found] == [0] * CONFIDENCE + [1] * (LOOKS - CONFIDENCE)
    for look in (CONFIDENCE + 1, CONFIDENCE + 4, LOOKS):
        path.unlink()
        for name, content in found[look - 1].items():
            (path.parent / name).write_bytes(content)
        data = make_data()
        drawn = batches_drawn(data)
        assert_equal_banks(calibrated(model, bank, path, data=data), whole)
        assert drawn == remaining(look)


def test_a_second_interrupt_while_that_is_written_leaves_what_was_written_before(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(model, bank, path, CONFIDENCE + 3)
    before = files(path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stopping_before(Path.replace, stop_at(1)))
        interrupt(model, bank, path, 3)
    assert files(path.parent) == before
    data = make_data()
    drawn = batches_drawn(data)
    assert_equal_banks(calibrated(model, bank, path, data=data), whole)
    assert drawn == remaining(CONFIDENCE + 3)


def test_an_interrupt_while_a_step_is_written_loses_nothing(
    model: nn.Module, bank: BNStatsBank, whole: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        write_always(patch)
        patch.setattr(Path, "replace", stopping_before(Path.replace, stop_at(1 + 3)))  # after the confidence's
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, bank, path)
    assert list(files(path.parent)) == [kept_beside(path).name]
    data = make_data()
    drawn = batches_drawn(data)
    assert_equal_banks(calibrated(model, bank, path, data=data), whole)
    assert drawn == {"choose": STEPS - 3, "check": CHECK}


def test_a_full_disk_does_not_hide_why_it_stopped(
    model: nn.Module, bank: BNStatsBank, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: Any) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(UserWarning, match=r"could not be kept in .*cifar\.bank\.calibrating\.pt: no space left"):
        interrupt(model, bank, path)
    assert files(path.parent) == {}


def test_what_cannot_be_written_is_refused_before_any_look(model: nn.Module, bank: BNStatsBank, path: Path) -> None:
    path.write_bytes(b"a file")
    data = make_data()
    drawn = batches_drawn(data)
    for call in (calibrated, refined):
        with pytest.raises(OutputError, match="is a file, and a folder is needed there"):
            call(model, bank, path / "bank.safetensors", data=data)
    assert drawn == {}


# Refusing


def with_more_images() -> CorruptionDataModule:
    data = make_data()
    return CorruptionDataModule(
        striped_images(170, 0),
        **{name: getattr(data, name) for name in ("normalization", "corruptions", "severities", "preset")},
        validation_fraction=0.4,
    )


def with_columns_exchanged() -> nn.Module:
    detector = NovelStripeDetector()
    detector.rows = ("clean", "contrast", "gaussian_noise")
    return detector


def moved(bank: BNStatsBank) -> BNStatsBank:
    return replace(bank, mean=bank.mean + torch.tensor([[0.0], [1e-6], [0.0]]))


def with_other_shares(bank: BNStatsBank) -> BNStatsBank:
    calibration = bank.calibration
    assert calibration is not None
    return replace(bank, calibration=replace(calibration, image_share=calibration.source_share))


ANOTHER_CALIBRATION: dict[str, tuple[str, dict[str, Any]]] = {
    "images": (rf"images: {IMAGES} there, 64 here", {"images": 64}),
    "criterion": ("criterion: 'consistency' there, 'labels' here", {"criterion": "labels"}),
    "moments": ("image_moments: True there, False here", {"image_moments": False}),
    "seed": ("seed: 0 there, 1 here", {"data": make_data(seed=1)}),
    "preset": ("preset: 'cifar' there, 'imagenet' here", {"data": make_data(preset="imagenet")}),
    "split": (r"validation_fraction: 0\.4 there, 0\.5 here", {"data": make_data(validation_fraction=0.5)}),
    "images of the data": ("training images: 160 there, 170 here", {"data": with_more_images()}),
    "weights of the detector": ("the detector", {"detector": NovelStripeDetector(59.0)}),
    "kind of the detector": ("the detector", {"detector": StripeDetector()}),
    "columns of the detector": ("the detector", {"detector": with_columns_exchanged()}),
    "weights": ("the model", {"model": Uneven(*make_model(seed=1).children())}),
    "precision": ("the model", {"model": Uneven(*make_model().children()).double().half()}),
    "bank": ("the bank", {"change": moved}),
}
ANOTHER_REFINEMENT: dict[str, tuple[str, dict[str, Any]]] = {
    "images": (rf"images: {IMAGES} there, 64 here", {"images": 64}),
    "criterion": ("criterion: 'labels' there, 'consistency' here", {"criterion": "consistency"}),
    "seed": ("seed: 0 there, 1 here", {"data": make_data(seed=1)}),
    "weights": ("the model", {"model": Uneven(*make_model(seed=1).children())}),
    "bank": ("the bank", {"change": moved}),
    "no calibration": ("the bank's calibration", {"change": BNStatsBank.uncalibrated}),
    "calibration": ("the bank's calibration", {"change": with_other_shares}),
}


def refused(
    call: Callable[..., BNStatsBank], other: nn.Module, bank: BNStatsBank, path: Path, difference: str, **changes: Any
) -> None:
    left = files(path.parent)
    data = changes.pop("data", None) or make_data()
    drawn = batches_drawn(data)
    change = changes.pop("change", lambda bank: bank)
    before = snapshot(other)
    with pytest.raises(BankError, match=rf"\.pt holds the first steps of another tuning \({difference}\): remove it"):
        call(other, change(bank), path, data=data, **changes)
    assert_untouched(other, before)
    assert files(path.parent) == left
    assert drawn == {}


def of_anything(bank: BNStatsBank) -> BNStatsBank:
    """A bank that does not say what it is of, and so is not refused for that."""
    return replace(bank, provenance={}, fingerprints={})


@pytest.mark.parametrize("what", ANOTHER_CALIBRATION)
def test_another_calibration_is_refused(model: nn.Module, bank: BNStatsBank, path: Path, what: str) -> None:
    bank = of_anything(bank)
    interrupt(model, bank, path)
    difference, changes = ANOTHER_CALIBRATION[what][0], dict(ANOTHER_CALIBRATION[what][1])
    other = changes.pop("model", model)
    refused(calibrated, other, bank, path, difference, **changes)


@pytest.mark.parametrize("what", ANOTHER_REFINEMENT)
def test_another_refinement_is_refused(model: nn.Module, blended: BNStatsBank, path: Path, what: str) -> None:
    bank = of_anything(blended)
    interrupt_refining(model, bank, path)
    difference, changes = ANOTHER_REFINEMENT[what][0], dict(ANOTHER_REFINEMENT[what][1])
    other = changes.pop("model", model)
    refused(refined, other, bank, path, difference, **changes)


def test_all_differences_are_named(model: nn.Module, bank: BNStatsBank, path: Path) -> None:
    bank = of_anything(bank)
    interrupt(model, bank, path)
    differences = (
        rf"the bank; the detector; criterion: 'consistency' there, 'labels' here; images: {IMAGES} there, 64 here"
    )
    changes = {"change": moved, "detector": NovelStripeDetector(59.0), "criterion": "labels", "images": 64}
    refused(calibrated, model, bank, path, differences, **changes)


def test_a_refinement_is_no_calibration(model: nn.Module, bank: BNStatsBank, path: Path) -> None:
    interrupt_refining(model, bank, path)
    kept_beside(path, "refining").rename(kept_beside(path))
    with pytest.raises(BankError, match="tuning: 'refining' there, 'calibrating' here"):
        calibrated(model, bank, path)


def flipped(whole: bytes, places: Iterator[int]) -> Iterator[bytes]:
    for place in places:
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_damaged_file_is_refused_and_left_alone(model: nn.Module, bank: BNStatsBank, path: Path) -> None:
    interrupt(model, bank, path)
    file = kept_beside(path)
    content = file.read_bytes()
    data = make_data()
    drawn = batches_drawn(data)
    for damaged in (content[:-7], content[: len(content) // 2], b"", b"?" * 100):
        file.write_bytes(damaged)
        with pytest.raises(BankError, match=r"cifar\.bank\.calibrating\.pt is damaged, or not what .*: remove it to"):
            calibrated(model, bank, path, data=data)
        assert file.read_bytes() == damaged
    torch.save({"weights": torch.zeros(3)}, file)
    with pytest.raises(BankError, match="is damaged, or not what an interrupted tuning left"):
        calibrated(model, bank, path, data=data)
    trap = Trap(path.with_name("sprung"))
    torch.save({"dynbn_tuning": {"used": {}, "settings": {}, "done": {"trap": trap}}}, file)
    with pytest.raises(BankError, match="is damaged, or not what an interrupted tuning left"):
        calibrated(model, bank, path, data=data)
    assert not trap.path.exists(), "nothing but tensors and plain values is unpickled"
    assert drawn == {}


def test_any_changed_bit_of_what_was_done_is_found(tmp_path: Path) -> None:
    path, values = tmp_path / "bank.safetensors", torch.arange(1000.0)
    unfinished = UnfinishedTuning(path, "calibrating", {}, {"seed": 1})
    with contextlib.suppress(KeyboardInterrupt), unfinished:
        unfinished.keep(values=values)
        raise KeyboardInterrupt
    (file,) = tmp_path.iterdir()
    content, found = file.read_bytes(), 0
    begin = content.index(values.numpy().tobytes())
    for damaged in flipped(content, itertools.chain(range(0, len(content), 61), range(begin, begin + 4000, 401))):
        file.write_bytes(damaged)
        try:
            done = UnfinishedTuning(path, "calibrating", {}, {"seed": 1}).done
        except BankError:
            found += 1
        else:  # what stands between the parts of the file matters to nothing
            assert torch.equal(done["values"], values)
    assert found > 4000 / 61
