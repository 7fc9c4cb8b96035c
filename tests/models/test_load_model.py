from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dynbn_lightning.errors import CheckpointError, DataError, UnsupportedModelError
from dynbn_lightning.models import NORMALIZATIONS, Normalization, cifar_resnet8, load_model


def small(num_classes=10, width=4):
    torch.manual_seed(num_classes)
    return cifar_resnet8(num_classes, width)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


LAYOUTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s, "best": 0.5},
    "model": lambda s: {"model": s, "args": {"lr": 1.0}},
    "data_parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled_data_parallel": lambda s: prefixed(s, "module._orig_mod."),
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
    "lightning": lambda s: {
        "pytorch-lightning_version": "2.6",
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
    },
    "lightning_net": lambda s: {"state_dict": prefixed(s, "net.")},
    "nested": lambda s: {"model": {"state_dict": prefixed(s, "module.")}},
    "old_batchnorm": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_load(tmp_path, layout):
    wanted = small()
    for module in wanted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    torch.save(LAYOUTS[layout](dict(wanted.state_dict())), tmp_path / "c.pt")
    model = load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")
    assert not model.training
    assert model.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, wanted.state_dict()[name]) for name, value in model.state_dict().items())


def test_safetensors_and_text_paths_load(tmp_path):
    wanted = small(5)
    save_file(dict(wanted.state_dict()), tmp_path / "c.safetensors")
    model = load_model("cifar_resnet8", checkpoint=str(tmp_path / "c.safetensors"), num_classes=5)
    assert torch.equal(model.linear.weight, wanted.linear.weight)


def test_width_and_classes_come_from_the_checkpoint(tmp_path):
    torch.save({"state_dict": prefixed(small(7, 6).state_dict(), "module.")}, tmp_path / "c.pt")
    model = load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")
    assert model.linear.weight.shape == (7, 24)


def test_normalization_is_a_plain_attribute_and_can_be_given(tmp_path):
    torch.save(small().state_dict(), tmp_path / "c.pt")
    model = load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt", normalization="cifar10")
    assert model.input_normalization == NORMALIZATIONS["cifar10"]
    assert not [name for name in model.state_dict() if "normalization" in name]
    assert pickle.loads(pickle.dumps(model)).input_normalization == NORMALIZATIONS["cifar10"]
    assert load_model("cifar_resnet8", pretrained=False).input_normalization == NORMALIZATIONS["imagenet"]
    assert load_model("cifar_resnet8", pretrained=False, normalization="none").input_normalization == Normalization(
        (0,), (1,)
    )
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        load_model("cifar_resnet8", pretrained=False, normalization="cifar_10")


def test_no_checkpoint_is_not_silently_random():
    with pytest.raises(CheckpointError, match=r"pass checkpoint=.*pretrained=False"):
        load_model("cifar_resnet20")
    assert load_model("cifar_resnet20", num_classes=3, pretrained=False).linear.out_features == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"1 missing \(layer1\.0\.conv1\.weight\)"),
        (lambda s: s.update({"extra.weight": torch.ones(1)}), r"1 unexpected \(extra\.weight\)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer3")], r"\d+ missing \(.* and \d+ more\)"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.ones(9, 4, 3, 3)}), r"\(9, 4, 3, 3\) in the file"),
    ],
)
def test_another_models_weights_are_named(tmp_path, change, message):
    state = dict(small().state_dict())
    change(state)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")


def test_another_depth_and_another_number_of_classes_are_named(tmp_path):
    torch.save(small(7).state_dict(), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"layer1\.1\.conv1\.weight"):
        load_model("cifar_resnet14", checkpoint=tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"pass num_classes=7"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt", num_classes=10)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    torch.save(small().state_dict(), tmp_path / "resnet8.pt")
    with pytest.raises(CheckpointError, match=r"did you mean .*resnet8\.pt"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "resnet_8.pt")
    with pytest.raises(CheckpointError, match="no folder"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "nowhere" / "c.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_model("cifar_resnet8", checkpoint=tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, this is no checkpoint", b"PK\x03\x04 half a zip", bytes(range(256))])
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a (PyTorch checkpoint|readable safetensors)"):
        load_model("cifar_resnet8", checkpoint=path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint_is_refused(tmp_path, zipped):
    path = tmp_path / "c.pt"
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model("cifar_resnet8", checkpoint=path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_objects_is_refused_and_not_run(tmp_path, zipped):
    content = {"state_dict": small().state_dict(), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace.*could run any code"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")


def test_a_checkpoint_without_weights_says_what_it_holds(tmp_path):
    torch.save({"optimizer": {"lr": 1.0}, "epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="a dict of optimizer, epoch"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="a list"):
        load_model("cifar_resnet8", checkpoint=tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnt20", "did you mean 'cifar_resnet20'"),
        ("resnet20", "did you mean 'cifar_resnet20'"),
        ("resnet50", "did you mean 'torchvision:resnet50' or 'timm:resnet50'"),
        ("tim:resnet50", "'timm:NAME'"),
        ("timm:", "'timm:NAME'"),
        ("timm:resnet_50", "did you mean 'timm:"),
        ("torchvision:resnet_50", "did you mean 'resnet50'"),
        ("hub:resnet50", "'hub:OWNER/REPO:NAME'"),
    ],
)
def test_unknown_names_suggest_the_nearest(name, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(name)


def test_timm_models_carry_their_normalization(tmp_path):
    import timm

    wanted = timm.create_model("resnet10t", num_classes=4)
    torch.save(wanted.state_dict(), tmp_path / "c.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model("timm:resnet10t", checkpoint=tmp_path / "c.pt", num_classes=4)
    assert torch.equal(model.fc.weight, wanted.fc.weight)
    assert not model.training
    assert model.input_normalization.mean == tuple(wanted.pretrained_cfg["mean"])
    with pytest.raises(CheckpointError, match="pass num_classes=4"):
        load_model("timm:resnet10t", checkpoint=tmp_path / "c.pt")


def test_timm_without_a_network_says_to_pass_a_checkpoint(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Connection refused")

    monkeypatch.setattr("timm.create_model", no_network)
    with pytest.raises(CheckpointError, match=r"Connection refused.*pass checkpoint="):
        load_model("timm:resnet10t")


def test_timm_published_weights_are_asked_for_and_keep_their_classes(monkeypatch):
    class Published(nn.Linear):
        pretrained_cfg = {"num_classes": 1000, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    calls = []
    monkeypatch.setattr("timm.create_model", lambda name, **kw: calls.append((name, kw)) or Published(1, 1))
    assert load_model("timm:resnet10t").input_normalization == NORMALIZATIONS["half"]
    assert calls == [("resnet10t", {"pretrained": True})]
    with pytest.raises(CheckpointError, match="1000 classes, not 10"):
        load_model("timm:resnet10t", num_classes=10)


def test_torchvision_models_load_checkpoints(tmp_path):
    import torchvision

    wanted = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    save_file(wanted.state_dict(), tmp_path / "c.safetensors")
    model = load_model("torchvision:shufflenet_v2_x0_5", checkpoint=tmp_path / "c.safetensors", num_classes=3)
    assert torch.equal(model.fc.weight, wanted.fc.weight)
    assert model.input_normalization == NORMALIZATIONS["imagenet"]


def test_torchvision_published_weights(monkeypatch):
    asked = []

    def no_network(self, *args, **kwargs):
        asked.append(self.url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", no_network)
    with pytest.raises(CheckpointError, match=r"Name or service not known.*pass checkpoint="):
        load_model("torchvision:shufflenet_v2_x0_5")
    assert len(asked) == 1
    with pytest.raises(CheckpointError, match="1000 classes, not 10"):
        load_model("torchvision:shufflenet_v2_x0_5", num_classes=10)


class FakeHub:
    """Stands for torch.hub: `owner/repo` (at `v1` or not) with one entry, `net`, which may not take pretrained=."""

    def __init__(self, monkeypatch, takes_pretrained=True, result=None):
        self.calls, self.takes_pretrained = [], takes_pretrained
        self.result = small() if result is None else result
        monkeypatch.setattr("torch.hub.load", self.load)
        monkeypatch.setattr("torch.hub.list", lambda repo, **kw: ["net", "resnet"])

    def load(self, repo, entry, *, trust_repo, **kwargs):
        self.calls.append((repo, entry, kwargs))
        if repo not in ("owner/repo", "owner/repo:v1"):
            raise OSError("HTTP Error 404")
        if entry != "net":
            raise RuntimeError(f"Cannot find callable {entry} in hubconf")
        if "pretrained" in kwargs and not self.takes_pretrained:
            raise TypeError("net() got an unexpected keyword argument 'pretrained'")
        return self.result


def test_hub_models_load(tmp_path, monkeypatch):
    hub = FakeHub(monkeypatch)
    with pytest.warns(UserWarning, match="normalization="):
        model = load_model("hub:owner/repo:net")
    assert model.input_normalization == NORMALIZATIONS["imagenet"]
    assert hub.calls == [("owner/repo", "net", {"pretrained": True})]
    wanted = small(3)
    torch.save(wanted.state_dict(), tmp_path / "c.pt")
    hub = FakeHub(monkeypatch, result=small(3).train())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model("hub:owner/repo:v1:net", tmp_path / "c.pt", num_classes=3, normalization="cifar10")
    assert hub.calls == [("owner/repo:v1", "net", {"pretrained": False, "num_classes": 3})]
    assert torch.equal(model.linear.weight, wanted.linear.weight)
    assert not model.training


def test_hub_entries_without_pretrained_are_called_without_it(monkeypatch):
    hub = FakeHub(monkeypatch, takes_pretrained=False)
    with pytest.warns(UserWarning, match="takes no pretrained="):
        load_model("hub:owner/repo:net", normalization="imagenet")
    assert hub.calls[-1] == ("owner/repo", "net", {})


def test_hub_errors_help(monkeypatch):
    FakeHub(monkeypatch)
    with pytest.raises(CheckpointError, match=r"404.*pass checkpoint="):
        load_model("hub:owner/nothing:net", normalization="imagenet")
    with pytest.raises(UnsupportedModelError, match="did you mean 'resnet'"):
        load_model("hub:owner/repo:resnet20", normalization="imagenet")
    FakeHub(monkeypatch, result=nn.Identity)
    with pytest.raises(UnsupportedModelError, match="gave a type"):
        load_model("hub:owner/repo:net", normalization="imagenet")


def test_a_normalization_that_is_a_guess_is_warned_of(tmp_path):
    path = tmp_path / "resnet8-12345678.th"
    torch.save(cifar_resnet8(width=4).state_dict(), path)
    with pytest.warns(UserWarning, match="taken to be 'imagenet'"):
        load_model("cifar_resnet8", path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model("cifar_resnet8", path, normalization="cifar10")
        published = tmp_path / f"resnet8-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.th"
        published.write_bytes(path.read_bytes())
        load_model("cifar_resnet8", published)


def test_the_public_checkpoints_are_known(dynbn_data):
    (path,) = (dynbn_data / "weights").glob("resnet20-*.th")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model("cifar_resnet20", path).input_normalization == Normalization.of("imagenet")
