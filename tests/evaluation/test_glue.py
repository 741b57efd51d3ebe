"""GLUE's table, and samples from TSV files in the layouts that exist."""

import sys
from pathlib import Path

import datasets
import pytest
import torch
from tsv import write_sst2, write_tsv

from optimum_optin.evaluation.glue import TASKS, find_task, read_glue

GLUE = Path("/work/shared/assets/glue")

PAIR = (("the cat", "a dog"),)
# task -> file, its lines, the split, expected texts, expected labels
LAYOUTS = {
    "cola": (
        "CoLA/dev.tsv",
        ['gj04\t1\t\tthe "cat', "gj04\t0\t*\tcat the"],
        None,
        [('the "cat',), ("cat the",)],
        [1, 0],
    ),
    "sst2": ("SST-2/dev.tsv", ["sentence\tlabel", "the cat \t1"], "validation", [("the cat ",)], [1]),
    "mrpc": (
        "MRPC/dev.tsv",
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\tthe cat\ta dog"],
        None,
        PAIR,
        [0],
    ),
    "stsb": (
        "STS-B/dev.tsv",
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tnews\tx\t2012\t1\tnone\tnone\tthe cat\ta dog\t2.500",
        ],
        None,
        PAIR,
        [2.5],
    ),
    "qqp": (
        "QQP/dev.tsv",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tthe cat\ta dog\t1", "a torn line"],
        None,
        PAIR,
        [1],
    ),
    "mnli": (
        "MNLI/dev_mismatched.tsv",
        ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\tthe cat\ta dog\tneutral\tcontradiction"],
        "validation_mismatched",
        PAIR,
        [2],
    ),
    "qnli": (
        "QNLI/dev.tsv",
        ["index\tquestion\tsentence\tlabel", "0\tthe cat\ta dog\t1"],
        None,
        PAIR,
        [1],
    ),
    "rte": (
        "RTE/dev.tsv",
        ["index\tsentence1\tsentence2\tlabel", "0\tthe cat\ta dog\tnot_entailment"],
        None,
        PAIR,
        [1],
    ),
    "wnli": ("WNLI/dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\tthe cat\ta dog\t1"], None, PAIR, [1]),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_read_from_its_layout(task, tmp_path):
    file, lines, split, texts, labels = LAYOUTS[task]
    samples = read_glue(f"glue/{task}", data_dir=write_tsv(tmp_path / file, lines), split=split)
    assert samples.texts == list(texts)
    assert samples.labels.tolist() == labels
    assert samples.task is TASKS[task]


def test_older_releases_of_cola_and_stsb_are_read(tmp_path):
    write_tsv(tmp_path / "CoLA" / "in_domain_dev.tsv", ["gj04\t1\t\tthe cat"])
    with pytest.raises(FileNotFoundError, match="CoLA/dev.tsv or CoLA/in_domain_dev.tsv and CoLA/out_of_domain_dev"):
        read_glue("cola", data_dir=tmp_path)
    write_tsv(tmp_path / "CoLA" / "out_of_domain_dev.tsv", ["clc95\t0\t*\ta dog"])
    assert read_glue("cola", data_dir=tmp_path).labels.tolist() == [1, 0]
    write_tsv(tmp_path / "STS-B" / "sts-dev.tsv", ["news\tx\t2012\t0001\t5.000\tthe cat\ta dog\tsource"])
    samples = read_glue("stsb", data_dir=tmp_path)
    assert (samples.texts, samples.labels.tolist()) == ([("the cat", "a dog")], [5.0])


@pytest.mark.skipif(not GLUE.is_dir(), reason="the real files are not part of the project")
def test_real_files_are_read_as_the_examples_do():
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from demo_models import load_cola, load_sst2, load_stsb

    for task, load in (("sst2", load_sst2), ("cola", load_cola), ("stsb", load_stsb)):
        samples = read_glue(task, data_dir=GLUE)
        rows = load("dev", GLUE)
        assert samples.texts == [tuple(row[name] for name in samples.task.texts) for row in rows]
        assert torch.equal(samples.labels, torch.tensor([row["label"] for row in rows]))


def test_the_hub_is_asked_by_configuration_and_split(monkeypatch):
    def load(name, config, split):
        assert (name, config, split) == ("nyu-mll/glue", "rte", "train")
        return datasets.Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    samples = read_glue("rte", split="train")
    assert (samples.texts, samples.labels.tolist()) == ([("a", "c"), ("b", "d")], [1, 0])


def test_a_draw_of_samples_is_fixed(tmp_path):
    folder = write_sst2(tmp_path)
    one, other = (read_glue("sst2", data_dir=folder, max_samples=5) for _ in range(2))
    assert one.texts == other.texts
    assert len(one.texts) == len(one.labels) == 5
    assert one.texts != read_glue("sst2", data_dir=folder).texts[:5]


# Bad input


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown task 'glue/sts2'; known: glue/cola, glue/sst2,.*glue/wnli"):
        find_task("glue/sts2")
    with pytest.raises(ValueError, match="no split 'validation'; it has train, validation_matched, validation_mism"):
        read_glue("mnli", split="validation")
    with pytest.raises(ValueError, match="max_samples=0 must be"):
        read_glue("sst2", max_samples=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "split 'validation' of glue/sst2 is empty"),
        (["sentence\tlabel"], "is empty"),
        (["text\tlabel", "the cat\t1"], r"dev.tsv has no column sentence; it has text, label"),
        (["sentence\tlabel", "the cat\t2"], "label '2' must be one of negative, positive or its index"),
        (["sentence\tlabel", "the cat\t-1"], "has no labels: take 'validation'"),
    ],
    ids=["no lines", "no samples", "columns", "a third class", "no labels"],
)
def test_unusable_files_are_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_glue("sst2", data_dir=write_tsv(tmp_path / "SST-2" / "dev.tsv", lines))


def test_unusable_hub_data_are_refused(monkeypatch):
    with pytest.raises(ConnectionError, match="give data_dir=, a folder that holds SST-2/dev.tsv"):
        read_glue("sst2")  # the suite is offline
    without = {"text": ["a"], "label": [0]}
    for data, message in (
        (without, "nyu-mll/glue has no column sentence; it has text, label"),
        ({"sentence": ["a"], "label": [-1]}, "split 'test' of glue/sst2 has no labels"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, split, data=data: datasets.Dataset.from_dict(data))
        with pytest.raises(ValueError, match=message):
            read_glue("sst2", split="test")
