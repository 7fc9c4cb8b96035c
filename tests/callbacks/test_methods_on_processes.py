"""On two and on three processes every method gives each image the prediction that it has on one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from method_references import tent
from methods_on_processes import (
    LEARNING_RATE,
    METHODS,
    STREAMS,
    TENT,
    Observed,
    fingerprint,
    make_tools,
    see,
    see_alone,
    small_data,
    use_tools,
)
from reported_modules import TEST_IMAGES, make_network
from started_processes import failures, of_several, start

FEW = ("source", "ema/never", "few_shot", "dynamic_bn/stream", "tent/batch")
"""What is tested on every stream outside the full run."""
OFTEN = ("mixed", "sequential")
CASES = [
    (method, stream)
    for method in METHODS
    for stream in STREAMS
    if stream in OFTEN or method in FEW or os.environ.get("DYNBN_FULL")
]
TENT_CASES = [(method, stream) for method in TENT for stream in STREAMS]
WORLDS = (2, 3)


def file_of(folder: Path, method: str, stream: str, rank: int) -> Path:
    return folder / f"{method.replace('/', '-')} {stream} {rank}.pt"


def run_all(rank: int, world: int, folder: Path) -> None:
    use_tools(folder)
    for method, stream in CASES + TENT_CASES:
        torch.save(see(method, stream, **of_several(world)), file_of(folder, method, stream, rank))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {world: tmp_path_factory.mktemp("processes") for world in WORLDS}
    for world, folder in folders.items():
        make_tools(folder)
        start(world, run_all, folder)
    use_tools(folders[2])
    return folders


def seen_by(folder: Path, method: str, stream: str, world: int) -> list[Any]:
    assert failures(folder) == []
    return [torch.load(file_of(folder, method, stream, rank), weights_only=False) for rank in range(world)]


def in_order(seen: list[Any]) -> dict[tuple[str, int], torch.Tensor]:
    return {place: logits for its in seen for place, logits in zip(its.places, its.logits, strict=True)}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("method", "stream"), CASES)
def test_each_image_is_seen_once_and_as_on_one_process(folders, method, stream, world):
    seen = seen_by(folders[world], method, stream, world)
    alone = see_alone(method, stream)
    places = [place for its in seen for place in its.places]
    assert len(places) == len(set(places)) == TEST_IMAGES * len(small_data().cells)
    assert set(places) == set(alone.places)
    there, here = in_order(seen), in_order([alone])
    for place, logits in here.items():
        torch.testing.assert_close(there[place], logits, rtol=0, atol=0, msg=f"{place}")
    assert all(its.weights == fingerprint(Observed()) for its in seen)


LASTING = [(method, stream) for method, stream in CASES + TENT_CASES if method != "tent/batch"]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("method", "stream"), LASTING)
def test_all_processes_remember_the_same_afterwards_as_one_does(folders, method, stream, world):
    first, *others = seen_by(folders[world], method, stream, world)
    for its in others:
        assert_same_memory(its.memory, first.memory)
    if method not in TENT:
        assert_same_memory(first.memory, see_alone(method, stream).memory)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("method", "stream"), CASES + TENT_CASES)
def test_what_is_logged_is_the_same_everywhere(folders, method, stream, world):
    first, *others = seen_by(folders[world], method, stream, world)
    assert all(its.logged == first.logged for its in others)
    if method not in TENT:
        assert first.logged == see_alone(method, stream).logged


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stream", ["mixed", "continual"])
def test_tent_takes_a_step_for_the_batches_of_all_processes(folders, stream, world):
    there = in_order(seen_by(folders[world], "tent", stream, world))
    alone = see_alone("tent", stream)
    batches = [(batch, None) for batch in alone.batches]
    by_hand = torch.cat(tent(make_network(), batches, LEARNING_RATE, at_a_time=world))
    assert len(alone.places) == len(by_hand)
    for place, logits in zip(alone.places, by_hand, strict=True):
        torch.testing.assert_close(there[place].double(), logits, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone.logits.double(), by_hand, rtol=1e-2, atol=1e-2)  # as many steps would be others


def assert_same_memory(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same_memory(first[name], second[name])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_memory(one, other)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first.cpu(), second.cpu())
    else:
        assert first == second
