"""Compiled models, wholly or partly, before or after patching: routed and measured as uncompiled ones are."""

import copy
import shutil

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, make_bank, snapshot, with_row_loaded
from torch import nn
from torch._dynamo.utils import counters

from dynbn_lightning.batchnorm import PROPAGATIONS, BNStatsBank, routed
from dynbn_lightning.errors import RoutingError

ROWS = ("clean", "fog", "frost")
ASSIGNED = [1, 0, 2, 1]
WEIGHTS = torch.tensor([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0.1, 0.8, 0.1]])
ASSIGNMENTS = {
    "rows": lambda routing: routing.set(torch.tensor(ASSIGNED)),
    "weights": lambda routing: routing.set(WEIGHTS),
    "a name": lambda routing: routing.set("frost"),
    "weights for all": lambda routing: routing.set(WEIGHTS[3]),
    "row 0": lambda routing: routing.set(torch.zeros(4, dtype=torch.int64)),
    "blended": lambda routing: routing.set(torch.tensor(ASSIGNED), source_weight=0.3),
    "adjacent": lambda routing: routing.set(torch.tensor([2, 1]), copies="adjacent"),
    "stacked": lambda routing: routing.set(WEIGHTS[:2], copies="stacked"),
    "cleared": lambda routing: routing.clear(),
}
ON_TORCH_2_6 = torch.__version__.startswith("2.6.")
BOUND = {"eager": 0.0, "aot_eager": 1e-6}  # the graph as it was written; the same in decomposed operations


class Chain(nn.Sequential):
    """A Sequential with a forward of its own: torch 2.6 compiles no frame of torch's own modules in place."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    if ON_TORCH_2_6:  # it takes what a module's attributes lead to for static, and compiles for each patch anew
        monkeypatch.setattr(torch._dynamo.config, "force_nn_module_property_static_shapes", False)
        monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 32)
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    model = Chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), block).eval()
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def bank(model):
    return make_bank(model, ROWS, torch.Generator().manual_seed(1))


def images(count=4):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def graphs():
    return counters["stats"]["unique_graphs"]


def outputs_by_assignment(patched, bank, run):
    """Assignment -> what `run` gives for the same images while `patched` is routed by it."""
    outputs = {}
    with routed(patched, bank) as routing:
        for name, assign in ASSIGNMENTS.items():
            assign(routing)
            outputs[name] = run(images())
    return outputs


def assert_alike(outputs, expected, bound):
    assert list(outputs) == list(expected)
    for name, out in outputs.items():
        torch.testing.assert_close(out, expected[name], rtol=bound, atol=bound, msg=lambda text, name=name: name + text)


def with_compiled(model, part, backend="eager"):
    """A copy of the model, or a part of it, compiled in one of the ways there are."""
    model = copy.deepcopy(model)
    options = {"backend": backend, "fullgraph": True}
    if part == "whole":
        return torch.compile(model, **options)
    if part == "whole, in place":
        model.compile(**options)
    elif part == "submodule":
        model[3] = torch.compile(model[3], **options)
    else:
        model[1] = torch.compile(model[1], **options)
    return model


def test_the_assignments_compared_here_differ(model, bank):
    outputs = outputs_by_assignment(model, bank, model)
    assert torch.equal(outputs["cleared"], outputs["row 0"])
    del outputs["cleared"]
    several = list(outputs.values())
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(several) for b in several[:i])


@pytest.mark.parametrize(
    ("part", "backend"),
    [
        ("whole", "eager"),
        ("whole", "aot_eager"),
        ("whole, in place", "eager"),
        ("submodule", "eager"),
        ("layer", "eager"),
    ],
)
def test_compiled_and_run_before_patching(model, bank, part, backend):
    expected = outputs_by_assignment(model, bank, model)
    compiled = with_compiled(model, part, backend)
    own = compiled(images())
    assert graphs() == 1
    before = snapshot(compiled)
    assert_alike(outputs_by_assignment(compiled, bank, compiled), expected, BOUND[backend])
    assert graphs() > 1
    assert_same(before, compiled)
    assert torch.equal(compiled(images()), own)


def test_compiled_after_patching_and_used_after_undoing_and_again(model, bank):
    own, expected = model(images()), outputs_by_assignment(model, bank, model)
    with routed(model, bank):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images()), own)
    assert_alike(outputs_by_assignment(model, bank, compiled), expected, 0)
    assert type(model[1]) is nn.BatchNorm2d
    assert torch.equal(compiled(images()), own)
    assert_alike(outputs_by_assignment(compiled, bank, compiled), expected, 0)


def test_channels_last_keeps_its_layout_and_row_0_its_bits(model, bank):
    model.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    in_channels_last = images().to(memory_format=torch.channels_last)
    own = compiled(in_channels_last)
    with routed(compiled, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        out = compiled(in_channels_last)
        torch.testing.assert_close(out, model(in_channels_last), rtol=1e-6, atol=1e-6)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out[1], own[1])


def test_gradients_are_those_of_the_uncompiled_model(model, bank):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    with torch.enable_grad(), routed(model, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        for run in (compiled, model):
            x = images().requires_grad_()
            run(x).square().sum().backward()
            gradients.append((x.grad, model[1].weight.grad))
            model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert gradients[0][0].abs().max() > 0.1


def test_a_batch_of_another_size_and_training_mode_are_refused(model, bank):
    compiled = torch.compile(model, backend="eager")
    with routed(compiled, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        compiled(images())
        for count in (2, 3, 8):
            with pytest.raises(RoutingError, match=f"layer '1' sees a batch of {count} but rows were assigned to 4"):
                compiled(images(count))
        compiled.train()
        with pytest.raises(RoutingError, match="layer '1' is in training mode"):
            compiled(images())


@pytest.mark.skipif(ON_TORCH_2_6, reason="torch 2.6 compiles for each patch anew: docs/concepts/routing.md says so")
def test_entering_again_and_again_with_several_batch_sizes_stops_recompiling(model, bank):
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    seen = []
    for turn in range(10):
        with routed(compiled, bank) as routing:
            for count in (4, 6, 3):
                routing.set((torch.arange(count) + turn) % 3)
                assert torch.equal(compiled(images(count)), model(images(count)))
                routing.set(WEIGHTS.roll(turn, 0)[torch.arange(count) % 4])
                assert torch.equal(compiled(images(count)), model(images(count)))
            routing.set(ROWS[1 + turn % 2])
            assert torch.equal(compiled(images(turn + 2)), model(images(turn + 2)))
            routing.clear()
            compiled(images())
        compiled(images(turn + 2))
        seen.append(graphs())
    assert 1 < seen[2] == seen[-1], seen


def test_ever_new_batch_sizes_stop_recompiling(model, bank):
    compiled = torch.compile(model, backend="eager")
    seen = []
    with routed(compiled, bank) as routing:
        for count in range(3, 10):
            routing.set(torch.arange(count) % 3)
            assert torch.equal(compiled(images(count)), model(images(count)))
            seen.append(graphs())
    assert seen[3] == seen[-1], f"graphs after each batch size: {seen}"


@pytest.mark.parametrize(
    ("part", "propagate"),
    [*(("whole", propagate) for propagate in PROPAGATIONS), ("whole, in place", "batch"), ("submodule", "sequential")],
)
def test_collecting_on_a_compiled_model_is_collecting_on_the_plain_one(model, part, propagate):
    def collect(model):
        return BNStatsBank.collect(model, {"fog": [images(), images(3) + 1]}, propagate=propagate, progress=False)

    expected = collect(model)
    compiled = with_compiled(model, part)
    own, compiled_once = compiled(images()), graphs()
    before = snapshot(compiled)
    bank = collect(compiled)
    assert torch.equal(bank.mean, expected.mean)
    assert torch.equal(bank.var, expected.var)
    assert (bank.layers, bank.fingerprints) == (expected.layers, expected.fingerprints)
    assert_same(before, compiled)
    assert torch.equal(compiled(images()), own)
    assert compiled_once == graphs() == 1


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="Inductor needs a C++ compiler")
def test_inductor_equals_image_by_image_with_each_row_loaded(model, bank):
    alone = [
        with_row_loaded(model, bank, ROWS[row])(image[None]) for row, image in zip(ASSIGNED, images(), strict=True)
    ]
    compiled = torch.compile(model, fullgraph=True)
    own = compiled(images())
    with routed(compiled, bank) as routing:
        routing.set(torch.tensor(ASSIGNED))
        torch.testing.assert_close(compiled(images()), torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert torch.equal(compiled(images()), own)
