"""What a pruned language model writes beside the dense one: against a loop without a cache; in report and card; and the
warning."""

import copy

import pytest
import torch
from language_models import language_model
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, pipeline
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
