"""Calibration data in all accepted forms, and what is refused."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny import tiny_model, tiny_samples
from torch.utils.data import DataLoader
from words import TEXTS, token_lists, word_tokenizer

from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens, probe_batch
from optimum_optin.reading.columns import text_columns


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert")


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.parametrize(
    "make",
    [
        lambda tokenizer: TEXTS,
        lambda tokenizer: Dataset.from_dict({"sentence": TEXTS, "label": [0] * len(TEXTS)}),
        lambda tokenizer: Dataset.from_dict({"idx": list(range(len(TEXTS))), "comment": TEXTS}),
        lambda tokenizer: Dataset.from_dict({**tokenizer(TEXTS), "label": [0] * len(TEXTS)}),
        lambda tokenizer: Dataset.from_dict(dict(tokenizer(TEXTS))).with_format("numpy"),
        lambda tokenizer: Dataset.from_dict(dict(tokenizer(TEXTS))).with_format("torch"),
        lambda tokenizer: [dict(tokenizer(text)) for text in TEXTS],
        lambda tokenizer: [tokenizer(text, return_tensors="pt") for text in TEXTS],
        lambda tokenizer: tokenizer(TEXTS),
        lambda tokenizer: _MapStyle(),
        lambda tokenizer: (text for text in TEXTS),
        lambda tokenizer: DataLoader([tokenizer(text) for text in TEXTS], 8, collate_fn=_collate(tokenizer)),
    ],
    ids=[
        "strings",
        "dataset",
        "odd column",
        "tokenised dataset",
        "numpy",
        "torch",
        "tokenised dicts",
        "batches of one",
        "encoding",
        "map style",
        "generator",
        "loader",
    ],
)
def test_every_form_gives_the_same_tokens(model, tokenizer, make):
    batches = calibration_batches(make(tokenizer), model, tokenizer)
    assert token_lists(batches) == sorted(tuple(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert all("label" not in batch and "labels" not in batch for batch in batches)
    assert all(len(batch["input_ids"]) <= 8 for batch in batches)


class _MapStyle:
    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        return {"text": TEXTS[index], "label": 0}


def _collate(tokenizer):
    return lambda samples: {**tokenizer.pad(samples, return_tensors="pt"), "labels": torch.zeros(len(samples))}


def test_pairs_are_tokenised_together(model, tokenizer):
    expected = sorted(tuple(tokenizer(one, other)["input_ids"]) for one, other in pairwise(TEXTS))
    pairs = list(pairwise(TEXTS))
    columns = Dataset.from_dict({"premise": TEXTS[:-1], "hypothesis": TEXTS[1:], "note": TEXTS[1:]})
    for data in (pairs, columns):
        assert token_lists(calibration_batches(data, model, tokenizer)) == expected


def test_the_draw_is_seeded_and_limited(model, tokenizer):
    def draw(seed):
        return token_lists(calibration_batches(tiny_samples(50), model, tokenizer, num_samples=10, seed=seed))

    assert len(draw(0)) == 10
    assert draw(0) == draw(0) != draw(1)


def test_padding_without_a_tokenizer(model, tokenizer):
    samples = tiny_samples()
    with_tokenizer = calibration_batches(samples, model, tokenizer)
    without = calibration_batches(samples, model)
    for one, other in zip(with_tokenizer, without, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["attention_mask"], other["attention_mask"])


def test_long_texts_are_cut_to_the_models_limit(tokenizer):
    lengths = {"bert": 64, "modernbert": 64, "roberta": 62, "mpnet": 62}  # the last two count after the padding index
    for model_type, length in lengths.items():
        model = tiny_model(model_type)
        (batch,) = calibration_batches([" ".join(TEXTS)], model, tokenizer)
        assert batch["input_ids"].shape == (1, length)
        assert model(**batch).logits.isfinite().all()
        (batch,) = calibration_batches([{"input_ids": [5] * 90}], model)
        assert batch["input_ids"].shape == (1, length)
    (batch,) = calibration_batches([" ".join(TEXTS)], tiny_model(), tokenizer, max_length=7)
    assert batch["input_ids"].shape == (1, 7)


def test_a_loader_is_read_up_to_the_number_of_samples(model):
    samples = [{"input_ids": torch.tensor([5, 6, 7])} for _ in range(40)]
    loaders = [
        DataLoader(samples, 8),
        DataLoader(samples, 40),
        DataLoader(samples, batch_sampler=[list(range(start, start + 4)) for start in range(0, 40, 4)]),
    ]
    for loader in loaders:
        assert sum(len(batch["input_ids"]) for batch in calibration_batches(loader, model, num_samples=10)) == 10


def test_padding_of_tokenised_samples_is_taken_off_before_the_cut(model):
    samples = [{"input_ids": [0] * 12 + [5, 6, 7, 8], "attention_mask": [0] * 12 + [1] * 4}]
    (batch,) = calibration_batches(samples, model, max_length=8)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8]]


def test_the_encoding_of_one_text_is_one_sample(model, tokenizer):
    (batch,) = calibration_batches(tokenizer(TEXTS[0]), model, tokenizer)
    assert batch["input_ids"].tolist() == [tokenizer(TEXTS[0])["input_ids"]]


def test_mean_tokens_leaves_padding_out():
    batch = {"input_ids": torch.ones(2, 6), "attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])}
    assert mean_tokens([batch], tiny_model()) == 4
    assert mean_tokens([{"input_ids": torch.ones(2, 6)}], tiny_model()) == 6


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_probe_batch_is_one_whole_sample(model_type):
    model = tiny_model(model_type)
    batch = probe_batch(model, 9)
    assert batch["input_ids"].shape == (1, 9)
    assert model(**batch).logits.isfinite().all()


def test_text_columns_prefers_known_names():
    assert text_columns(["idx", "sentence2", "sentence1"], ["sentence2", "sentence1"]) == ("sentence1", "sentence2")
    with pytest.raises(ValueError, match="among a, b, c: rename"):
        text_columns(["a", "b", "c"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "calibration data is empty"),
        (Dataset.from_dict({"text": []}), "calibration data is empty"),
        (None, "got NoneType: pass calibration data, or scores="),
        ("the cat", "got a single string"),
        (DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}), "a dict of splits: pass one split"),
        ([{"label": 1}], "among label: rename"),
        (Dataset.from_dict({"a": TEXTS, "b": TEXTS, "c": TEXTS}), "among a, b, c: rename"),
        ([3.5], "must be a string, a pair of strings or a dict, all alike, got 3.5"),
        ([{"input_ids": [5, 6], "attention_mask": [0, 0]}], "all padding"),
        ([{"input_ids": []}], "all padding"),
        (DataLoader([{"pixels": torch.ones(3)}]), "lacks the model's inputs: it has pixels"),
        (DataLoader([{"input_ids": [5, 6]}]), "dicts of tensors, input_ids is list"),
        (DataLoader(TEXTS), "dicts of tensors, got list"),
        (DataLoader([{"input_ids": torch.full((90,), 5)}]), "samples have 90 tokens, the model takes 64"),
        ([{"input_ids": [5, 99]}], "token ids run from 5 to 99, the model's vocabulary from 0 to 98"),
        ([{"input_ids": [[5, 6], [7, 8]]}], "whole numbers of shape"),
        (["the cat", ("a", "b")], "all alike"),
    ],
    ids=[
        "empty list",
        "empty dataset",
        "nothing",
        "one string",
        "splits",
        "no text",
        "ambiguous",
        "a number",
        "all padding",
        "no tokens",
        "other inputs",
        "lists in a loader",
        "strings in a loader",
        "too long",
        "other vocabulary",
        "two rows in one",
        "mixed",
    ],
)
def test_unusable_data_is_refused(model, tokenizer, data, message):
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, model, tokenizer)


def test_text_without_a_tokenizer_is_refused(model):
    with pytest.raises(ValueError, match="raw text needs a tokenizer"):
        calibration_batches(TEXTS, model)
