"""Labels of other classes than the model's head are refused at the first batch, whoever tests, naming both counts."""

import pytest
import torch
from callback_models import FakeDetector, bare_trainer, make_bank
from reported_modules import (
    CLASSES,
    LABELS,
    TEST_IMAGES,
    Silent,
    assert_records,
    labels_by_hand,
    logits_by_hand,
    make_data,
    make_network,
    run,
    stored_images,
)
from torch import nn
from torch.utils.data import Dataset

from dynbn_lightning import ClassifierModule, CorruptionReportCallback, DetectorModule, DynamicBNCallback, evaluate
from dynbn_lightning.callbacks.recording import RecordingCallback
from dynbn_lightning.datamodules.batches import BatchInfo
from dynbn_lightning.datamodules.classes import check_classes
from dynbn_lightning.errors import DataError


class Named(Dataset):
    """Test images that say their classes."""

    def __init__(self, count=CLASSES, labels=LABELS, target_transform=None):
        self.images = stored_images(TEST_IMAGES, 1, labels)
        self.classes = [f"class {number}" for number in range(count)]
        self.target_transform = target_transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        pixels, label = self.images[index]
        return pixels, int(label) if self.target_transform is None else self.target_transform(int(label))


def with_head(classes):
    network = make_network()
    network[-1] = nn.Linear(200, classes)
    return network


class Counted(ClassifierModule):
    steps = 0

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.steps += 1
        return super().test_step(batch, batch_idx, dataloader_idx)


WAYS = {
    "ClassifierModule": lambda network, data, folder: run(Counted(network), data),
    "RecordingCallback": lambda network, data, folder: run(Silent(network), data, RecordingCallback()),
    "report": lambda network, data, folder: run(Silent(network), data, CorruptionReportCallback(folder)),
    "evaluate": lambda network, data, folder: evaluate(network, data, output=folder, progress=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("classes", [2, CLASSES - 1, CLASSES + 1, 1000])
def test_another_number_of_classes_than_the_heads_is_named(tmp_path, way, classes):
    """With more logits than classes too, where no label is out of range and the accuracy would be nonsense."""
    network, data = with_head(classes), make_data(test=Named())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DataError, match=f"gives logits for {classes}") as raised:
        WAYS[way](network, data, tmp_path)
    assert f"the data has {CLASSES} classes" in str(raised.value)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", [CLASSES, 500, -1])
def test_a_label_of_no_class_is_named_with_its_image(tmp_path, way, label):
    labels = [*LABELS[:-1], label]
    data = make_data(test=stored_images(TEST_IMAGES, 1, labels), batch_size=TEST_IMAGES, stream="sequential")
    with pytest.raises(DataError, match=rf"image 6 has label {label}, which is of no class: .* for {CLASSES} classes"):
        WAYS[way](make_network(), data, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_label_of_no_class_is_found_in_a_later_batch_too_without_its_accuracy_being_counted():
    module = Counted(make_network())
    data = make_data(test=stored_images(TEST_IMAGES, 1, [*LABELS[:-1], 99]), batch_size=1, stream="sequential")
    with pytest.raises(DataError, match="image 6 has label 99, which is of no class"):
        run(module, data)
    order = [index for index, _ in data.test_dataloader()[0].dataset.pairs]
    assert module.steps == order.index(6) + 1
    logits = logits_by_hand(data, module.model)
    right = [int(logits["clean", index].argmax()) == LABELS[index] for index in order[: order.index(6)]]
    assert len(right) > 1
    assert float(module.test_accuracy.compute()) == pytest.approx(sum(right) / len(right))


def test_a_refused_test_gives_the_routed_model_back(tmp_path):
    network = with_head(5)
    callback = DynamicBNCallback(make_bank(network), FakeDetector())
    data = make_data(test=Named(), corruptions=("brightness", "contrast"))
    with pytest.raises(DataError, match=f"the data has {CLASSES} classes"):
        run(Silent(network), data, callback, CorruptionReportCallback(tmp_path))
    assert type(network[1]) is nn.BatchNorm2d
    assert not list(tmp_path.iterdir())


def test_labels_that_the_module_changes_are_believed():
    """As for a head of 1000 classes tested on 200 of them."""

    class Moves(Silent):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0], batch[1] + 100

    network, data, callback = with_head(200), make_data(test=Named()), RecordingCallback()
    run(Moves(network), data, callback)
    logits = logits_by_hand(data, network)
    labels = {place: label + 100 for place, label in labels_by_hand(data, logits).items()}
    assert_records(callback.records(), logits, labels)
    outside = make_data(test=Named(200, [label + 100 for label in LABELS]))

    class MovesBack(Silent):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0], batch[1] - 100

    callback = RecordingCallback()
    run(MovesBack(make_network()), outside, callback)
    assert callback.records().labels.max() < CLASSES


def test_labels_that_the_data_set_itself_changes_are_believed():
    network, callback = with_head(200), RecordingCallback()
    data = make_data(test=Named(target_transform=lambda label: 199 - label))
    run(Silent(network), data, callback)
    logits = logits_by_hand(data, network)
    assert_records(callback.records(), logits, labels_by_hand(data, logits))
    assert callback.records().labels.min() > 100


def test_the_rows_of_a_detector_are_not_classes_of_the_data():
    data = make_data(test=Named())
    detector = DetectorModule(data.rows, image_size=16, hidden=8)
    callback = RecordingCallback()
    bare_trainer(callback).test(detector, datamodule=data, verbose=False)
    assert set(callback.records().labels.tolist()) == {0, 1, 2}


def test_validation_alone_looks_at_the_classes_of_the_training_images():
    train = Named(3, [0, 1, 2, 0, 1, 2, 0])
    data = make_data(source=train, test=stored_images(TEST_IMAGES, 1, LABELS))
    with pytest.raises(DataError, match=rf"the data has 3 classes, but the model gives logits for {CLASSES}"):
        run(Silent(), data, RecordingCallback(), entry="validate")


class NeverAsked:
    """Labels on a device that must not be waited for."""

    def tolist(self):
        raise AssertionError("waits for the device")


def test_labels_that_fit_cost_no_wait_for_the_device():
    info = BatchInfo((3, 8), torch.tensor([0, 0]), ("clean", "clean"), (0, 4), 5)
    check_classes(info, NeverAsked(), 5, first=True)
    check_classes(info, NeverAsked(), 7, first=False)
    with pytest.raises(AssertionError, match="waits"):
        check_classes(info, NeverAsked(), 4, first=False)
