"""Calibration data by name: files, folders, the Hub."""

import json

import datasets
import pytest
from datasets import Dataset
from words import TEXTS

from optimum_optin.sources import read_calibration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def _write(file, texts):
    if file.suffix == ".parquet":
        Dataset.from_dict({"text": texts}).to_parquet(file)
        return
    lines = {
        ".csv": ["text,label", *(f'"{text}",0' for text in texts)],
        ".tsv": ["text\tlabel", *(f"{text}\t0" for text in texts)],
        ".json": [json.dumps([{"text": text} for text in texts])],
        ".jsonl": [json.dumps({"text": text}) for text in texts],
        ".txt": [*texts, "", "  "],
    }
    file.write_text("\n".join(lines[file.suffix]), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"])
def test_files_and_folders_are_read(folder, suffix):
    _write(folder / f"a{suffix}", TEXTS[:20])
    assert read_calibration(folder / f"a{suffix}")["text"][:] == TEXTS[:20]
    (folder / "below").mkdir()
    _write(folder / "below" / f"b{suffix}", TEXTS[20:])
    (folder / "README.md").write_text("notes")
    assert sorted(read_calibration(folder)["text"]) == sorted(TEXTS)


def test_files_to_evaluate_on_are_no_part_of_train(folder):
    _write(folder / "train.csv", TEXTS[:5])
    _write(folder / "test.csv", TEXTS[5:])
    assert read_calibration(folder)["text"][:] == TEXTS[:5]
    assert read_calibration(folder, split="test")["text"][:] == TEXTS[5:]
    assert read_calibration(folder / "test.csv")["text"][:] == TEXTS[5:]
    with pytest.raises(ValueError, match="dev"):
        read_calibration(folder, split="dev")


def test_text_columns_are_chosen(folder):
    file = folder / "a.csv"
    Dataset.from_dict({"id": [1], "one": ["the cat"], "text": ["a dog"]}).to_csv(file)
    assert read_calibration(file, text_columns=["one"])[0] == {"text": "the cat"}
    assert read_calibration(file, text_columns=["one", "text"])[0] == {"text": "the cat", "text_pair": "a dog"}
    with pytest.raises(ValueError, match="no column two; there are id, one, text"):
        read_calibration(file, text_columns=["two"])
    with pytest.raises(ValueError, match="one column or two, got id, one, text"):
        read_calibration(file, text_columns=["id", "one", "text"])


@pytest.mark.parametrize(
    ("source", "config_name", "expected"),
    [("imdb", None, ("imdb", None)), ("nyu-mll/glue:sst2", None, ("nyu-mll/glue", "sst2")), ("a/b", "c", ("a/b", "c"))],
)
def test_the_hub_is_asked(monkeypatch, source, config_name, expected):
    def load(name, config, split):
        assert (name, config, split) == (*expected, "validation")
        return Dataset.from_dict({"text": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_calibration(source, config_name, split="validation")) == len(TEXTS)


def test_a_hub_that_does_not_answer(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("Couldn't reach 'imdb'")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ConnectionError, match="cannot read imdb from the Hub: Couldn't reach .* give a file or a"):
        read_calibration("imdb")


def test_what_cannot_be_read_is_refused(folder):
    for missing in ("./nowhere", "nowhere.csv", "/nowhere/at/all"):
        with pytest.raises(FileNotFoundError, match="no file or folder"):
            read_calibration(missing)
    with pytest.raises(ValueError, match="must hold files of one kind of .csv, .tsv,.*; it has nothing"):
        read_calibration(folder)
    (folder / "a.csv").write_text("text\na")
    (folder / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="of one kind of.*it has .csv, .txt"):
        read_calibration(folder)
    (folder / "a.txt").unlink()
    (folder / "cat.JPG").write_bytes(b"")
    with pytest.raises(ValueError, match="of one kind of.*or images; it has .csv, .jpg"):
        read_calibration(folder)
