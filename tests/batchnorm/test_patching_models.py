"""Patching changes classes alone, routes by what was assigned, and always gives the model back."""

import copy
import io
import pickle
import threading

import pytest
import torch
from batchnorm_reference import assert_same, give_nontrivial_statistics, make_bank, snapshot, with_row_loaded
from torch import nn

from dynbn_lightning.batchnorm import (
    BatchStatisticsPolicy,
    BNStatsBank,
    Patch,
    PatchedLayer,
    patch_with_bank,
    routed,
    unpatch,
)
from dynbn_lightning.errors import BankError, RoutingError

ROWS = ("clean", "fog", "frost", "snow")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4 * 36), nn.LazyLinear(5))
    give_nontrivial_statistics(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(images(2))
    return model.eval()


@pytest.fixture
def bank(model):
    return make_bank(model, ROWS, torch.Generator().manual_seed(1))


def images(count=6):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def by_rows(model, bank, rows):
    with torch.no_grad():
        alone = [
            with_row_loaded(model, bank, ROWS[row])(image[None])
            for row, image in zip(rows, images(len(rows)), strict=True)
        ]
    return torch.cat(alone)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# What an assignment means


def test_each_image_gets_its_own_row_in_every_layer(model, bank):
    rows = [3, 0, 1, 2, 1, 3]
    with routed(model, bank) as routing:
        routing.set(torch.tensor(rows))
        torch.testing.assert_close(model(images()), by_rows(model_of(model), bank, rows), rtol=1e-5, atol=1e-5)


def model_of(patched):
    """An unpatched twin of a patched model, made from its state alone."""
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 5))
    twin.load_state_dict(patched.state_dict())
    return twin.eval()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_row_numbers_of_any_whole_dtype(model, bank, dtype):
    rows = [1, 0, 1, 3]  # as many as the bank has rows: a mask would be silently accepted
    expected = by_rows(model, bank, rows)
    with routed(model, bank) as routing:
        routing.set(torch.tensor(rows, dtype=dtype))
        torch.testing.assert_close(model(images(4)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_hot_weights_equal_row_numbers(model, bank, dtype):
    rows = torch.tensor([1, 0, 2, 3])
    with routed(model, bank) as routing:
        routing.set(rows)
        hard = model(images(4))
        routing.set(nn.functional.one_hot(rows, 4).to(dtype))
        assert torch.equal(model(images(4)), hard)


def test_average_and_moments_differ_in_the_variance_alone(model, bank):
    single = nn.Sequential(nn.BatchNorm2d(3)).eval()
    bank = make_bank(single, ROWS, torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    out = {}
    for mixing in ("moments", "average"):
        with routed(single, bank, mixing) as routing:
            routing.set(weights)
            out[mixing] = single(images(1))
    mean = weights @ bank.mean
    var = {
        "average": weights @ bank.var,
        "moments": weights @ (bank.var + (bank.mean - mean) ** 2),
    }
    for mixing, outputs in out.items():
        scaled = (images(1) - mean.view(1, 3, 1, 1)) / (var[mixing].view(1, 3, 1, 1) + 1e-5).sqrt()
        torch.testing.assert_close(outputs, scaled, rtol=1e-5, atol=1e-5)


def test_a_name_means_one_row_for_batches_of_any_size(model, bank):
    expected = by_rows(model, bank, [2] * 6)
    with routed(model, bank) as routing:
        routing.set("frost")
        for count in (6, 1, 4):
            torch.testing.assert_close(model(images(6)[:count]), expected[:count], rtol=1e-5, atol=1e-5)
        routing.set("clean")
        own = model(images())
    assert torch.equal(own, model(images()))


@pytest.mark.parametrize(("copies", "spelled_out"), [("adjacent", [1, 1, 0, 0, 2, 2]), ("stacked", [1, 0, 2, 1, 0, 2])])
def test_repeated_images_share_their_images_row_as_it_is_said(copies, spelled_out):
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(0))
    repeated = images(6)
    with routed(model, bank) as routing:
        routing.set(torch.tensor([1, 0, 2]), copies=copies)
        folded = model(repeated)
        routing.set(torch.eye(4)[[1, 0, 2]], copies=copies)
        assert torch.equal(folded, model(repeated))
        routing.set(torch.tensor(spelled_out))
        assert torch.equal(folded, model(repeated))
        routing.set(torch.tensor([1, 0, 2]))
        with pytest.raises(RoutingError, match=r"batch of 6 .* 3 images.*copies="):
            model(repeated)
        with pytest.raises(RoutingError, match="'adjacent', 'stacked'"):
            routing.set(torch.tensor([1, 0, 2]), copies="beside")


@pytest.mark.parametrize("rows", [[1, 2, 0, 3], [1, 1, 1, 1], [0, 0, 0, 0]], ids=["mixed", "one row", "source"])
@pytest.mark.parametrize("count", [2, 5, 6])
def test_a_batch_of_another_size_is_refused_whatever_the_rows(model, bank, rows, count):
    with routed(model, bank) as routing:
        routing.set(torch.tensor(rows))
        with pytest.raises(RoutingError, match=f"layer '1' sees a batch of {count} but rows were assigned to 4 images"):
            model(images(count))
        routing.clear()
        model(images(count))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (torch.tensor([0, 4]), "row numbers from 0 to 4 for a bank of 4 rows"),
        (torch.tensor([-1, 2]), "row numbers from -1 to 2"),
        (torch.tensor([], dtype=torch.int64), "empty batch"),
        (torch.zeros(0, 4), "empty batch"),
        (torch.tensor([True, False, True, True]), "torch.bool"),
        (torch.tensor([0.0, 1.0]), r"row numbers \(N,\), or mixture weights \(N, 4\)"),
        (torch.tensor(1), r"mixture weights \(N, 4\)"),
        (torch.zeros(2, 4, dtype=torch.int64), "torch.int64"),
        (torch.full((2, 3), 1 / 3), r"got \(2, 3\)"),
        (torch.randn(3, 4) * 5, "softmax"),
        (torch.tensor([[1.5, -0.5, 0, 0]]), "at least 0"),
        (torch.tensor([[0.5, 0.4, 0, 0]]), "sum to 1"),
        (torch.tensor([[float("nan"), 0.5, 0.5, 0], [1, 0, 0, 0]]), "nan"),
        ("frot", "no row 'frot': did you mean 'frost'"),
    ],
)
def test_assignments_that_mean_nothing_are_refused(model, bank, assignment, message):
    with routed(model, bank) as routing, pytest.raises(RoutingError, match=message):
        routing.set(assignment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_softmax_of_every_precision_is_a_mixture(model, bank, dtype):
    weights = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).to(dtype).softmax(1)
    with routed(model, bank) as routing:
        routing.set(weights)


def test_an_unknown_mixing_is_refused_before_any_forward(model, bank):
    before = snapshot(model)
    with pytest.raises(RoutingError, match="'median' is not one of"), routed(model, bank, "median"):
        pass
    assert_same(before, model)


# What patching leaves alone


def test_state_is_the_same_while_patched_and_loads(model, bank):
    state = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_modules()], [name for name, _ in model.named_parameters()]
    with routed(model, bank) as routing:
        routing.set("fog")
        model(images())
        assert ([name for name, _ in model.named_modules()], [name for name, _ in model.named_parameters()]) == names
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        saved = io.BytesIO()
        torch.save(model.state_dict(), saved)
        assert isinstance(model[1], nn.BatchNorm2d)
        other = {name: value + 1 for name, value in state.items()}
        model.load_state_dict(other)
    assert type(model[1]) is nn.BatchNorm2d
    assert torch.equal(model[1].running_mean, state["1.running_mean"] + 1)
    saved.seek(0)
    model.load_state_dict(torch.load(saved, weights_only=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_model_is_given_back_after(model, bank, error):
    own = model(images())
    model[4].register_forward_hook(lambda module, inputs, output: interrupt())

    def interrupt():
        if isinstance(model[1], PatchedLayer):
            raise error

    before = snapshot(model)
    with pytest.raises(error), routed(model, bank):
        model(images())
    assert_same(before, model)
    assert torch.equal(model(images()), own)


def test_a_forward_that_raises_leaves_the_patch_usable(model, bank):
    before = snapshot(model)
    with routed(model, bank) as routing:
        routing.set(torch.tensor([1, 2]))
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 4, 8, 8))
        model(images(2))
    assert_same(before, model)


def test_undo_twice_and_a_patch_that_fails_half_way(model):
    before = snapshot(model)
    patch = Patch(model, lambda name, layer: BatchStatisticsPolicy())
    assert_same(before, model)  # nothing before apply()
    patch.apply()
    assert isinstance(model[1], PatchedLayer)
    patch.undo()
    patch.undo()
    assert_same(before, model)

    def make_policy(name, layer):
        if name == "3":
            raise KeyboardInterrupt
        return BatchStatisticsPolicy()

    with pytest.raises(KeyboardInterrupt):
        Patch(model, make_policy).apply()
    assert_same(before, model)


def test_a_patch_that_was_undone_behind_its_back_leaves_the_next_one_on(model):
    before = snapshot(model)
    first = Patch(model, lambda name, layer: BatchStatisticsPolicy()).apply()
    unpatch(model)
    assert_same(before, model)
    with Patch(model, lambda name, layer: BatchStatisticsPolicy()):
        first.undo()
        assert isinstance(model[1], PatchedLayer)
        model(images())
    assert_same(before, model)


def test_hooks_still_run_and_survive(model, bank):
    calls = []
    handle = model[1].register_forward_hook(lambda module, inputs, output: calls.append(output))
    with routed(model, bank) as routing:
        routing.set("fog")
        model(images())
    handle.remove()
    assert len(calls) == 1
    assert not torch.equal(calls[0], model[1](model[0](images())))


def test_batch_statistics_policy_ignores_the_running_ones(model):
    before = snapshot(model)
    with Patch(model, lambda name, layer: BatchStatisticsPolicy()):
        out = model(images())
    assert_same(before, model)
    trained = copy.deepcopy(model).train()
    torch.testing.assert_close(out, trained(images()), rtol=1e-5, atol=1e-5)


def test_batch_statistics_refuse_training_mode(model):
    with (
        Patch(model, lambda name, layer: BatchStatisticsPolicy()),
        pytest.raises(RoutingError, match=r"training mode.*undo the patch before training"),
    ):
        model.train()(images())


# Copies


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_of_a_patched_model_is_routed_alike_and_independent(model, bank, duplicate):
    with routed(model, bank) as routing:
        routing.set(torch.tensor([3, 1, 0, 2]))
        routed_output = model(images(4))
        copied = duplicate(model)
        routing.set("snow")
        assert torch.equal(copied(images(4)), routed_output)
    assert torch.equal(copied(images(4)), routed_output)
    assert type(model[1]) is nn.BatchNorm2d
    assert list(copied.state_dict()) == list(model.state_dict())


def test_two_patched_models_run_in_threads(model, bank):
    twins = [model, copy.deepcopy(model)]
    rows = ([1, 2, 3, 0, 1, 2], [2, 2, 0, 1, 3, 3])
    expected = [by_rows(model, bank, assigned) for assigned in rows]
    outputs = [[], []]

    def run(which):
        with torch.no_grad(), routed(twins[which], bank) as routing:
            for _ in range(20):
                routing.set(torch.tensor(rows[which]))
                outputs[which].append(twins[which](images()))

    threads = [threading.Thread(target=run, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(2):
        assert len(outputs[which]) == 20
        for output in outputs[which]:
            torch.testing.assert_close(output, expected[which], rtol=1e-5, atol=1e-5)


# Misuse


def test_nested_patches_are_refused_and_the_outer_one_lives_on(model, bank):
    before = snapshot(model)
    with routed(model, bank) as routing:
        routing.set("fog")
        out = model(images())
        with pytest.raises(RoutingError, match="layer '1' is patched already"), routed(model, bank):
            pass
        with pytest.raises(RoutingError, match="patched already"):
            Patch(model[1], lambda name, layer: BatchStatisticsPolicy())
        with pytest.raises(RoutingError, match="patched already"):
            BNStatsBank.collect(model, {"fog": [images()]}, progress=False)
        assert torch.equal(model(images()), out)
    assert_same(before, model)


def test_a_bank_of_another_model_is_refused_before_patching(model, bank):
    other = nn.Sequential(nn.BatchNorm2d(3)).eval()
    before = snapshot(other)
    with pytest.raises(BankError, match="another model"):
        patch_with_bank(other, bank)
    assert_same(before, other)


def test_training_mode_is_refused(model, bank):
    with routed(model, bank) as routing:
        routing.set("fog")
        model[3].train()
        with pytest.raises(RoutingError, match=r"layer '3' is in training mode.*model\.eval\(\), or undo"):
            model(images())
        routing.clear()
        with pytest.raises(RoutingError, match="training mode"):
            model(images())
    assert model[3].training
    assert int(model[3].num_batches_tracked) == 1  # of the fixture's own batch


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4)], ids=lambda x: str(x)[:11])
def test_inputs_of_a_wrong_rank_are_refused_as_by_the_layer(layer):
    model = nn.Sequential(layer).eval()
    bank = make_bank(model, ROWS, torch.Generator().manual_seed(0))
    wrong = torch.zeros(2, 4, 2, 2, 2, 2)
    with pytest.raises(ValueError, match="6D input"):
        model(wrong)
    with routed(model, bank) as routing:
        routing.set(torch.tensor([1, 2]))
        with pytest.raises(ValueError, match="6D input"):
            model(wrong)
