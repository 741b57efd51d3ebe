"""Tiny models of speech with their processors, and sounds that tests write to disk."""

import json

import numpy as np
import torch
import transformers as tr
from scipy.io import wavfile
from tiny import perturbed

RATE = 16_000
SPEECH = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 4, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
    "classifier_proj_size": 16,
    "apply_spec_augment": False,
}
SIGNS = ["<pad>", "<unk>", "|", *"abcdefghijklmnopq"]


def speech_model(kind=tr.Wav2Vec2ForCTC, masked=False, **changes):
    """A tiny wav2vec2 with random weights; `masked` for one that takes an attention mask."""
    torch.manual_seed(0)
    norm = {"feat_extract_norm": "layer" if masked else "group", "do_stable_layer_norm": masked}
    return perturbed(kind(tr.Wav2Vec2Config(**SPEECH | norm | changes)))


def extractor(masked=False):
    return tr.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=masked)


def speech_processor(folder, masked=False):
    """A processor whose tokenizer spells with `SIGNS`."""
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({sign: place for place, sign in enumerate(SIGNS)}), encoding="utf-8")
    tokenizer = tr.Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    return tr.Wav2Vec2Processor(feature_extractor=extractor(masked), tokenizer=tokenizer)


def waves(*lengths, seed=0):
    """Noise, one array for each length."""
    drawn = np.random.default_rng(seed)
    return [(0.1 * drawn.standard_normal(length)).astype(np.float32) for length in lengths]


def write_wav(path, values, rate=RATE):
    """A WAV file, of the numbers' own type; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, values)
    return path
