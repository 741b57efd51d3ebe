"""GLUE figures of models: against a loop without padding, with permuted labels, and in the report."""

import math
import threading
import time

import pytest
import torch
from tiny import SHAPE, TINY, tiny_model
from tsv import write_sst2, write_tsv
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.evaluation import accuracy as evaluation
from optimum_optin.evaluation.accuracy import evaluate_glue, label_order, predict
from optimum_optin.evaluation.glue import TASKS, read_glue
from optimum_optin.running.freezing import frozen

FAST = OptinConfig(flops=0.5, probes=8)


@pytest.fixture
def sst2(tmp_path):
    return write_sst2(tmp_path / "glue")


def _one_by_one(model, samples):
    tokenizer = word_tokenizer()
    with torch.no_grad():
        return [model(**tokenizer(*texts, return_tensors="pt")).logits[0] for texts in samples.texts]


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert"])
def test_predictions_are_those_of_a_loop_without_padding(model_type, sst2):
    model = tiny_model(model_type, num_labels=2)
    samples = read_glue("sst2", data_dir=sst2)
    expected = torch.stack(_one_by_one(model, samples)).argmax(-1)
    assert torch.equal(predict(model, word_tokenizer(), samples, batch_size=5), expected)
    entry = evaluate_glue(model, word_tokenizer(), "glue/sst2", data_dir=sst2, batch_size=7)
    share = float((expected == samples.labels).double().mean())
    error = math.sqrt(share * (1 - share) / len(TEXTS))
    assert entry == {
        "task": "glue/sst2",
        "dataset": "nyu-mll/glue",
        "config": "sst2",
        "split": "validation",
        "samples": len(TEXTS),
        "metrics": {"accuracy": {"value": share, "error": error}},
    }


def test_regression_of_pairs(tmp_path):
    lines = [f"news\tx\t2012\t{index}\t{index % 6}\t{text}\t{TEXTS[0]}" for index, text in enumerate(TEXTS)]
    folder = write_tsv(tmp_path / "STS-B" / "sts-dev.tsv", lines)
    model = tiny_model(num_labels=1)
    samples = read_glue("stsb", data_dir=folder)
    expected = torch.cat(_one_by_one(model, samples))
    torch.testing.assert_close(predict(model, word_tokenizer(), samples), expected, atol=1e-5, rtol=1e-4)
    assert set(evaluate_glue(model, word_tokenizer(), "stsb", data_dir=folder)["metrics"]) == {"pearson", "spearmanr"}


def test_permuted_labels_are_mapped_by_name():
    mnli = TASKS["mnli"].labels
    assert label_order({0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}, mnli) == [1, 2, 0]
    assert label_order({0: "not entailment", 1: "Entailment"}, TASKS["rte"].labels) == [1, 0]
    assert label_order({0: "POS", 1: "NEG"}, TASKS["sst2"].labels) == [1, 0]
    assert label_order({0: "LABEL_0", 1: "LABEL_1"}, TASKS["sst2"].labels) == [0, 1]


def test_labels_of_another_task_are_announced(monkeypatch):
    said = []
    monkeypatch.setattr(evaluation.logger, "warning", said.append)
    for names in (["LABEL_0", "LABEL_1"], [0, 1], ["Positive", "negative"]):
        label_order(dict(enumerate(names)), ["negative", "positive"])
    assert not said
    assert label_order({0: "negative", 1: "positive"}, ["unacceptable", "acceptable"]) == [0, 1]
    assert "called negative, positive, the task's unacceptable, acceptable: they are matched by index" in said[0]


def test_a_permuted_head_gives_the_same_figures(sst2):
    model = tiny_model(num_labels=2, id2label={0: "negative", 1: "positive"})
    before = evaluate_glue(model, word_tokenizer(), "sst2", data_dir=sst2)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label = {0: "positive", 1: "negative"}
    assert evaluate_glue(model, word_tokenizer(), "sst2", data_dir=sst2) == before
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    accuracy = before["metrics"]["accuracy"]["value"]
    changed = evaluate_glue(model, word_tokenizer(), "sst2", data_dir=sst2)
    assert changed["metrics"]["accuracy"]["value"] == pytest.approx(1 - accuracy)


def test_the_pruner_measures_what_it_saves_and_reports_it(sst2, tmp_path, monkeypatch):
    pruner = OptinPruner(tiny_model(num_labels=2), word_tokenizer(), FAST)
    dense = pruner.evaluate("sst2", data_dir=sst2)["metrics"]["accuracy"]
    assert set(dense) == {"dense", "dense_error"}
    pruned = pruner.prune(TEXTS)
    loaded = []
    monkeypatch.setattr(type(pruned), "from_pretrained", _noted(type(pruned).from_pretrained, loaded))
    entry = pruner.evaluate("sst2", data_dir=sst2)
    expected = evaluate_glue(pruned, word_tokenizer(), "sst2", data_dir=sst2)["metrics"]["accuracy"]
    assert len(loaded) == 1 and loaded[0] is not pruned
    assert entry["metrics"]["accuracy"] == dense | {"pruned": expected["value"], "pruned_error": expected["error"]}
    pruner.evaluate("sst2", data_dir=sst2)
    assert pruner.report.evaluations == [entry], "one entry for each task and split"
    assert "glue/sst2, validation, 24 samples: accuracy" in str(pruner.report)
    pruner.save_pretrained(tmp_path / "out")
    assert PruningReport.load(tmp_path / "out").evaluations == [entry]


def _noted(load, loaded):
    def noting(*arguments, **options):
        loaded.append(load(*arguments, **options))
        return loaded[-1]

    return noting


def test_benchmark_goes_into_the_report(tmp_path):
    pruner = OptinPruner(tiny_model(), word_tokenizer(), FAST)
    with pytest.raises(RuntimeError, match="nothing was pruned yet"):
        pruner.benchmark()
    pruner.prune(TEXTS)
    latency = pruner.benchmark(batch_size=2, repeats=3)
    assert latency["tokens"] == pruner.report.tokens
    assert (latency["batch_size"], latency["repeats"], latency["device"]) == (2, 3, "cpu")
    assert latency["hardware"] and latency["dtype"] == "float32" and latency["threads"] >= 1
    assert latency["dense_ms"] > 0 and latency["pruned_ms"] > 0 and latency["speedup"] > 0
    assert pruner.report.latency == latency
    assert "latency, 2 x" in str(pruner.report)
    pruner.save_pretrained(tmp_path / "out")
    assert PruningReport.load(tmp_path / "out") == pruner.report
    with pytest.raises(ValueError, match="tokens=65 must be at most 64"):
        pruner.benchmark(tokens=65)
    with pytest.raises(ValueError, match="repeats=0 must be"):
        pruner.benchmark(repeats=0)


# Bad input


@pytest.mark.parametrize(
    ("make", "processor", "message"),
    [
        (lambda: tiny_model(num_labels=3), True, r"2 classes \(negative, positive\), the model 3: take a model fine"),
        (lambda: tiny_model(base=True), True, "needs a sequence classifier, got BertModel: load the model with task="),
        (lambda: tiny_model(num_labels=2), False, "pass the model's tokenizer as processor="),
        (lambda: TINY["bert"][0](_config(vocab_size=9)), True, "the tokenizer is not this model's"),
    ],
    ids=["labels", "no head", "no tokenizer", "other tokenizer"],
)
def test_models_that_do_not_fit_are_refused_before_a_forward_pass(sst2, make, processor, message):
    model = make()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass before the input was refused"))
    with pytest.raises(ValueError, match=message):
        evaluate_glue(model, word_tokenizer() if processor else None, "sst2", data_dir=sst2)


def _config(**changes):
    return type(TINY["bert"][2])(**{**SHAPE, "num_labels": 2, **changes})


def test_regression_needs_one_output(tmp_path):
    folder = write_tsv(tmp_path / "STS-B" / "sts-dev.tsv", [f"news\tx\t2012\t1\t2.5\t{TEXTS[0]}\t{TEXTS[1]}"])
    with pytest.raises(ValueError, match="glue/stsb has 1 output, a score, the model 2"):
        evaluate_glue(tiny_model(num_labels=2), word_tokenizer(), "stsb", data_dir=folder)


def test_outputs_that_are_not_finite_are_refused(sst2):
    model = tiny_model(num_labels=2)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="outputs on glue/sst2 are not finite"):
        evaluate_glue(model, word_tokenizer(), "sst2", data_dir=sst2)
    with pytest.raises(ValueError, match="batch_size=0 must be"):
        evaluate_glue(model, word_tokenizer(), "sst2", data_dir=sst2, batch_size=0)


def test_a_model_that_another_thread_measures_is_waited_for():
    model = tiny_model().train()
    entered, left, seen = threading.Event(), threading.Event(), []

    def measure():
        entered.wait()
        with frozen(model):
            left.wait(0.5)  # comes only after this began, where threads do not wait for each other
            seen.append(model.training)

    other = threading.Thread(target=measure)
    other.start()
    with frozen(model):
        entered.set()
        time.sleep(0.1)
    left.set()
    other.join()
    assert seen == [False]
    assert model.training
