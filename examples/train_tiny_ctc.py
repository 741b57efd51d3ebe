"""Train a small wav2vec2 that reads spoken digits, to have a real model of speech to prune.

    python examples/spoken_digits.py          # once: the data
    python examples/train_tiny_ctc.py         # on one thread, six minutes where it was written

Six layers of width 128 behind a convolutional front end of 20 ms frames, trained from scratch with CTC on 3,000
utterances. The errors printed last are of the model reloaded from disk, on the validation split, which chose nothing.
"""

import argparse
import csv
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from spoken_digits import CACHE as DATA
from spoken_digits import RATE
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.files.folders import atomic_folder, check_folder

CACHE = Path.home() / ".cache" / "optimum-optin" / "tiny_ctc"
VOCABULARY = ("<pad>", "<unk>", "|", *"0123456789")
WARM_UP = 0.1  # of all steps
SORTED = 400  # batches are drawn from this many utterances, sorted by length


def load(folder: Path = CACHE):
    """The model in evaluation mode and its processor, from where this script saved them."""
    if not (Path(folder) / "config.json").is_file():
        raise SystemExit(f"no model in {folder}: python examples/train_tiny_ctc.py makes it.")
    return AutoModelForCTC.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def new_processor() -> Wav2Vec2Processor:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.json")
        vocabulary.write_text(json.dumps({sign: place for place, sign in enumerate(VOCABULARY)}), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None, pad_token="<pad>")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=True)
    return Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)


def new_model() -> Wav2Vec2ForCTC:
    config = Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=512,
        conv_dim=(48, 64, 64, 64, 64),
        conv_stride=(5, 4, 2, 2, 2),
        conv_kernel=(10, 8, 4, 4, 4),
        num_feat_extract_layers=5,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
        apply_spec_augment=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return Wav2Vec2ForCTC(config)


def samples(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Waves and transcripts of a split."""
    from scipy.io import wavfile

    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    waves = [wavfile.read(folder / row["file_name"])[1].astype(np.float32) / 2**15 for row in rows]
    return waves, [row["transcription"] for row in rows]


def learning_rate(done: float) -> float:
    """A warm-up and half a wave of the cosine, as a share of the highest; `done` is the share of the steps."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def train(model, processor, waves, transcripts, arguments) -> None:
    """Train in place."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    chosen = np.random.default_rng(arguments.seed)
    batches: list[np.ndarray] = []
    started, losses = time.perf_counter(), []
    for step in range(arguments.steps):
        if not batches:
            order = chosen.permutation(len(waves))
            for start in range(0, len(order), SORTED):
                part = sorted(order[start : start + SORTED], key=lambda place: len(waves[place]))
                batches += [
                    part[first : first + arguments.batch_size] for first in range(0, len(part), arguments.batch_size)
                ]
            chosen.shuffle(batches := [np.array(each) for each in batches])
        places = batches.pop()
        inputs = processor([waves[place] for place in places], sampling_rate=RATE, padding=True, return_tensors="pt")
        labels = processor(text=[transcripts[place] for place in places], padding=True, return_tensors="pt")
        targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        rate = learning_rate(step / arguments.steps)
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate
        loss = model(**inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 25 == 24:
            passed = time.perf_counter() - started
            print(f"step {step + 1}: loss {np.mean(losses[-25:]):.3f}, {passed:.0f} s", flush=True)
    model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=DATA, help="(default: %(default)s)")
    parser.add_argument("--save-dir", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1200, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at its highest (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir)
    torch.manual_seed(arguments.seed)
    model, processor = new_model(), new_processor()
    print(f"{sum(each.numel() for each in model.parameters()) / 1e6:.2f}M parameters")
    train(model, processor, *samples(arguments.data_dir / "train"), arguments)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    options = {"data_dir": arguments.data_dir, "split": "validation"}
    print("reloaded:", evaluate_model(*load(save_dir), "automatic-speech-recognition", **options)["metrics"])


if __name__ == "__main__":
    main()
