"""Ctrl-C at any line of the package's own code: the model is as it was, whatever the package was about to do."""

import sys
import threading
from pathlib import Path

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, make_bank, snapshot
from torch import nn

import dynbn_lightning.batchnorm
from dynbn_lightning.batchnorm import PROPAGATIONS, BatchStatisticsPolicy, BNStatsBank, Patch, PatchedLayer, routed

FOLDER = str(Path(dynbn_lightning.batchnorm.__file__).parent)


def lines_of(block, interrupt_at=None):
    """The lines of the package that `block` executes in order, up to the one before which Ctrl-C is pressed.

    In a thread, with which its exception state ends: if a trace function raises where an `except` clause is left,
    Python 3.11 keeps the exception that the clause was for.
    """
    lines = []

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        if not file.startswith(FOLDER):
            return None
        if event == "line":
            lines.append(f"{file[len(FOLDER) + 1 :]}:{frame.f_lineno}")
            if len(lines) - 1 == interrupt_at:
                raise KeyboardInterrupt
        return trace

    def run():
        sys.settrace(trace)
        try:
            block()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return lines


def first_and_last_visits(lines):
    """Of every line, the positions where it is executed for the first and for the last time."""
    first = {line: position for position, line in reversed(list(enumerate(lines)))}
    last = {line: position for position, line in enumerate(lines)}
    return sorted({*first.values(), *last.values()})


@pytest.fixture(autouse=True)
def unraisable(monkeypatch):
    """What was raised where nobody can catch it, as an interrupt in the `__del__` of a patch that is undone is."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: found.append(hook.exc_type))
    yield found
    torch.compiler.set_stance("default")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def images():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def batch_statistics(name, layer):
    return BatchStatisticsPolicy()


@pytest.mark.parametrize("assignment", [torch.tensor([1, 2]), torch.tensor([[0.5, 0.2, 0.3], [0, 1, 0]]), "frost"])
def test_around_routing(model, images, assignment):
    bank = make_bank(model, ("clean", "fog", "frost"), torch.Generator().manual_seed(2))
    before = snapshot(model)

    def route():
        with torch.no_grad(), routed(model, bank) as routing:
            routing.set(assignment)
            model(images)

    lines = lines_of(route)
    assert {"routing.py", "patching.py", "layers.py", "normalization.py"} <= {line.split(":")[0] for line in lines}
    for position in range(len(lines)) if isinstance(assignment, str) else first_and_last_visits(lines):
        lines_of(route, position)
        assert_same(before, model)


def test_around_a_patch_that_is_dropped(model, images):
    before = snapshot(model)

    def patch_and_undo():
        patch = Patch(model, batch_statistics)
        patch.apply()
        model(images)
        patch.undo()

    def patch_in_a_context():
        with Patch(model, batch_statistics):
            model(images)

    for block in (patch_and_undo, patch_in_a_context):
        for position in range(len(lines_of(block))):
            lines_of(block, position)
            assert_same(before, model)


def test_a_patch_that_is_kept_undoes_what_an_interrupt_left(model):
    before = snapshot(model)
    for position in range(len(lines_of(lambda: Patch(model, batch_statistics).apply()))):
        patch = Patch(model, batch_statistics)
        lines_of(patch.apply, position)
        patch.undo()
        assert_same(before, model)


def test_undoing_ends_what_it_began_and_can_be_called_again(model):
    before = snapshot(model)
    undoing = lines_of(Patch(model, batch_statistics).apply().undo)
    assert len(undoing) > 8
    for position in range(len(undoing)):
        patch = Patch(model, batch_statistics).apply()
        lines_of(patch.undo, position)
        if position == 0:  # nothing is begun
            assert isinstance(model[1], PatchedLayer)
            assert isinstance(model[2], PatchedLayer)
            patch.undo()
        assert_same(before, model)


def test_a_patch_that_was_never_made_is_dropped_without_a_word(model, unraisable):
    with pytest.raises(TypeError):
        Patch(model)
    lines_of(lambda: Patch(model, batch_statistics), 0)
    assert unraisable == []


# What is done for every propagation alike is interrupted in one of them.
OWN_FILES = {"batch": "", "source": "collecting.py", "sequential": ("sequential_collecting.py", "patching.py")}


@pytest.mark.parametrize("propagate", PROPAGATIONS)
def test_around_collecting(model, images, propagate):
    model.train()[1].eval()
    before, mistakes = snapshot(model), {}

    def collect():
        BNStatsBank.collect(model, {"fog": [images, images + 1]}, propagate=propagate, progress=False)

    lines = lines_of(collect)
    positions = [at for at in first_and_last_visits(lines) if lines[at].startswith(OWN_FILES[propagate])]
    assert len(positions) > 20
    for position in positions:
        lines_of(collect, position)
        try:
            assert_same(before, model)
        except AssertionError as error:
            mistakes[lines[position]] = str(error).partition("\n")[0]
            model.train()[1].eval()  # so that one mistake is not seen again and again
    assert mistakes == {}


def test_models_run_compiled_after_an_interrupted_collection(model, images):
    compiled = torch.compile(lambda x: x + int(torch.compiler.is_compiling()), backend="eager")
    zero = torch.zeros(())
    assert compiled(zero) == 1
    mistakes = []

    def collect():
        BNStatsBank.collect(model, {"fog": [images]}, progress=False)

    lines = lines_of(collect)
    for position in first_and_last_visits(lines):
        if lines[position].startswith("collecting.py"):
            lines_of(collect, position)
            if compiled(zero) != 1:
                mistakes.append(lines[position])
                torch.compiler.set_stance("default")
    assert mistakes == []


def test_an_interrupted_collection_goes_on_to_the_same_bank(model, images, tmp_path):
    path = tmp_path / "bank.safetensors"

    def collect():
        return BNStatsBank.collect(model, {"fog": [images], "frost": [images + 1]}, path=path, progress=False)

    expected = collect()
    path.unlink()
    lines = lines_of(collect)
    for position in first_and_last_visits(lines)[::8]:
        path.unlink()
        lines_of(collect, position)
        bank = collect()
        assert torch.equal(bank.mean, expected.mean)
        assert torch.equal(bank.var, expected.var)
        assert bank.provenance == expected.provenance
        assert list(tmp_path.iterdir()) == [path]
