"""GLUE's metrics against the textbook's formulas, scipy and `evaluate`'s own way to call them."""

import doctest
import math

import evaluate
import pytest
import torch
from datasets import Dataset
from scipy import stats
from tiny import tiny_model
from transformers import pipeline
from words import TEXTS, word_tokenizer

from optimum_optin.evaluation import glue_metric
from optimum_optin.evaluation.glue import TASKS
from optimum_optin.evaluation.glue_metric import GlueMetric
from optimum_optin.evaluation.metrics import (
    METRICS,
    accuracy,
    f1,
    matthews_correlation,
    pearson,
    spearmanr,
    standard_error,
)


@pytest.fixture
def classes():
    return torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1]), torch.tensor([0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0])


def _confusion(predictions, references):
    pairs = list(zip(predictions.tolist(), references.tolist(), strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]


def test_classification_metrics_follow_the_confusion_matrix(classes):
    tp, fp, fn, tn = _confusion(*classes)
    assert accuracy(*classes) == pytest.approx((tp + tn) / (tp + fp + fn + tn))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert f1(*classes) == pytest.approx(2 * precision * recall / (precision + recall))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews_correlation(*classes) == pytest.approx(expected)


def test_correlations_agree_with_scipy():
    one = torch.randn(50).round(decimals=1)  # rounded, so that there are ties
    other = (one + torch.randn(50)).round(decimals=1)
    assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other).statistic)
    assert spearmanr(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "accuracy"])
def test_a_constant_side_gives_zero_and_not_nan(name):
    zeros, mixed = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1])
    assert METRICS[name](zeros, mixed) == 0
    assert standard_error(name, zeros, mixed) == 0


def test_standard_errors_are_those_of_theory():
    generator = torch.Generator().manual_seed(1)
    right = (torch.rand(400, generator=generator) < 0.8).long()
    share = float(right.double().mean())
    assert standard_error("accuracy", right, torch.ones_like(right)) == pytest.approx(
        (share * (1 - share) / 400) ** 0.5
    )
    one, noise = torch.randn(2, 400, generator=generator)
    both = one, 0.5 * one + noise
    expected = (1 - pearson(*both) ** 2) / math.sqrt(400)  # large-sample theory of normal variables
    assert standard_error("pearson", *both) == pytest.approx(expected, rel=0.15)
    assert standard_error("pearson", *both) == standard_error("pearson", *both)


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_evaluate_computes_the_tasks_metrics(task, classes):
    predictions, references = classes
    computed = GlueMetric(f"glue/{task.name}").compute(predictions=predictions.tolist(), references=references.tolist())
    assert computed == {name: METRICS[name](*classes) for name in task.metrics}


def test_scores_of_stsb_are_not_rounded():
    scores = [0.2, 0.4, 4.6]
    assert GlueMetric("stsb").compute(predictions=scores, references=scores)["pearson"] == pytest.approx(1)
    assert GlueMetric("stsb").compute(predictions=scores, references=[4.9, 4.6, 0.1])["spearmanr"] == pytest.approx(-1)


def test_the_evaluator_takes_the_metric():
    model = tiny_model(num_labels=2, id2label={0: "negative", 1: "positive"})
    data = Dataset.from_dict({"text": TEXTS, "label": [index % 2 for index in range(len(TEXTS))]})
    # With transformers 5, evaluate 0.4.6 takes a model but no pipeline: it looks for transformers.TFPreTrainedModel.
    result = evaluate.evaluator("text-classification").compute(
        model,
        data,
        metric=GlueMetric("sst2"),
        tokenizer=word_tokenizer(),
        label_mapping={"negative": 0, "positive": 1},
    )
    classify = pipeline("text-classification", model=model, tokenizer=word_tokenizer(), device="cpu")
    right = sum((classify(row["text"])[0]["label"] == "positive") == row["label"] for row in data)
    assert result["accuracy"] == pytest.approx(right / len(TEXTS))


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(glue_metric).failed == 0
