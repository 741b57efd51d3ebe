"""Speech recognition: error rates against a loop over single sounds, through folders, data sets, pruner and command."""

import argparse
import csv
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import transformers as tr
from speech_data import RATE, extractor, speech_model, speech_processor, waves, write_wav
from tiny import perturbed
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.audio_tasks.errors import edits, plain_text
from optimum_optin.evaluation.comparison import evaluate_model

TASK = "automatic-speech-recognition"
LENGTHS = (3200, 3300, 5000, 2900, 4100)
SAID = ["Ab c.", "de, f g", "hij k", "l", "m n o p"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def _folder(path, said=SAID, rate=RATE):
    for place, each in enumerate(waves(*LENGTHS[: len(said)])):
        write_wav(path / f"{place}.wav", each, rate)
    with (path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("file_name", "transcription"), *((f"{n}.wav", each) for n, each in enumerate(said))]
        )
    return path


def _heard(model, processor, wave):
    """One sound alone, by transformers' own means."""
    with torch.no_grad():
        logits = model(**processor(wave, sampling_rate=RATE, return_tensors="pt")).logits
    return processor.batch_decode(logits.argmax(-1))[0]


@pytest.mark.parametrize("masked", [False, True], ids=["without a mask", "with a mask"])
def test_rates_are_those_of_a_loop_whatever_the_batch_size(masked, tmp_path):
    model, processor = speech_model(masked=masked), speech_processor(tmp_path, masked)
    heard = [_heard(model, processor, each) for each in waves(*LENGTHS)]
    assert any(heard), "a model that says nothing tests nothing"
    folder = _folder(tmp_path / "data")
    for exact in (True, False):
        said, found_text = (texts if exact else list(map(plain_text, texts)) for texts in (SAID, heard))
        pairs = list(zip(said, found_text, strict=True))
        words = sum(edits(one.split(), other.split()) for one, other in pairs) / sum(len(one.split()) for one in said)
        signs = sum(edits(one, other) for one, other in pairs) / sum(map(len, said))
        for size in (1, 2, 32):
            found = evaluate_model(model, processor, TASK, data_dir=folder, batch_size=size, exact=exact)
            assert found["metrics"]["wer"]["value"] == pytest.approx(words)
            assert found["metrics"]["cer"]["value"] == pytest.approx(signs)
    assert (found["task"], found["samples"], found["split"]) == (TASK, 5, "all")
    assert found["protocol"] == "transcripts compared without case and punctuation"
    exact = evaluate_model(model, processor, TASK, data_dir=tmp_path / "data", exact=True)
    assert exact["protocol"] == "transcripts compared as they are"


def test_a_perfect_recognizer_makes_no_errors(tmp_path):
    model, processor = speech_model(), speech_processor(tmp_path)
    said = [_heard(model, processor, each) for each in waves(*LENGTHS)]
    found = evaluate_model(model, processor, TASK, data_dir=_folder(tmp_path / "data", said))
    assert found["metrics"]["wer"] == {"value": 0.0, "error": 0.0}


def test_data_sets_and_splits(tmp_path):
    model, processor = speech_model(), speech_processor(tmp_path)
    sounds = [str(tmp_path / "data" / f"{place}.wav") for place in range(5)]
    expected = evaluate_model(model, processor, TASK, data_dir=_folder(tmp_path / "data"))["metrics"]
    for name in ("text", "sentence", "transcript"):
        rows = datasets.Dataset.from_dict({"audio": sounds, name: SAID}).cast_column("audio", datasets.Audio())
        assert evaluate_model(model, processor, TASK, data=rows)["metrics"] == expected
    assert evaluate_model(model, processor, TASK, data=rows, max_samples=3)["samples"] == 3


def test_the_pruned_model_is_measured_beside_the_dense_one(tmp_path):
    model, processor = speech_model(masked=True), speech_processor(tmp_path, masked=True)
    pruner = OptinPruner(model, processor, OptinConfig(flops=0.6, probes=2, rows=16, batch_size=4))
    pruned = pruner.prune(waves(*LENGTHS, *LENGTHS), save_dir=tmp_path / "pruned")
    entry = pruner.evaluate(TASK, data_dir=_folder(tmp_path / "data"))
    assert set(entry["metrics"]["wer"]) == {"dense", "dense_error", "pruned", "pruned_error"}
    reloaded = OptinPruner.from_pretrained(tmp_path / "pruned")
    assert isinstance(reloaded.processor, tr.Wav2Vec2Processor)
    alone = evaluate_model(reloaded.model, reloaded.processor, TASK, data_dir=tmp_path / "data")
    assert alone["metrics"]["wer"]["value"] == entry["metrics"]["wer"]["pruned"]
    assert type(pruned) is tr.Wav2Vec2ForCTC
    assert "wer" in str(pruner.report) and "| wer |" in str(pruner.create_model_card())


def test_a_model_that_writes_is_measured_by_what_it_generates(tmp_path):
    torch.manual_seed(0)
    config = tr.WhisperConfig(
        vocab_size=9,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_source_positions=50,
        max_target_positions=30,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = perturbed(tr.WhisperForConditionalGeneration(config)).eval()
    model.generation_config.max_length = 8
    words = ["<pad>", "<s>", "</s>", "<start>", "ay", "bee", "see", "dee", "ee"]
    plain = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, "<pad>"))
    tokenizer = tr.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>"]})
    mels = tr.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    heard = []
    for wave in waves(*LENGTHS):
        written = model.generate(**mels(wave, sampling_rate=RATE, return_tensors="pt"))
        heard.append(" ".join(words[token] for token in written[0].tolist() if token > 3))
    assert any(heard)
    processor = SimpleNamespace(feature_extractor=mels, tokenizer=tokenizer)
    said = [text or "ay" for text in heard]
    found = evaluate_model(model, processor, TASK, data_dir=_folder(tmp_path / "data", said))
    missed = sum(not text for text in heard)
    assert found["metrics"]["wer"]["value"] == pytest.approx(missed / sum(len(text.split()) for text in said))


BAD = {
    "classifier": (lambda path: speech_model(tr.Wav2Vec2ForSequenceClassification), speech_processor, "such a head"),
    "no processor": (lambda path: speech_model(), lambda path: None, "needs the model's processor"),
    "no tokenizer": (lambda path: speech_model(), lambda path: extractor(), "needs a processor with a tokenizer"),
}


@pytest.mark.parametrize("bad", BAD)
def test_models_that_do_not_fit(bad, tmp_path):
    make, processor, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        evaluate_model(make(tmp_path), processor(tmp_path), TASK, data_dir=_folder(tmp_path / "data"))


def test_samples_that_do_not_fit(tmp_path):
    model, processor = speech_model(), speech_processor(tmp_path)
    folder = _folder(tmp_path / "data")
    with (folder / "metadata.csv").open("a", newline="") as file:
        file.write("5.wav,\n")
    write_wav(folder / "5.wav", waves(3000)[0])
    with pytest.raises(ValueError, match=r"5\.wav has no transcript: add it"):
        evaluate_model(model, processor, TASK, data_dir=folder)
    (folder / "5.wav").write_bytes(b"RIFF\x10\0\0\0WAVEfmt ")
    with (folder / "metadata.csv").open("a", newline="") as file:
        file.write("5.wav,q\n")
    with pytest.raises(ValueError, match=r"5\.wav cannot be read"):
        evaluate_model(model, processor, TASK, data_dir=folder)
    rows = datasets.Dataset.from_dict({"sentences": ["a"]})
    with pytest.raises(ValueError, match="has no column audio or speech or sound"):
        evaluate_model(model, processor, TASK, data=rows)
    with pytest.raises(ValueError, match="all transcripts of .* are empty"):
        evaluate_model(model, processor, TASK, data_dir=_folder(tmp_path / "silence", ["...", "?"]))
    with pytest.raises(ValueError, match="exact='yes' must be True or False"):
        evaluate_model(model, processor, TASK, data_dir=folder, exact="yes")


def test_silence_is_listened_to(tmp_path):
    model, processor = speech_model(), speech_processor(tmp_path)
    folder = _folder(tmp_path / "data")
    write_wav(folder / "0.wav", np.zeros(3200, np.float32))
    assert evaluate_model(model, processor, TASK, data_dir=folder)["samples"] == 5


def test_the_command(tmp_path, capsys):
    from optimum_optin.commands.evaluate import add_arguments, run

    model, processor = speech_model(), speech_processor(tmp_path)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["--task", TASK, "--model", str(tmp_path / "model"), "--data-dir", str(_folder(tmp_path / "data"))]
    found, text = run(parser.parse_args([*given, "--exact"]))
    assert found["protocol"] == "transcripts compared as they are" and "wer: " in text
