"""ROUGE against values worked out by hand and the package `rouge_score`; what a model writes is measured."""

import itertools
import json

import evaluate
import pytest
import torch
from decoders import generator
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation import answer_metric, evaluate_model
from optimum_optin.text_tasks.rouge import NAMES, longest_common, rouge

ROWS = [{"document": text, "summary": " ".join(text.split()[-4:])} for text in TEXTS]
TINY = {"task": "summarization", "data": ROWS, "max_new_tokens": 8}


def test_rouge_by_hand():
    found = rouge("The cat sat, on the mat.", "the cat lay on the mat")
    assert found == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    assert rouge("mat the on", "on the mat") == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 1 / 3})
    assert rouge("the the the", "the")["rouge1"] == pytest.approx(2 / 4)
    assert set(rouge("", "a word").values()) == {0.0}


def test_the_longest_common_subsequence_against_all_subsequences():
    drawn = torch.randint(3, (20, 2, 7), generator=torch.Generator().manual_seed(0)).tolist()
    for one, other in drawn:
        every = [{part for size in range(8) for part in itertools.combinations(each, size)} for each in (one, other)]
        assert longest_common(one, other) == max(map(len, every[0] & every[1]))


def test_rouge_against_the_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(NAMES, use_stemmer=False)
    drawn = torch.Generator().manual_seed(0)
    words = ["The", "cat,", "isn't", "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve", "2.5", "mat", "cat", "the"]
    for _ in range(50):
        lengths = torch.randint(0, 12, (2,), generator=drawn).tolist()
        text, reference = (" ".join(words[at] for at in torch.randint(8, (each,), generator=drawn)) for each in lengths)
        expected = {name: score.fmeasure for name, score in scorer.score(reference, text).items()}
        assert rouge(text, reference) == pytest.approx(expected), (text, reference)


def test_the_metric_for_evaluate_loads_from_its_file():
    given = {"predictions": ["the cat sat, on the mat.", "the mat"], "references": ["the cat lay on the mat", "a cat"]}
    for metric in (answer_metric.AnswerMetric("rouge"), evaluate.load(answer_metric.__file__, "rouge")):
        assert metric.compute(**given) == pytest.approx({"rouge1": 5 / 12, "rouge2": 3 / 10, "rougeL": 5 / 12})
    with pytest.raises(ValueError, match="config_name='meteor' must be 'rouge' or 'bleu'"):
        answer_metric.AnswerMetric("meteor")


def test_what_a_model_writes_is_measured(tmp_path):
    model, tokenizer = generator("t5"), word_tokenizer()
    said = []
    for row in ROWS:
        ids = torch.tensor([tokenizer(row["document"])["input_ids"]])
        written = model.generate(ids, do_sample=False, max_new_tokens=8)[0]
        said.append(tokenizer.decode(written, skip_special_tokens=True))
    rows = [{**row, "summary": text or "a mat"} for row, text in zip(ROWS, said, strict=True)]
    for row in rows[::3]:
        row["summary"] = "tree house"
    found = evaluate_model(model, tokenizer, "summarization", data=rows, max_new_tokens=8, batch_size=5)
    right = [float(text == row["summary"]) for text, row in zip(said, rows, strict=True)]
    exact = found["metrics"]["exact_match"]
    assert exact["value"] == pytest.approx(sum(right) / 24) and 0.5 < exact["value"] < 1
    assert exact["error"] == pytest.approx(float(torch.tensor(right).std()) / 24**0.5)
    expected = sum(rouge(text, row["summary"])["rougeL"] for text, row in zip(said, rows, strict=True)) / 24
    assert found["metrics"]["rougeL"]["value"] == pytest.approx(expected)
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    again = evaluate_model(model, tokenizer, "summarization", data_dir=tmp_path / "pairs.json", max_new_tokens=8)
    assert again["metrics"]["exact_match"] == exact and again["dataset"] == "pairs.json"
    columns = {name: [row[name] for row in rows] for name in ("document", "summary")}
    assert evaluate_model(model, tokenizer, "summarization", data=columns, max_new_tokens=8)["samples"] == 24


def test_a_pruner_measures_both_models():
    pruner = OptinPruner(generator("t5"), word_tokenizer())
    pruner.prune(ROWS, OptinConfig(flops=0.7, probes=4, rows=16, search="ranked"))
    entry = pruner.evaluate(**TINY)
    assert entry["protocol"] == "greedy, at most 8 tokens" and entry["samples"] == 24
    assert {"dense", "pruned"} <= set(entry["metrics"]["rouge1"])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": TEXTS}, "texts without references"),
        ({"data": None}, "needs data_dir=.*none is given"),
        ({"data": [{"en": row["document"], "de": row["document"]} for row in ROWS]}, "text_columns="),
        (
            {"data": [*ROWS, {"document": "a cat", "summary": " "}]},
            r"row 24 of .* has no reference \(it is empty\): give",
        ),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_data_that_cannot_be_measured(changes, match):
    with pytest.raises(ValueError, match=match):
        evaluate_model(generator("t5"), word_tokenizer(), **{**TINY, **changes})


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="summarization needs an encoder with a decoder"):
        evaluate_model(generator("gpt2"), word_tokenizer(), **TINY)
