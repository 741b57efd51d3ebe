"""Heads over a vocabulary compute the logits of the compared tokens alone: the same numbers, and no others."""

import pytest
import torch
from language_models import language_model
from tiny import tiny_model, tiny_samples
from transformers import BertForMaskedLM

from optimum_optin.comparing import few_logits
from optimum_optin.comparing.few_logits import compared_tokens, logits_at
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.passes.outputs import compared_output, has_head
from optimum_optin.passes.trajectory import draw_rows
from optimum_optin.running.forward import run_model


def seen_by_head(model, run):
    """What `run()` returns, and the shapes that the head's output had."""
    shapes = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    try:
        return run(), shapes
    finally:
        handle.remove()


def case(model, count=6, rows=10):
    samples = [{"input_ids": [token % 20 + 5 for token in sample["input_ids"]]} for sample in tiny_samples(count)]
    (batch,) = calibration_batches(samples, model, batch_size=count)
    return batch, draw_rows(token_masks(model, batch), rows, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_logits_are_those_of_a_whole_pass(kind):
    model = language_model() if kind == "llama" else tiny_model("bert", model_class=BertForMaskedLM).eval()
    batch, rows = case(model)
    (places,) = rows.values()
    with torch.no_grad():
        expected = run_model(model, batch)["logits"].flatten(0, 1)[places]
        output, shapes = seen_by_head(model, lambda: compared_output(model, batch, rows))
        again = run_model(model, batch)["logits"]
    torch.testing.assert_close(output.values, expected)
    assert shapes == [(1, len(places), expected.shape[1])]
    assert again.shape[:2] == batch["input_ids"].shape, "and it is undone"


def test_gradients_are_those_of_a_whole_pass():
    model = language_model()
    batch, rows = case(model)
    (places,) = rows.values()
    weight = model.model.layers[0].mlp.down_proj.weight
    run_model(model, batch)["logits"].flatten(0, 1)[places].square().sum().backward()
    expected, weight.grad = weight.grad.clone(), None
    compared_output(model, batch, rows).values.square().sum().backward()
    torch.testing.assert_close(weight.grad, expected)


def test_of_many_tokens_as_many_are_compared_as_memory_has_room_for(monkeypatch):
    model = language_model()
    batch, rows = case(model, rows=1000)
    (places,) = rows.values()
    monkeypatch.setattr(few_logits, "_MOST", 7 * model.config.vocab_size + 3)
    chosen = compared_tokens(places, model.config.vocab_size)
    assert len(chosen) == 7 and len(set(chosen.tolist())) == 7 and set(chosen.tolist()) <= set(places.tolist())
    with torch.no_grad():
        output, shapes = seen_by_head(model, lambda: compared_output(model, batch, rows))
        expected = run_model(model, batch)["logits"].flatten(0, 1)[chosen]
    assert shapes == [(1, 7, model.config.vocab_size)]
    torch.testing.assert_close(output.values, expected)
    assert has_head(model, batch)


def test_heads_that_read_something_else_are_left_alone():
    model = tiny_model("bert").eval()  # a classifier: no head over the vocabulary
    batch, rows = case(model)
    with logits_at(model, batch, next(iter(rows.values()))) as taken:
        assert run_model(model, batch)["logits"].shape == (6, model.config.num_labels)
    assert not taken
    causal = language_model()
    causal.lm_head.forward = lambda hidden: torch.nn.functional.linear(hidden, causal.lm_head.weight)
    with logits_at(causal, batch, torch.arange(3)) as taken:
        logits = causal(batch["input_ids"], logits_to_keep=1).logits  # the head reads one token of each sample
    assert logits.shape[:2] == (6, 1) and not taken
