"""Audio classification: accuracy against a loop, from folders of classes."""

import datasets
import pytest
import torch
import transformers as tr
from speech_data import RATE, extractor, speech_model, speech_processor, waves, write_wav

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.inputs.modalities import likely_modality
from optimum_optin.storage.loading import load_processor

TASK = "audio-classification"
NAMES = ["cat", "dog", "owl"]
LENGTHS = (3200, 3300, 5000, 2900, 4100, 3200)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def classifier(masked=True):
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    return speech_model(tr.Wav2Vec2ForSequenceClassification, masked, **labels)


def _folder(path, names=NAMES):
    for place, each in enumerate(waves(*LENGTHS)):
        write_wav(path / names[place % 3] / f"{place}.wav", each)
    return path


@pytest.mark.parametrize("masked", [False, True], ids=["without a mask", "with a mask"])
def test_accuracy_is_that_of_a_loop_whatever_the_batch_size(masked, tmp_path):
    model = classifier(masked)
    right = []
    with torch.no_grad():
        for place, wave in enumerate(waves(*LENGTHS)):
            logits = model(**extractor(masked)(wave, sampling_rate=RATE, return_tensors="pt")).logits
            right.append(int(logits.argmax()) == place % 3)
    assert 0 < sum(right) < 6, "all right or all wrong tests nothing"
    for size in (1, 4):
        found = evaluate_model(model, extractor(masked), TASK, data_dir=_folder(tmp_path), batch_size=size)
        assert found["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / 6)


def test_all_the_way(tmp_path):
    pruner = OptinPruner(classifier(), extractor(True), OptinConfig(flops=0.6, probes=2, rows=16, batch_size=4))
    pruner.prune(waves(*LENGTHS), save_dir=tmp_path / "pruned")
    entry = pruner.evaluate(TASK, data_dir=_folder(tmp_path / "data"))
    assert set(entry["metrics"]["accuracy"]) == {"dense", "dense_error", "pruned", "pruned_error"}
    model = tr.AutoModelForAudioClassification.from_pretrained(tmp_path / "pruned")
    processor = load_processor(tmp_path / "pruned", likely_modality(model))
    assert isinstance(processor, tr.Wav2Vec2FeatureExtractor)
    alone = evaluate_model(model.eval(), processor, TASK, data_dir=tmp_path / "data")
    assert alone["metrics"]["accuracy"]["value"] == entry["metrics"]["accuracy"]["pruned"]


def test_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="classes that the model does not know: ant, bee, fly"):
        evaluate_model(classifier(), extractor(True), TASK, data_dir=_folder(tmp_path / "a", ["ant", "bee", "fly"]))
    data = _folder(tmp_path / "b")
    with pytest.raises(ValueError, match="needs the model's feature extractor"):
        evaluate_model(classifier(), None, TASK, data_dir=data)
    with pytest.raises(ValueError, match="such a head"):
        evaluate_model(speech_model(), speech_processor(tmp_path), TASK, data_dir=data)
