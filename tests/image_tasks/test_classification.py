"""Classifiers: top-1 and top-5 against sorted logits of single images, and classes by name."""

import math

import evaluate
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from image_tasks_data import segmentation_processor, segmenter
from pictures import image_processor
from PIL import Image as Pillow
from tiny import tiny_model
from torch import nn

from optimum_optin.annotations import labels as labels_file
from optimum_optin.annotations.accuracy import accuracies, rank_of
from optimum_optin.annotations.labels import class_indices
from optimum_optin.evaluation import top_k_metric
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.evaluation.top_k_metric import TopKAccuracy
from optimum_optin.image_tasks.opening import read_pixels

TASK = "image-classification"
NAMES = ["cat", "dog", "emu", "fox", "gnu", "hen", "T-shirt/top"]
SHOWN = ["Cat", "dog", "emu", "hen"]  # those that there are images of


def classifier(names=NAMES, **changes):
    """A tiny ViT for these classes."""
    model = tiny_model("vit", num_labels=len(names), **changes)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


def _arrays(count=24):
    return np.random.default_rng(3).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


def write_classes(folder, names=SHOWN, split=None):
    """A folder for each class."""
    for place, image in enumerate(_arrays()):
        file = folder / (split or "") / names[place % len(names)] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(image).save(file)
    return folder


def _by_hand(model):
    """Share of images whose class is first, and among the first five; each image alone."""
    right = [0, 0]
    for place, image in enumerate(_arrays()):
        with torch.no_grad():
            logits = model(**image_processor()(images=Pillow.fromarray(image), return_tensors="pt")).logits[0]
        likely = sorted(range(len(logits)), key=lambda index: -float(logits[index]))
        name = SHOWN[place % len(SHOWN)].lower()
        true = [each.lower() for each in model.config.id2label.values()].index(name)
        right[0] += likely[0] == true
        right[1] += true in likely[:5]
    return [count / 24 for count in right]


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_a_folder_of_classes_is_measured_as_a_loop_does(tmp_path, batch_size):
    model = classifier()
    found = evaluate_model(
        model, image_processor(), TASK, data_dir=write_classes(tmp_path / "zoo"), batch_size=batch_size
    )
    shares = _by_hand(model)
    assert found == {
        "task": TASK,
        "dataset": "zoo",
        "split": "all",
        "samples": 24,
        "metrics": {
            name: {"value": pytest.approx(share), "error": pytest.approx(math.sqrt(share * (1 - share) / 24))}
            for name, share in zip(("accuracy", "top_5_accuracy"), shares, strict=True)
        },
    }
    assert 0 < shares[0] < shares[1] < 1, "or the test shows nothing"


def test_permuted_classes_give_the_same_figures(tmp_path):
    model = classifier()
    before = evaluate_model(model, image_processor(), TASK, data_dir=write_classes(tmp_path))
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label = dict(enumerate(reversed(NAMES)))
    assert evaluate_model(model, image_processor(), TASK, data_dir=tmp_path) == before


def test_splits_and_data_sets(tmp_path):
    model = classifier()
    for split in ("train", "val"):
        write_classes(tmp_path / "zoo", split=split)
    expected = evaluate_model(model, image_processor(), TASK, data_dir=tmp_path / "zoo")
    assert expected["split"] == "validation"
    files = sorted((tmp_path / "zoo" / "val").rglob("*.png"))
    names = [file.parent.name for file in files]
    indices = [["cat", "dog", "emu", "hen"].index(name.lower()) for name in names]
    images = list(map(str, files))
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "emu", "hen"])})
    by_label = Dataset.from_dict({"image": images, "label": indices}, features=features)
    features = Features({"img": Image(), "labels": Value("string")})
    by_name = Dataset.from_dict({"img": images, "labels": names}, features=features)
    by_index = by_label.cast_column("label", Value("int64")).map(lambda row: {"label": [0, 1, 2, 5][row["label"]]})
    for data in (by_label, by_name, by_index, DatasetDict({"test": by_label})):
        assert evaluate_model(model, image_processor(), TASK, data=data)["metrics"] == expected["metrics"]
    found = evaluate_model(model, image_processor(), TASK, data=DatasetDict({"train": by_name, "test": by_label}))
    assert (found["split"], found["samples"]) == ("test", 24)
    assert evaluate_model(model, image_processor(), TASK, data=by_label, max_samples=5)["samples"] == 5


def test_ranks_are_those_of_sorted_logits():
    logits = torch.randint(0, 4, (200, 7), generator=torch.Generator().manual_seed(0)).float()  # with ties
    targets = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(1))
    for logit, target, rank in zip(logits.tolist(), targets.tolist(), rank_of(logits, targets).tolist(), strict=True):
        assert sorted(range(7), key=lambda index: (-logit[index], index)).index(target) == rank
    assert set(accuracies(rank_of(logits, targets), 5)) == {"accuracy"}, "of five classes, five are no news"


def test_classes_without_names_are_matched_by_their_order(monkeypatch):
    said = []
    monkeypatch.setattr(labels_file.logger, "warning", said.append)
    folders = ["n01440764", "n01443537", "n01484850"]
    assert class_indices(folders, ["tench, Tinca tinca", "goldfish", "shark"], "ImageNet") == [0, 1, 2]
    assert class_indices(["cat", "dog"], ["LABEL_0", "LABEL_1"], "zoo") == [0, 1]
    assert len(said) == 2 and "they are matched by their order; check that it is the same" in said[0]
    assert class_indices(["T shirt/Top", "CAT"], NAMES, "zoo") == [6, 0] and len(said) == 2


def test_the_metric_is_one_of_evaluate():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 7, (50,), generator=torch.Generator().manual_seed(1))
    for metric in (TopKAccuracy(), evaluate.load(top_k_metric.__file__)):
        for top in (1, 3):
            found = metric.compute(predictions=logits.tolist(), references=targets.tolist(), k=top)
            among = (logits.topk(top).indices == targets[:, None]).any(1).double().mean()
            assert found == {"accuracy" if top == 1 else f"top_{top}_accuracy": pytest.approx(float(among))}


class _Plain(nn.Module):
    """A module of one's own, which has no config."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, len(NAMES))

    def forward(self, x):
        return self.head(x[:, :, 0, 0])


def _tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def test_a_plain_module_is_measured_with_its_labels_given(tmp_path):
    torch.manual_seed(0)
    model = _Plain()
    with torch.no_grad():
        model.head.weight.mul_(20)
    write_classes(tmp_path / "zoo")
    found = evaluate_model(model, _tensor, TASK, data_dir=tmp_path / "zoo", labels=NAMES)
    classes = [NAMES.index(SHOWN[place % len(SHOWN)].lower()) for place in range(24)]
    with torch.no_grad():
        predicted = [int(model(_tensor(image)[None]).argmax()) for image in _arrays()]
    right = sum(one == other for one, other in zip(predicted, classes, strict=True))
    assert found["metrics"]["accuracy"]["value"] == right / 24 and len(set(predicted)) > 1
    with pytest.raises(ValueError, match="this _Plain does not say which classes it has: give their names"):
        evaluate_model(model, _tensor, TASK, data_dir=tmp_path / "zoo")
    with pytest.raises(ValueError, match="labels='cat' must be a list of the names"):
        evaluate_model(model, _tensor, TASK, data_dir=tmp_path / "zoo", labels="cat")
    with pytest.raises(ValueError, match=r"needs logits of shape \(24, 2\) of this batch, _Plain gives \(24, 7\)"):
        evaluate_model(model, _tensor, TASK, data_dir=write_classes(tmp_path / "two", NAMES[:2]), labels=NAMES[:2])
    with pytest.raises(ValueError, match="images need an image processor, got int"):
        evaluate_model(model, 3, TASK, data_dir=tmp_path / "zoo", labels=NAMES)


def test_images_are_upright_and_16_bits_keep_their_shades(tmp_path):
    image = Pillow.fromarray(_arrays()[0])
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_pixels(str(tmp_path / "turned.png"), "RGB", "it"), np.rot90(_arrays()[0], -1))
    shades = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Pillow.fromarray(shades).save(tmp_path / "deep.png")
    assert np.array_equal(read_pixels((tmp_path / "deep.png").read_bytes(), "L", "it"), shades // 257)


# Bad input


@pytest.mark.parametrize(
    ("names", "shown", "message"),
    [
        (NAMES, ["cat", "zebra"], "has classes that the model does not know: zebra. It knows cat, dog"),
        (["a", "b"], ["cat", "dog"], "does not know: cat, dog"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["cat", "dog"], "does not know: cat, dog"),
    ],
    ids=["a class", "all classes", "another number"],
)
def test_classes_that_the_model_does_not_know_are_refused(tmp_path, names, shown, message):
    model = classifier(names)
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass before the input was refused"))
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, image_processor(), TASK, data_dir=write_classes(tmp_path, shown))


def test_labels_beyond_the_models_are_named(tmp_path):
    files = sorted(write_classes(tmp_path).rglob("*.png"))
    columns = {"image": list(map(str, files)), "label": [0] * 23 + [7]}
    data = Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("int64")}))
    with pytest.raises(ValueError, match=r"\.png has the label 7, and the model 7 classes, 0 to 6"):
        evaluate_model(classifier(), image_processor(), TASK, data=data)
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    unlabelled = Dataset.from_dict({**columns, "label": [-1] * 24}, features=features)
    with pytest.raises(ValueError, match=r"\.png has the label -1, which is none of the 2 classes of .*no labels"):
        evaluate_model(classifier(), image_processor(), TASK, data=unlabelled)
    columns["label"][3] = None
    data = Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("int64")}))
    with pytest.raises(ValueError, match=r"\.png has no label: add it"):
        evaluate_model(classifier(), image_processor(), TASK, data=data)


def test_images_that_cannot_be_read_and_outputs_that_are_not_finite(tmp_path):
    write_classes(tmp_path)
    model = classifier()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="outputs on image-classification are not finite"):
        evaluate_model(model, image_processor(), TASK, data_dir=tmp_path)
    with pytest.raises(ValueError, match="batch_size=0 must be"):
        evaluate_model(classifier(), image_processor(), TASK, data_dir=tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="max_samples=0 must be"):
        evaluate_model(classifier(), image_processor(), TASK, data_dir=tmp_path, max_samples=0)
    content = (tmp_path / "dog" / "1.png").read_bytes()
    (tmp_path / "dog" / "1.png").write_bytes(content[:200])
    with pytest.raises(ValueError, match=r"dog/1\.png cannot be read as an image"):
        evaluate_model(classifier(), image_processor(), TASK, data_dir=tmp_path)


def test_a_segmenter_is_no_classifier(tmp_path):
    with pytest.raises(ValueError, match="image-classification needs a model with such a head .*got Segformer"):
        evaluate_model(segmenter(), segmentation_processor(), TASK, data_dir=write_classes(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty: it holds no samples"):
        evaluate_model(classifier(), image_processor(), TASK, data_dir=tmp_path)
    Pillow.fromarray(_arrays()[0]).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="has no column label or labels"):
        evaluate_model(classifier(), image_processor(), TASK, data_dir=tmp_path)
