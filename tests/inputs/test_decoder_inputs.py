"""Data for encoders with a decoder: pairs of texts, columns, tokenised rows; and what the model writes by itself."""

import copy
import logging

import pytest
import torch
import transformers as tr
from decoders import generator, prompts
from torch.utils.data import DataLoader
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.decoder_inputs import with_decoder_inputs
from optimum_optin.inputs.modalities import TEXTS_TO_TEXTS, modality_of
from optimum_optin.inputs.tokens import token_masks

ANSWERS = [" ".join(text.split()[-3:]) for text in TEXTS]
NAMES = ["t5", "t5 gated", "umt5", "bart", "mbart", "marian", "pegasus"]


def read_by_decoders(batches):
    """Real tokens that encoder and decoder of each sample read, sorted."""
    rows = []
    for batch in batches:
        for ids, mask, other, other_mask in zip(
            *(batch[f"{part}{name}"] for part in ("", "decoder_") for name in ("input_ids", "attention_mask")),
            strict=True,
        ):
            rows.append((tuple(ids[mask.bool()].tolist()), tuple(other[other_mask.bool()].tolist())))
    return sorted(rows)


def expected_pairs(model):
    """Texts and answers as the model reads them: the answer one place later, after the token that starts."""
    tokenizer, start = word_tokenizer(), model.config.decoder_start_token_id
    encoded = [tokenizer([text, answer])["input_ids"] for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    return sorted((tuple(text), (start, *answer[:-1])) for text, answer in encoded)


@pytest.mark.parametrize(
    "data",
    [
        list(zip(TEXTS, ANSWERS, strict=True)),
        [{"document": text, "summary": answer, "id": "7"} for text, answer in zip(TEXTS, ANSWERS, strict=True)],
        [{"text": text, "target": answer} for text, answer in zip(TEXTS, ANSWERS, strict=True)],
        {"source": TEXTS, "target": ANSWERS},
    ],
    ids=["pairs", "document and summary", "text and target", "columns"],
)
def test_pairs_of_texts(data):
    model = generator("t5")
    assert modality_of(model) is TEXTS_TO_TEXTS
    assert read_by_decoders(calibration_batches(data, model, word_tokenizer())) == expected_pairs(model)


@pytest.mark.parametrize("chosen", [["translation.en", "translation.de"], ["translation.en"]])
def test_columns_that_are_named(chosen):
    model = generator("t5")
    data = [{"translation": {"de": answer, "en": text}} for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    batches = calibration_batches(data, model, word_tokenizer(), text_columns=chosen)
    found = read_by_decoders(batches)
    assert [read for read, _ in found] == [read for read, _ in expected_pairs(model)]
    assert (found == expected_pairs(model)) == (len(chosen) == 2)
    with pytest.raises(ValueError, match=r"cannot tell what the model reads .* among translation\.de, translation\.en"):
        calibration_batches(data, model, word_tokenizer())


@pytest.mark.parametrize("columns", [("premise", "hypothesis"), ("en", "de"), ("text", "output")])
def test_nothing_is_guessed_in_silence(columns):
    data = [dict(zip(columns, pair, strict=True)) for pair in zip(TEXTS, ANSWERS, strict=True)]
    with pytest.raises(ValueError, match="in this order, with text_columns="):
        calibration_batches(data, generator("t5"), word_tokenizer())


def test_a_sample_without_its_answer_is_left_out(caplog):
    data = [{"document": text, "summary": answer} for text, answer in zip(TEXTS, ANSWERS, strict=True)]
    data[3]["summary"] = None
    batches = calibration_batches(data, generator("t5"), word_tokenizer())
    assert len(read_by_decoders(batches)) == len(data) - 1


@torch.no_grad()
def by_loop(model, inputs, most):
    """What a model writes without a cache, and what its decoder read on the way."""
    ends = model.generation_config.eos_token_id
    ids = torch.full((1, 1), model.config.decoder_start_token_id)
    while ids.shape[1] <= most:
        token = model(**inputs, decoder_input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
        if int(token) == ends or ids.shape[1] == most:
            break
        ids = torch.cat([ids, token], 1)
    return tuple(ids[0].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_texts_alone_are_followed_by_what_the_model_writes(name, caplog):
    seed = {"mbart": 4, "marian": 9}.get(name, 8)
    model, before = generator(name, seed), generator(name, seed).generation_config.to_dict()
    with torch.no_grad():  # some of its texts end early
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] *= 3
    samples = [{"input_ids": row.tolist()} for row in prompts(name, (9,) * 12)["input_ids"]]
    samples += [{"input_ids": row["input_ids"][:5]} for row in samples[:4]]
    with caplog.at_level(logging.WARNING):
        found = read_by_decoders(calibration_batches(samples, model, batch_size=4, max_length=12))
    expected = []
    for sample in samples:
        ids = torch.tensor([sample["input_ids"]])
        expected.append((tuple(sample["input_ids"]), by_loop(model, {"input_ids": ids}, 12)))
    assert found == sorted(expected)
    assert len({len(read) for _, read in found}) > 1
    assert model.generation_config.to_dict() == before, "and the model is as it was"


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_moved_as_the_class_does(name):
    """The logits, and so the loss, are those that the class has for these labels."""
    model = generator(name)
    (batch,) = calibration_batches(
        [{"input_ids": [5, 6, 7, 2], "labels": [9, 8, 7, 6, 2]}, {"input_ids": [8, 9, 7, 2], "labels": [11, 2]}], model
    )
    labels = torch.full((2, 5), -100)
    for row, ids in enumerate(batch["input_ids"].tolist()):
        said = [9, 8, 7, 6, 2] if ids[0] == 5 else [11, 2]
        labels[row, : len(said)] = torch.tensor(said)
    with torch.no_grad():
        mine = model(**batch).logits
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).logits
    real = labels != -100
    assert torch.equal(token_masks(model, batch)["decoder"], real)
    torch.testing.assert_close(mine[real], theirs[real])


def test_tokenised_rows_with_decoder_inputs_keep_them():
    model = generator("bart")
    rows = [{"input_ids": [5, 6, 7], "decoder_input_ids": [2, *range(5, 6 + row)], "labels": None} for row in range(3)]
    found = read_by_decoders(calibration_batches(rows, model))
    assert [read for _, read in found] == [tuple(row["decoder_input_ids"]) for row in rows]
    padded = [{**row, "decoder_input_ids": row["decoder_input_ids"] + [0] * 3} for row in rows]
    loader = DataLoader(padded[2:], batch_size=1, collate_fn=lambda part: {
        name: torch.tensor([each[name] for each in part]) for name in ("input_ids", "decoder_input_ids")
    })  # fmt: skip
    (batch,) = calibration_batches(loader, model)
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0]]


def test_a_loader_with_labels_or_without():
    model = generator("t5")
    ids = torch.randint(5, 95, (4, 6), generator=torch.Generator().manual_seed(0))
    batches = calibration_batches(DataLoader([{"input_ids": row, "labels": row[:3]} for row in ids], 2), model)
    assert sorted(batch["decoder_input_ids"][0].tolist() for batch in batches) == sorted(
        [0, *ids[row, :2].tolist()] for row in (0, 2)
    )
    assert all("labels" not in batch for batch in batches)
    written = calibration_batches(DataLoader([{"input_ids": row} for row in ids], 2), model, max_length=5)
    assert all(batch["decoder_input_ids"].shape == (2, 5) for batch in written)


@pytest.mark.parametrize("kind", [tr.BartForSequenceClassification, tr.BartModel])
def test_a_decoder_that_writes_nothing_reads_what_its_encoder_does(kind):
    torch.manual_seed(0)
    model = kind(generator("bart").config).eval()
    (batch,) = calibration_batches([{"input_ids": [5, 9, 2], "labels": 1}] * 3, model)
    alone = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch)[0], model(**alone)[0])


LONG = {"input_ids": [5, 6], "labels": list(range(5, 85))}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([{"labels": [5, 6, 1], "decoder_input_ids": [0, 5, 6]}] * 3, "and no input_ids for the encoder"),
        ([{"input_ids": [5], "labels": [5, 1]}, {"input_ids": [5]}], "neither labels nor decoder_input_ids"),
        ([{"input_ids": [5], "labels": []}], "labels of the sample in row 0 are empty"),
        ([{"input_ids": [5], "labels": [120, 5]}] * 2, "its vocabulary from 0 to 98"),
        (DataLoader([{"input_ids": torch.tensor([5, 6]), "labels": 1}], 1), "must be the token ids"),
    ],
)
def test_data_that_do_not_fit(data, match):
    with pytest.raises(ValueError, match=match):
        calibration_batches(data * 1 if isinstance(data, list) else data, generator("t5"))


def test_labels_longer_than_the_decoder_takes_are_cut_and_named(caplog):
    (batch,) = calibration_batches([LONG], generator("bart"))
    assert batch["decoder_input_ids"].shape[1] == 64
    with pytest.raises(ValueError, match="the decoder is to read 80 tokens, and takes 64"):
        calibration_batches(DataLoader([{name: torch.tensor(ids) for name, ids in LONG.items()}], 1), generator("bart"))


def test_blocks_are_for_models_that_predict_the_next_token():
    with pytest.raises(ValueError, match="block_size=8 does not apply: it is for texts of models that predict"):
        calibration_batches(TEXTS, generator("t5"), word_tokenizer(), block_size=8)


def test_a_model_that_does_not_say_what_its_decoder_starts_with():
    model = generator("bart")
    model.config = copy.deepcopy(model.config)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = None
    for sample in ({"input_ids": [5, 6]}, {"input_ids": [5, 6], "labels": [5, 2]}):
        with pytest.raises(ValueError, match=r"set model\.config\.decoder_start_token_id"):
            calibration_batches([sample] * 2, model)


def test_batches_must_agree_on_what_they_say():
    ids = torch.full((1, 3), 5)
    with pytest.raises(ValueError, match="some calibration batches have"):
        with_decoder_inputs([{"input_ids": ids}, {"input_ids": ids, "labels": ids}], generator("t5"))


@torch.no_grad()
def test_a_decoder_with_few_positions_goes_all_the_way():
    """Fewer than the 64 tokens that a model is let write by itself, and than the 32 of the report."""
    dense, positions = generator("whisper"), 24
    config = tr.WhisperConfig.from_dict({**dense.config.to_dict(), "max_target_positions": positions})
    model = tr.WhisperForConditionalGeneration(config).eval()
    weights = {
        name: weight[:positions] if name.endswith("decoder.embed_positions.weight") else weight
        for name, weight in dense.state_dict().items()
    }
    model.load_state_dict(weights)
    sounds = [{"input_features": each} for each in prompts("whisper", lengths=range(12))["input_features"]]
    pruner = OptinPruner(model)
    pruned = pruner.prune(sounds, OptinConfig(flops=0.7, probes=4, rows=16, search="ranked", batch_size=4))
    assert pruner.report.continuations.tokens == positions - 4, "as many as it takes after four that it may start with"
    assert sum(map(torch.numel, pruned.parameters())) < sum(map(torch.numel, model.parameters()))


def test_a_model_that_writes_padding_alone_is_refused_with_a_way_out():
    model = copy.deepcopy(generator("whisper"))
    model.generation_config.suppress_tokens = list(range(1, 99))
    with pytest.raises(
        ValueError, match="generate does not run on input_features .*: give labels or decoder_input_ids"
    ):
        with_decoder_inputs([prompts("whisper")], model)


def test_sounds_are_followed_by_what_the_model_writes():
    model = generator("whisper")
    (batch,) = with_decoder_inputs([prompts("whisper")], model, max_length=6)
    for row in range(2):
        read = by_loop(model, {"input_features": batch["input_features"][row : row + 1]}, 6)
        real = batch["decoder_attention_mask"][row].bool()
        assert tuple(batch["decoder_input_ids"][row, real].tolist()) == read


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_group_is_scored_and_refitted_by_what_the_decoder_reads(name):
    """Another text to write changes the scores of all stacks' groups, cross-attention included."""
    model = generator(name)
    rows = [{"input_ids": row.tolist()} for row in prompts(name, (9,) * 16)["input_ids"]]
    answers = torch.randint(5, 95, (2, 16, 6), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for targets in answers:
        data = [{**row, "labels": labels} for row, labels in zip(rows, targets, strict=True)]
        scores = OptinPruner(model).score(data, OptinConfig(probes=4, rows=16))
        found.append(scores.terms["output"])
    for key, one in found[0].items():
        assert (one > 0).any() and not torch.allclose(one, found[1][key], rtol=1e-3), key
    pruner = OptinPruner(model)
    pruner.prune(data, OptinConfig(flops=0.7, probes=4, rows=16, search="ranked"))
    assert pruner.report.refit == {}, "every group was refitted to the stream that it joins"
