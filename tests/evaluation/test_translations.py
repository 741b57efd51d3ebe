"""BLEU and chrF against sacrebleu's own corpus scores; what a model writes is measured, by columns of any names."""

import importlib.util
import re

import evaluate
import numpy as np
import pytest
import torch
from decoders import generator
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.annotations.jackknife import jackknife
from optimum_optin.evaluation import answer_metric, evaluate_model
from optimum_optin.text_tasks.bleu import bleu_and_chrf

NEEDED = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs sacrebleu")
ROWS = [{"translation": {"en": text, "de": " ".join(text.split()[-5:])}} for text in TEXTS]
COLUMNS = ["translation.en", "translation.de"]


def _said(model, tokenizer):
    """What a model writes for each text, alone."""
    said = []
    for row in ROWS:
        ids = torch.tensor([tokenizer(row["translation"]["en"])["input_ids"]])
        said.append(
            tokenizer.decode(model.generate(ids, do_sample=False, max_new_tokens=8)[0], skip_special_tokens=True)
        )
    return said


@NEEDED
def test_what_a_model_writes_is_scored_as_sacrebleu_does():
    from sacrebleu import corpus_bleu, corpus_chrf

    model, tokenizer = generator("t5"), word_tokenizer()
    said = _said(model, tokenizer)
    rows = [
        {"translation": {**row["translation"], "de": text + " cat" if place % 3 else "small tree"}}
        for place, (row, text) in enumerate(zip(ROWS, said, strict=True))
    ]
    wanted = [row["translation"]["de"] for row in rows]
    options = {"text_columns": COLUMNS, "max_new_tokens": 8, "batch_size": 5}
    found = evaluate_model(model, tokenizer, "translation", data=rows, **options)
    for name, oracle in (("bleu", corpus_bleu), ("chrf", corpus_chrf)):
        assert found["metrics"][name]["value"] == pytest.approx(oracle(said, [wanted]).score / 100)
        assert 0.2 < found["metrics"][name]["value"] < 1
        assert 0 < found["metrics"][name]["error"] < 0.2
    assert found["metrics"]["exact_match"]["value"] == 0
    assert found["protocol"].startswith("greedy, at most 8 tokens; BLEU nrefs:1|case:mixed|eff:no|tok:13a|")
    other = evaluate_model(model, tokenizer, "translation", data=rows, tokenize="char", **options)["metrics"]
    assert other["bleu"]["value"] == pytest.approx(corpus_bleu(said, [wanted], tokenize="char").score / 100)
    assert other["bleu"] != found["metrics"]["bleu"] and other["chrf"] == found["metrics"]["chrf"]


@NEEDED
def test_the_metric_for_evaluate_loads_from_its_file():
    from sacrebleu import corpus_bleu

    given = {
        "predictions": ["the cat sat on a mat", "a bird"],
        "references": ["the cat sat on the mat", "the bird flew"],
    }
    for metric in (answer_metric.AnswerMetric("bleu"), evaluate.load(answer_metric.__file__, "bleu")):
        found = metric.compute(**given)
        assert found["bleu"] == pytest.approx(corpus_bleu(given["predictions"], [given["references"]]).score / 100)
        assert metric.compute(**given, tokenize="char")["bleu"] != found["bleu"]


@NEEDED
def test_the_card_has_sacrebleus_signature_in_its_table():
    pruner = OptinPruner(generator("t5"), word_tokenizer())
    options = {"text_columns": COLUMNS}
    pruner.prune(ROWS, OptinConfig(flops=0.7, probes=4, rows=16, search="ranked"), **options)
    pruner.evaluate("translation", data=ROWS, max_new_tokens=8, **options)
    card = pruner.create_model_card()
    assert {each.task_type for each in card.data.eval_results} == {"translation"}
    line = next(line for line in card.content.splitlines() if "tok:13a" in line)
    assert len(re.split(r"(?<!\\)\|", line)) == 8, "six cells"
    assert "nrefs:1\\|case:mixed" in line


@NEEDED
def test_a_single_sample_has_no_error():
    metrics, _ = bleu_and_chrf(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert metrics == {"bleu": (pytest.approx(1), None), "chrf": (pytest.approx(1), None)}


def test_a_jackknife_of_a_mean_has_its_standard_error():
    drawn = np.random.default_rng(0).normal(size=2000)
    (error,) = jackknife(2000, lambda places: {"mean": float(drawn[places].mean())}).values()
    assert error == pytest.approx(drawn.std(ddof=1) / 2000**0.5, rel=0.4)  # of 20 groups: known to a sixth
    few = drawn[:12]  # each by itself: exactly
    (error,) = jackknife(12, lambda places: {"mean": float(few[places].mean())}).values()
    assert error == pytest.approx(few.std(ddof=1) / 12**0.5)
    assert jackknife(1, lambda places: {}) == {}


@NEEDED
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokenize": "words"}, r"tokenize='words' must be one of sacrebleu's: .*13a"),
        ({"text_columns": None}, "text_columns="),
        (
            {"data": [{"translation": {"en": "a", "de": ""}}, *ROWS]},
            r"row 0 of rows in memory has no reference \(it is",
        ),
        (
            {"data": [*ROWS, {"translation": {"en": None, "de": "a"}}]},
            r"row 24 of .* has no text to read \(there is none",
        ),
        ({"data": []}, "rows in memory holds no pairs of texts for translation"),
        ({"max_samples": 0}, "max_samples=0"),
    ],
)
def test_data_that_cannot_be_measured(changes, match):
    given = {"data": ROWS, "text_columns": COLUMNS, **changes}
    with pytest.raises(ValueError, match=match):
        evaluate_model(generator("t5"), word_tokenizer(), "translation", **given)


def test_without_sacrebleu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"BLEU and chrF need sacrebleu: pip install sacrebleu\."):
        evaluate_model(generator("t5"), word_tokenizer(), "translation", data=ROWS, text_columns=COLUMNS)
