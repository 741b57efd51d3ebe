"""Calibration sounds: every form that users have them in, and all that is wrong with some."""

import datasets
import numpy as np
import pytest
import torch
import transformers as tr
from dense import dense_model
from speech_data import RATE, extractor, speech_model, waves, write_wav
from tiny import tiny_model
from torch.utils.data import DataLoader

from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.reading.sources import read_calibration

LENGTHS = (3200, 3300, 3000, 2900)


@pytest.fixture(scope="module")
def model():
    return speech_model()


@pytest.fixture(scope="module")
def masked():
    return speech_model(masked=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _one(data, model, **options):
    (batch,) = calibration_batches(data, model, extractor(), **options)
    return batch["input_values"]


def test_every_form_gives_the_same_batch(model, tmp_path):
    sounds = waves(*[3000] * 4)
    files = [write_wav(tmp_path / "sounds" / f"{place}.wav", each) for place, each in enumerate(sounds)]
    expected = _one(sounds, model)
    assert expected.shape == (4, 3000)
    rows = read_calibration(tmp_path / "sounds")
    assert type(rows.features["audio"]).__name__ == "Audio"
    read = [
        np.stack(sounds),
        [torch.tensor(each) for each in sounds],
        [each.tolist() for each in sounds],
        [{"array": each, "sampling_rate": RATE} for each in sounds],
        [{"audio": {"array": each, "sampling_rate": RATE, "path": None}, "text": "hello"} for each in sounds],
        [(each, 3) for each in sounds],
        [{"speech": each, "label": 1} for each in sounds],
        files,
        list(map(str, files)),
        [file.read_bytes() for file in files],
        rows,
        rows["audio"],
        datasets.Dataset.from_dict({"audio": list(map(str, files))}).cast_column("audio", datasets.Audio()),
    ]
    for each in read:
        torch.testing.assert_close(_one(each, model), expected, rtol=1e-4, atol=1e-4)


def test_what_an_extractor_made_is_taken_as_it_is(masked):
    sounds = waves(*LENGTHS)
    made = extractor(masked=True)(sounds, sampling_rate=RATE, padding=True, return_tensors="pt")
    (expected,) = calibration_batches(sounds, masked, extractor(masked=True))
    assert set(expected) == {"input_values", "attention_mask"}
    rows = [{name: made[name][place] for name in made} for place in range(4)]
    loader = DataLoader(rows, batch_size=4)
    for data in (
        made,
        dict(made),
        rows,
        datasets.Dataset.from_list([{name: value.tolist() for name, value in each.items()} for each in rows]),
    ):
        (batch,) = calibration_batches(data, masked)
        for name, value in expected.items():
            torch.testing.assert_close(batch[name], value, rtol=1e-5, atol=1e-5)
    (batch,) = calibration_batches(loader, masked)
    torch.testing.assert_close(batch["input_values"], made["input_values"])


def test_sounds_are_filled_up_where_a_mask_says_so_and_cut_where_none_does(model, masked):
    sounds = waves(*LENGTHS, 9000)
    (batch,) = calibration_batches(sounds, masked, extractor(masked=True))
    assert batch["input_values"].shape == (5, 9000)
    assert sorted(batch["attention_mask"].sum(1).tolist()) == sorted([*LENGTHS, 9000])
    assert not batch["input_values"][~batch["attention_mask"].bool()].any()
    shapes = sorted(tuple(batch["input_values"].shape) for batch in calibration_batches(sounds, model, extractor()))
    assert shapes == [(1, 9000), (4, 2900)], "a model without a mask would hear what fills them up"


def test_a_sound_of_another_rate_is_resampled_and_that_is_said(model, caplog):
    low = [{"array": each, "sampling_rate": 8000} for each in waves(*[2000] * 3)]
    assert _one(low, model).shape == (3, 4000)
    assert caplog.text.count("sounds of 8,000 samples per second are resampled to the model's 16,000") == 1


def test_long_sounds_are_cut(model, caplog):
    assert _one(waves(31 * RATE), model).shape == (1, 30 * RATE)
    assert "1 of 1 sounds are longer than 30 seconds" in caplog.text
    cut = _one(waves(9000), model, max_length=50)
    with torch.no_grad():
        assert model(cut).logits.shape[1] == 50


BAD = {
    "empty": (np.zeros(0, np.float32), "it is empty"),
    "silent": (np.zeros(3000, np.float32), "it is silent"),
    "not a number": (np.array([0.1, np.nan] * 1500, np.float32), "NaN or infinite"),
    "short": (np.array([0.1, -0.1] * 12, np.float32), "it has 24 samples, and the model's first frame takes 65"),
    "missing": (None, "there is none"),
    "of two channels": (np.ones((2, 3000), np.float32), "one channel"),
    "damaged": (b"RIFF\x10\0\0\0WAVEfmt ", "row 1"),
    "no file": ("lost/one.wav", r"lost/one.wav \(there is no such file"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sound_is_left_out_and_named_or_stops_it_all(bad, model, caplog):
    value, message = BAD[bad]
    good = waves(3000, 3000)
    data = [{"audio": each} for each in (good[0], value, good[1])]
    assert len(_one(data, model)) == 2
    assert "2 of 3 calibration sounds are left" in caplog.text
    with pytest.raises(ValueError, match=f"a calibration sound cannot be read: .*{message}"):
        calibration_batches(data, model, extractor(), unreadable="stop")
    with pytest.raises(ValueError, match="none of the 1 calibration sounds can be read"):
        calibration_batches([{"audio": value}], model, extractor())


def test_a_wave_that_is_just_long_enough(model):
    assert _one(waves(65), model).shape == (1, 65)


WRONG = {
    "texts": (["a story", "another"], "model of sounds, but the calibration data hold text"),
    "rows of text": ([{"text": "a story"}], "cannot tell the column of sounds among text"),
    "two sounds": ([{"left": np.ones(9), "right": np.ones(9)}], "cannot tell the column of sounds among left, right"),
    "numbers": (np.ones(9, np.float32), "model of sounds, but the calibration data hold"),
    "rate in a tuple": ([(waves(3000)[0], 8000)], "tuples with 8000 after the sound"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_sound_is_refused(wrong, model):
    data, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, model, extractor())


def test_sounds_need_a_feature_extractor(model):
    for processor, given in ((None, "none"), (object(), "object")):
        with pytest.raises(ValueError, match=f"sounds need a feature extractor, got {given}"):
            calibration_batches(waves(3000), model, processor)


def test_options_of_texts_do_not_apply(model):
    with pytest.raises(ValueError, match="text_columns=.*model of sounds"):
        calibration_batches(waves(3000), model, extractor(), text_columns=["text"])
    with pytest.raises(ValueError, match="block_size=8 does not apply"):
        calibration_batches(waves(3000), model, extractor(), block_size=8)


def test_batches_that_a_model_cannot_take(model, masked):
    def loader(**inputs):
        return DataLoader([inputs], batch_size=1)

    with pytest.raises(ValueError, match=r"shape \(batch, samples\), got"):
        calibration_batches(loader(input_values=torch.ones(3000, 2)), model)
    with pytest.raises(ValueError, match="are empty, or NaN or infinite"):
        calibration_batches(loader(input_values=torch.full((3000,), float("nan"))), model)
    with pytest.raises(ValueError, match="a sound of 20 samples, and the front end .* takes 65"):
        calibration_batches(loader(input_values=torch.randn(20)), model)
    with pytest.raises(ValueError, match="all padding by its attention_mask"):
        inputs = {"input_values": torch.randn(3000), "attention_mask": torch.zeros(3000, dtype=torch.long)}
        calibration_batches(loader(**inputs), masked)


def test_sounds_for_other_models_are_refused(tmp_path):
    rows = [{"array": each, "sampling_rate": RATE} for each in waves(3000)]
    with pytest.raises(ValueError, match="hold sounds, but this is a model of text"):
        calibration_batches([{"audio": each} for each in rows], tiny_model())
    path = write_wav(tmp_path / "a.wav", waves(3000)[0])
    kept = datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column("audio", datasets.Audio())
    with pytest.raises(ValueError, match="hold sounds, but this is a model of text"):
        calibration_batches(kept, tiny_model())
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="model of images, but the calibration data hold sounds"):
        calibration_batches([path], dense_model("segformer"), tr.SegformerImageProcessor())


def test_features_of_one_length_are_batched_as_they_come():
    torch.manual_seed(0)
    config = tr.ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_length=64, num_mel_bins=32
    )
    model = tr.ASTForAudioClassification(config)
    (batch,) = calibration_batches(waves(9000, 5000), model, tr.ASTFeatureExtractor(max_length=64, num_mel_bins=32))
    assert batch["input_values"].shape == (2, 64, 32)
