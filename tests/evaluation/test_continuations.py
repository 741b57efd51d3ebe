"""What a pruned language model writes beside the dense one: against a loop without a cache; in report and card; and the
warning."""

import copy

import pytest
import torch
from decoders import generator, prompts
from language_models import language_model
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, pipeline
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.report import PruningReport
from optimum_optin.text_tasks import compare_continuations
from optimum_optin.text_tasks.continuations import prompts_of, written

IDS = torch.randint(5, 25, (6, 20), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]


@torch.no_grad()
def by_loop(model, prompts, new):
    """Greedy tokens, a whole pass for each."""
    for _ in range(new):
        prompts = torch.cat([prompts, model(prompts).logits[:, -1].argmax(-1, keepdim=True)], 1)
    return prompts


@torch.no_grad()
def test_the_figures_are_those_of_a_loop():
    dense, pruned = language_model(0), language_model(0)
    with torch.no_grad():
        for weight in pruned.parameters():
            weight.mul_(1 + 0.05 * torch.randn_like(weight))
    before = dense.generation_config
    found = compare_continuations(dense, pruned, BATCHES)
    assert dense.generation_config is before, "and the model is as it was"
    assert (found.prompts, found.tokens) == (6, 32)
    theirs, own = by_loop(dense, IDS, 32), by_loop(pruned, IDS, 32)
    assert torch.equal(written(dense, IDS, 32), theirs)
    agreeing = [
        int(pruned(theirs[:, :place]).logits[:, -1].argmax(-1)[row]) == int(theirs[row, place])
        for row in range(6)
        for place in range(20, 52)
    ]
    assert found.agreement == pytest.approx(sum(agreeing) / len(agreeing)) and 0.1 < found.agreement < 1
    for said, texts in ((found.log_likelihood, own), (found.dense_log_likelihood, theirs)):
        logits = dense(texts).logits[:, 19:-1].double().log_softmax(-1)
        assert said == pytest.approx(float(logits.gather(-1, texts[:, 20:, None]).mean()), rel=1e-4)
    assert found.log_likelihood < found.dense_log_likelihood


def test_a_model_agrees_with_itself():
    model = language_model()
    found = compare_continuations(model, copy.deepcopy(model), BATCHES)
    assert found.agreement == 1 and found.log_likelihood == found.dense_log_likelihood


def test_prompts_are_the_beginnings_of_the_longest_samples_without_their_padding():
    ids = torch.arange(12 * 40).view(12, 40)
    mask = torch.ones_like(ids)
    mask[:4, 8:] = 0
    mask[4, :10] = 0  # padding on the left
    prompts = prompts_of([{"input_ids": ids[:6], "attention_mask": mask[:6]}, {"input_ids": ids[6:]}])
    assert prompts.shape == (8, 30) and sorted(prompts[:, 0].tolist()) == [4 * 40 + 10, *range(200, 480, 40)]
    assert prompts_of([{"input_ids": ids}]).shape == (8, 32)


def test_no_text_is_written_by_others():
    assert compare_continuations(*[tiny_model("bert")] * 2, BATCHES) is None
    full = language_model(max_position_embeddings=20)
    assert compare_continuations(full, full, BATCHES) is None, "no room after the prompts"


def test_the_report_and_the_card_tell_and_a_collapse_warns(tmp_path, caplog, monkeypatch):
    pruner = OptinPruner(language_model(), word_tokenizer())
    config = OptinConfig(flops=0.5, probes=4, search="ranked", block_size=12, num_samples=32)
    monkeypatch.setattr(pipeline, "_COLLAPSE_OF_TEXT", 0.0)
    pruner.prune(TEXTS * 20, config, save_dir=tmp_path / "out")
    assert "writes only" not in caplog.text
    found = pruner.report.continuations
    assert found.held_out and found.prompts == 8 and found.agreement < 1
    assert PruningReport.load(tmp_path / "out") == pruner.report
    assert f"{found.agreement:.1%} of the dense model's tokens" in str(pruner.report)
    assert f"it writes {found.agreement:.1%} of the 32 tokens" in (tmp_path / "out" / "README.md").read_text()
    assert "continuations" in pruner.report.seconds
    monkeypatch.setattr(pipeline, "_COLLAPSE_OF_TEXT", 1.0)
    pruner.prune(TEXTS * 20, config)
    assert "writes only" in caplog.text


def test_a_model_is_not_lost_if_it_cannot_write(caplog, monkeypatch):
    model = language_model()
    monkeypatch.setattr(model, "generate", None)
    pruner = OptinPruner(model, word_tokenizer())
    config = OptinConfig(flops=0.5, probes=4, search="ranked", block_size=12, num_samples=32)
    assert pruner.prune(TEXTS * 20, config) is pruner.pruned_model is not None
    assert pruner.report.continuations is None
    assert "what the models write could not be compared (TypeError" in caplog.text


@torch.no_grad()
def answer(model, ids, new):
    """What an encoder with a decoder writes without a cache, until it ends."""
    text = [model.config.decoder_start_token_id]
    while len(text) <= new:
        text.append(int(model(input_ids=ids, decoder_input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] == model.generation_config.eos_token_id:
            break
    return text


@torch.no_grad()
@pytest.mark.parametrize(("name", "seed"), [("t5", 8), ("umt5", 8), ("marian", 9)])
def test_answers_are_those_of_a_loop(name, seed):
    """Of ten samples in batches of three, the first eight; some texts end early."""
    dense, pruned = generator(name, seed), generator(name, seed)
    for model in (dense, pruned):
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] *= 3
    for weight in pruned.parameters():
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    samples = [{"input_ids": row.tolist()} for row in prompts(name, (9,) * 10)["input_ids"]]
    batches = calibration_batches(samples, dense, batch_size=3, max_length=8)
    found = compare_continuations(dense, pruned, batches)
    first = torch.cat([batch["input_ids"] for batch in batches])[:8]
    agreeing, said = [], {dense: [], pruned: []}
    for ids in first.split(1):
        for model in (dense, pruned):
            text = answer(model, ids, 32)
            read = {"input_ids": ids, "decoder_input_ids": torch.tensor([text[:-1]])}
            logits = dense(**read).logits[0].double().log_softmax(-1)
            said[model] += logits.gather(-1, torch.tensor(text[1:])[:, None]).flatten().tolist()
            if model is dense:
                agreeing += (pruned(**read).logits[0].argmax(-1) == torch.tensor(text[1:])).tolist()
    assert (found.prompts, found.tokens, found.answers) == (8, 32, True)
    assert 0.1 < found.agreement < 1 and len(agreeing) < 8 * 32
    assert found.agreement == pytest.approx(sum(agreeing) / len(agreeing))
    for likelihood, each in ((found.log_likelihood, said[pruned]), (found.dense_log_likelihood, said[dense])):
        assert likelihood == pytest.approx(sum(each) / len(each), rel=1e-4)
    assert "for 8 held-out inputs, at most 32 tokens each" in str(found)


def test_answers_in_report_and_card_and_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pipeline, "_COLLAPSE_OF_TEXT", 1.0)
    model = generator("bart", 8)
    samples = [{"input_ids": row.tolist()} for row in prompts("bart", (9,) * 24)["input_ids"]]
    pruner = OptinPruner(model, config=OptinConfig(flops=0.4, probes=2, rows=16, search="ranked"))
    pruner.prune(samples, save_dir=tmp_path / "out")
    found = pruner.report.continuations
    assert found.answers and found.held_out and found.agreement < 1
    assert f"only {found.agreement:.0%} of the tokens that the dense model writes for 8 inputs" in caplog.text
    card = str(pruner.create_model_card())
    assert f"For 8 held-out samples, it writes {found.agreement:.1%} of the tokens (at most 32 for each)" in card
    assert PruningReport.load(tmp_path / "out") == pruner.report
