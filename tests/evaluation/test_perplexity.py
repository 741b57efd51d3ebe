"""Perplexity: against a loop over tokens, whatever blocks, strides and batches; and what it refuses."""

import argparse
import json
import math
import types

import pytest
import torch
from datasets import Dataset, DatasetDict
from language_models import language_model
from tiny import tiny_model
from transformers import BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.commands import evaluate as command
from optimum_optin.discovery.next_tokens import predicts_next_token
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.figures import Evaluation
from optimum_optin.text_tasks import causal_models as module
from optimum_optin.text_tasks.causal_models import surprises
from optimum_optin.text_tasks.perplexity import perplexity

TEXT = "\n".join(TEXTS)


def measured(model, tokenizer, text=TEXT, **options):
    found = evaluate_model(model, tokenizer, "perplexity", data=[text], **options)
    return found["metrics"]["perplexity"], found


@torch.no_grad()
def by_loop(model, ids, size, stride):
    """-log p of each token that counts, one pass for each: block by block."""
    blocks, had = [], 0
    for start in range(0, len(ids) - size + 1, stride):
        losses = []
        for place in range(max(start + 1, had), start + size):
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1]
            losses.append(-float(logits.double().log_softmax(-1)[ids[place]]))
        blocks.append(losses)
        had = start + size
    return blocks


@pytest.mark.parametrize("stride", [16, 5, 1])
def test_it_is_that_of_a_loop_over_tokens(stride):
    model, tokenizer = language_model(), word_tokenizer()
    blocks = by_loop(model, tokenizer(TEXT)["input_ids"], 16, stride)
    losses = [loss for block in blocks for loss in block]
    (found, entry) = measured(model, tokenizer, block_size=16, stride=stride, batch_size=3)
    assert found["value"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert entry["samples"] == len(blocks) > 3
    assert entry["protocol"].startswith("blocks of 16 tokens") and ("every" in entry["protocol"]) == (stride < 16)


def test_neither_batches_nor_chunks_change_it(monkeypatch):
    model, tokenizer = language_model(), word_tokenizer()
    whole, _ = measured(model, tokenizer, block_size=16, batch_size=64)
    monkeypatch.setattr(module, "_MOST_AT_ONCE", 3 * model.config.vocab_size)
    monkeypatch.setattr(module, "_MOST_LOGITS", 40 * model.config.vocab_size)
    counted = types.SimpleNamespace(sizes=[])
    model.register_forward_pre_hook(
        lambda module, args, kwargs: counted.sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    parts, _ = measured(model, tokenizer, block_size=16, batch_size=64)
    assert parts["value"] == pytest.approx(whole["value"], rel=1e-5)
    assert max(counted.sizes[2:]) == 2, "40 tokens of logits are two blocks; the first passes ask what model it is"


def test_the_first_blocks_count_and_a_rest_does_not():
    model, tokenizer = language_model(), word_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    losses = [loss for block in by_loop(model, ids[:48], 16, 16) for loss in block]
    found, entry = measured(model, tokenizer, block_size=16, max_samples=3)
    assert entry["samples"] == 3
    assert found["value"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_the_error_is_that_of_resampled_blocks():
    generator = torch.Generator().manual_seed(0)
    counts = torch.full((400,), 31)
    sums = 31 * (3 + 0.2 * torch.randn(400, generator=generator, dtype=torch.float64))
    _, error = perplexity(sums, counts)
    drawn = torch.randint(400, (2000, 400), generator=generator)
    resampled = (sums[drawn].sum(1) / counts[drawn].sum(1)).exp()
    assert error == pytest.approx(float(resampled.std()), rel=0.1)
    assert perplexity(sums[:1], counts[:1])[1] is None


def test_surprises_are_those_of_the_token_before():
    logits, tokens = torch.randn(7, 11), torch.randint(11, (7,))
    expected = torch.stack([-logits[place - 1].log_softmax(-1)[tokens[place]] for place in range(1, 7)])
    torch.testing.assert_close(surprises(logits, tokens), expected)


# What texts come from


def test_files_are_read_as_they_are_and_rows_joined_by_empty_lines(tmp_path):
    model, tokenizer = language_model(), word_tokenizer()
    half = len(TEXTS) // 2
    (tmp_path / "test.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "valid.txt").write_text("\n\n".join(TEXTS[:half]), encoding="utf-8")
    rows = Dataset.from_dict({"text": TEXTS, "label": list(range(len(TEXTS)))})
    options = {"block_size": 16}
    of_file = evaluate_model(model, tokenizer, "perplexity", data_dir=tmp_path / "test.txt", **options)
    of_folder = evaluate_model(model, tokenizer, "text-generation", data_dir=tmp_path, split="test", **options)
    of_rows = evaluate_model(model, tokenizer, "perplexity", data=DatasetDict(test=rows), split="test", **options)
    assert of_file["metrics"] == of_folder["metrics"] == of_rows["metrics"]
    assert (of_file["dataset"], of_file["split"]) == ("test.txt", "all")
    assert (of_folder["dataset"], of_folder["split"], of_folder["task"]) == (tmp_path.name, "test", "perplexity")
    usual = evaluate_model(model, tokenizer, "perplexity", data_dir=tmp_path, **options)
    assert usual["split"] == "validation" and usual["samples"] < of_folder["samples"]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS), encoding="utf-8")
    of_jsonl = evaluate_model(model, tokenizer, "perplexity", data_dir=tmp_path / "rows.jsonl", **options)
    assert of_jsonl["metrics"] == of_rows["metrics"]


def test_the_pruned_model_is_measured_as_reloaded_and_the_report_keeps_it(tmp_path):
    pruner = OptinPruner(language_model(), word_tokenizer())
    pruner.prune(TEXTS, OptinConfig(flops=0.7, probes=4, search="ranked"))
    entry = pruner.evaluate("perplexity", data=TEXTS, block_size=16)
    expected, _ = measured(pruner.pruned_model, word_tokenizer(), "\n\n".join(TEXTS), block_size=16)
    assert entry["metrics"]["perplexity"]["pruned"] == pytest.approx(expected["value"], rel=1e-5)
    shown = str(pruner.report.evaluations[0])
    assert f"{entry['metrics']['perplexity']['dense']:.2f} ±" in shown and "(blocks of 16 tokens)" in shown
    assert "perplexity, blocks of 16 tokens" in pruner.create_model_card().text
    assert pruner.report.evaluations[0] == Evaluation(**json.loads(json.dumps(entry)))


def test_the_command_measures(tmp_path, capsys):
    language_model().save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    place = ["--model", str(tmp_path / "dense"), "--data-dir", str(tmp_path / "text.txt")]

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(["--task", "perplexity", *place, "--block-size", "16", "--stride", "8"])
    result, text = command.run(arguments)
    value = result["metrics"]["perplexity"]["value"]
    assert result["protocol"] == "blocks of 16 tokens, one every 8" and f"perplexity: {value:.2f} ±" in text


# What is refused


def test_what_looks_ahead_or_has_no_such_head_is_no_language_model():
    tokenizer = word_tokenizer()
    assert predicts_next_token(language_model())
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64))
    assert predicts_next_token(gpt.bfloat16())
    for encoder in (tiny_model("bert", model_class=BertForMaskedLM), tiny_model("bert")):
        assert not predicts_next_token(encoder)
        with pytest.raises(ValueError, match="needs a causal language model.*Bert.*task='text-generation'"):
            measured(encoder, tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 65}, "block_size=65 is more than the 64 tokens that this LlamaForCausalLM takes"),
        ({"block_size": 16, "stride": 17}, "stride=17 leaves out text between blocks of 16"),
        ({"stride": 65}, "stride=65 leaves out text between blocks of 64"),
        ({"block_size": 1}, "block_size=1 must be a whole number of at least 2"),
        ({"stride": 0}, "stride=0 must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"max_samples": 0}, "max_samples=0 must be a whole number"),
        ({"text": "a few words"}, "has . tokens, fewer than a block of 64"),
        ({"text": " \n"}, "holds no text"),
        ({"split": "test", "text": TEXT}, None),
        ({"labels": ["a"]}, "perplexity does not take labels; it takes block_size, stride"),
    ],
)
def test_bad_input(options, message):
    if message is None:
        measured(language_model(), word_tokenizer(), **options)
        return
    with pytest.raises(ValueError, match=message):
        measured(language_model(), word_tokenizer(), **options)


def test_more_bad_input(tmp_path):
    model, tokenizer = language_model(), word_tokenizer()
    with pytest.raises(ValueError, match="pass the model's tokenizer"):
        measured(model, None)
    with pytest.raises(ValueError, match="both are given"):
        evaluate_model(model, tokenizer, "perplexity", data=[TEXT], data_dir=tmp_path)
    with pytest.raises(ValueError, match="none is given"):
        evaluate_model(model, tokenizer, "perplexity")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        evaluate_model(model, tokenizer, "perplexity", data_dir=tmp_path / "none")
    pairs = Dataset.from_dict({"premise": TEXTS, "hypothesis": TEXTS})
    with pytest.raises(ValueError, match="pairs of texts"):
        evaluate_model(model, tokenizer, "perplexity", data=pairs)
    with pytest.raises(ValueError, match="vocabulary ends at 9"):
        measured(language_model(vocab_size=10), tokenizer)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        evaluate_model(model, tokenizer, "perplexity", data=[TEXT])
