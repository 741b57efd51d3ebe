"""Multiple choice: against a loop over tokens, and the harness on a pruned folder; forms of rows; refusals."""

import json

import pytest
import torch
from datasets import Dataset
from language_models import language_model
from tiny import tiny_model
from tokenizers import processors
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.text_tasks.multiple_choice import choice_likelihoods
from optimum_optin.text_tasks.questions import question_of, read_questions

CHOICES = ["the mat", "the tree house", "a small red bird", "the cat", "slept"]
ROWS = [
    {"question": " ".join(text.split()[:5]), "choices": CHOICES[: 3 + place % 3], "answer": place % 3}
    for place, text in enumerate(TEXTS)
]
HARNESS = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: rows.json}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def _tokenizer(before):
    """The words' tokenizer with or without something before a text, and nothing after it."""
    tokenizer = word_tokenizer()
    single = processors.TemplateProcessing(single=f"{before} $A".strip(), special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.backend_tokenizer.post_processor = single
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    return tokenizer


@torch.no_grad()
def _by_loop(model, tokenizer, before):
    """Whether each right choice is the likeliest, in sum and by character; one pass for each token."""
    plain = {"add_special_tokens": False}
    found = []
    for row in ROWS:
        sums = []
        for choice in row["choices"]:
            ids, total = [*before, *tokenizer(row["question"], **plain)["input_ids"]], 0.0
            for token in tokenizer(choice, **plain)["input_ids"]:
                total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
                ids.append(token)
            sums.append((total, total / len(choice)))
        best = [max(range(len(sums)), key=lambda place, which=which: sums[place][which]) for which in (0, 1)]
        found.append([float(each == row["answer"]) for each in best])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("before", ["[CLS]", ""])
def test_it_is_that_of_a_loop_over_tokens(before):
    model, tokenizer = language_model(), _tokenizer(before)
    right = _by_loop(model, tokenizer, [2] if before else [])
    found = evaluate_model(model, tokenizer, "multiple-choice", data=ROWS, batch_size=7)["metrics"]
    for column, name in enumerate(("accuracy", "accuracy_norm")):
        assert found[name]["value"] == pytest.approx(float(right[:, column].mean()))
        assert found[name]["error"] == pytest.approx(float(right[:, column].std()) / len(ROWS) ** 0.5)
    assert found["accuracy"] != found["accuracy_norm"], "the rows must tell one from the other"
    ends = evaluate_model(model, word_tokenizer(), "multiple-choice", data=ROWS)["metrics"]
    assert not before or ends == found, "what a tokenizer puts after a text is not read"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_harness_says_the_same_of_a_pruned_folder(tmp_path, monkeypatch):
    """It loads as any folder does once `optimum_optin` is imported; a file tells the task, with nothing downloaded."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "tiny_choice.yaml").write_text(HARNESS)
    pruner = OptinPruner(language_model(), _tokenizer(""))
    pruner.prune(TEXTS, OptinConfig(flops=0.6, probes=4, rows=16, search="ranked"), save_dir="pruned")
    entry = pruner.evaluate("multiple-choice", data_dir="rows.json")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    options = {"tasks": ["tiny_choice"], "task_manager": tasks, "bootstrap_iters": 0}
    found = lm_eval.simple_evaluate(HFLM(pretrained="pruned", device="cpu", batch_size=5), **options)
    for ours, theirs in (("accuracy", "acc"), ("accuracy_norm", "acc_norm")):
        assert entry["metrics"][ours]["pruned"] == pytest.approx(found["results"]["tiny_choice"][f"{theirs},none"])
    theirs = [each[0] for sample in found["samples"]["tiny_choice"] for each in sample["filtered_resps"]]
    pruned, dense = (
        torch.cat(choice_likelihoods(model, _tokenizer(""), read_questions("", data=ROWS), 6)).tolist()
        for model in (pruner.pruned_model, pruner.model)
    )
    assert pruned == pytest.approx(theirs, rel=1e-5)
    assert dense != pytest.approx(theirs, rel=1e-2)


def test_forms_of_rows():
    mmlu = {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}
    arc = {"question": "2 + 2 =", "choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answerKey": "2"}
    hellaswag = {"ctx": "2 + 2 =", "endings": ["3", "4"], "label": "1"}
    letter = {"question": "2 + 2 =", "options": ["three", "four"], "answer": "B"}
    assert len({question_of(row, "row 0").right for row in (mmlu, arc, hellaswag, letter)}) == 1
    assert question_of({**letter, "answer": "four"}, "row 0") == question_of(letter, "row 0")
    data = Dataset.from_list([{**arc, "id": "x"}] * 3)
    found = evaluate_model(language_model(), word_tokenizer(), "multiple-choice", data=data, max_samples=2)
    assert found["samples"] == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"answer": 3}, "row 24 of rows in memory has the answer 3, which is none of its 3 choices"),
        ({"answer": "D"}, "the answer 'D', which is none of its 3 choices: give its place .0 to 2., its letter"),
        ({"answer": "1", "choices": ["1", "2", "3"]}, "may be choice 0 or 1: give its place"),
        ({"answer": None}, "row 24 of rows in memory has no answer or"),
        ({"choices": ["one"]}, "needs a list of two choices"),
        ({"choices": ["one", " ", "two"]}, "has ' ' for its choice 1"),
        ({"choices": ["cat " * 70, "dog"]}, "has 70 tokens, and the model takes 64"),
    ],
)
def test_rows_that_cannot_be_measured(changes, match):
    row = {"question": "the cat", "choices": ["sat", "ran", "flew"], "answer": 0, **changes}
    with pytest.raises(ValueError, match=match):
        evaluate_model(language_model(), word_tokenizer(), "multiple-choice", data=[*ROWS, row])


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match="multiple-choice needs a causal language model"):
        evaluate_model(tiny_model(), word_tokenizer(), "multiple-choice", data=ROWS)
