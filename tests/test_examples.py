"""Each task's example runs on a tiny model and a local file, and leaves a folder that loads."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from tiny import tiny_model
from transformers import (
    AutoConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertModel,
    ViTImageProcessorPil,
)
from words import TEXTS, word_tokenizer
from workshop import NEXT, write_images, write_rows

EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = [text.split() for text in TEXTS]
# script -> model type, class, columns
TASKS = {
    "prune_text_classification": (
        "bert",
        BertForSequenceClassification,
        {"text": TEXTS, "label": ["LABEL_0", "LABEL_1"] * 12},
    ),
    "prune_question_answering": (
        "bert",
        BertForQuestionAnswering,
        {"question": TEXTS, "context": NEXT, "answers": [{"text": [text.split()[-1]]} for text in NEXT]},
    ),
    "prune_token_classification": (
        "bert",
        BertForTokenClassification,
        {"tokens": WORDS, "ner_tags": [[index % 2 for index in range(len(words))] for words in WORDS]},
    ),
    "prune_sentence_embeddings": (
        "distilbert",
        DistilBertModel,
        {"sentence1": TEXTS, "sentence2": NEXT, "score": [index / 24 for index in range(24)]},
    ),
}


@pytest.mark.parametrize("script", TASKS)
def test_it_prunes_and_measures(script, tmp_path, monkeypatch, capsys):
    model_type, model_class, columns = TASKS[script]
    labels = {} if model_class is DistilBertModel else {"num_labels": 2}
    tiny_model(model_type, model_class=model_class, **labels).save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    write_rows(tmp_path / "rows.jsonl", columns)
    arguments = [str(tmp_path / "dense"), "--data", str(tmp_path / "rows.jsonl"), "--save-dir", str(tmp_path / "out")]
    run(script, arguments, monkeypatch)
    assert re.search(r"\w+, 12 rows: -?\d+\.\d% -> -?\d+\.\d%; saved", capsys.readouterr().out)
    assert AutoConfig.from_pretrained(tmp_path / "out").quantization_config["quant_method"] == "optimum_optin"


def test_it_prunes_and_measures_with_images(tmp_path, monkeypatch, capsys):
    pytest.importorskip("PIL")
    write_images(tmp_path / "photos", count=12)
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "dense")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "dense")
    folders = {"--data": "photos", "--save-dir": "out"}
    options = [str(part) for name, folder in folders.items() for part in (name, tmp_path / folder)]
    run("prune_image_classification", [str(tmp_path / "dense"), *options], monkeypatch)
    assert re.search(r"accuracy, 12 rows: \d+\.\d% -> \d+\.\d%; saved", capsys.readouterr().out)
    assert AutoConfig.from_pretrained(tmp_path / "out").quantization_config["quant_method"] == "optimum_optin"


def run(script, arguments, monkeypatch):
    """Run an example as from the command line."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")


def test_the_notebook_was_run_from_top_to_bottom():
    cells = json.loads((EXAMPLES / "pruning_bert.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    for cell in code:
        compile("".join(cell["source"]), "pruning_bert.ipynb", "exec")
