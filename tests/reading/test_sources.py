"""Calibration data by name: files, folders, the Hub."""

import json
import re
from functools import partial
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.reading.sources import read_calibration


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
        with file.open("wb") as opened:  # `datasets` takes a name for a pattern
            Dataset.from_dict({"text": texts}).to_parquet(opened)
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
    with pytest.raises(ValueError, match="of one kind of.*or images, or sounds; it has .csv, .jpg"):
        read_calibration(folder)


# Paths that look like patterns or like names on the Hub

NAMES = [
    "data[1].csv",
    "a*b.csv",
    "what?.csv",
    "{a,b}.csv",
    "~home.csv",
    "50%.csv",
    "#1.csv",
    "a b.csv",
    "a:b.csv",
    "a::b.csv",
]


@pytest.fixture
def nothing_of_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("datasets was asked"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("nothing_of_the_hub")
def test_a_path_that_exists_is_that_path(folder, monkeypatch, name):
    for other in ("data1.csv", "ab.csv", "a_b.csv", "a.csv", "b.csv", "whatx.csv"):
        _write(folder / other, ["another file"])
    for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt"):
        file = folder / name.replace(".csv", suffix)
        _write(file, TEXTS)
        monkeypatch.chdir(folder)
        for source in (file, str(file), file.name):
            assert read_calibration(source)["text"][:] == TEXTS


@pytest.mark.parametrize("name", ["data[1]", "a*b", "a:b", "user/name", "imdb"])
@pytest.mark.usefixtures("nothing_of_the_hub")
def test_a_folder_that_exists_is_that_folder(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data1").mkdir()
    _write(tmp_path / "data1" / "train.csv", ["another file"])
    _write(tmp_path / name / "train[1].csv", TEXTS)
    monkeypatch.chdir(tmp_path)
    for source in (name, tmp_path / name):
        assert read_calibration(source)["text"][:] == TEXTS


@pytest.mark.parametrize(
    "name", ["a:b.txt", "a:b.CSV", "no such.csv", "a/b/c", "a\\b", "photos/", "x.xlsx", "notes.md", "?"]
)
@pytest.mark.usefixtures("nothing_of_the_hub")
def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(name, tmp_path):
    for read in (read_calibration, _pruner().get_calibration_dataset):
        with pytest.raises(FileNotFoundError, match=f"no file or folder {re.escape(name)}"):
            read(name)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_calibration(Path("imdb"))  # a path is no Hub id


def test_a_copy_of_a_data_set_says_itself_what_it_is_made_of(tmp_path, monkeypatch):
    place = tmp_path / "user" / "name"
    place.mkdir(parents=True)
    for name in ("one", "two"):
        _write(place / f"{name}.jsonl", [name] * 3)
    files = "\n".join(f"- config_name: {name}\n  data_files: {name}.jsonl" for name in ("one", "two"))
    (place / "README.md").write_text(f"---\nconfigs:\n{files}\n---\n")
    monkeypatch.chdir(tmp_path)
    assert read_calibration("user/name:two")["text"][:] == ["two"] * 3
    assert read_calibration(place, "one")["text"][:] == ["one"] * 3
    assert _pruner().get_calibration_dataset("user/name", "two")["text"][:] == ["two"] * 3


def test_what_datasets_saved_is_read(tmp_path):
    splits = {"train": Dataset.from_dict({"text": TEXTS}), "test": Dataset.from_dict({"text": ["x"]})}
    splits["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    assert read_calibration(tmp_path / "one")["text"][:] == TEXTS
    assert read_calibration(tmp_path / "all", split="test")["text"][:] == ["x"]
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        read_calibration(tmp_path / "all", split="dev")


@pytest.mark.parametrize(
    "names", [("Train.csv", "TEST.csv"), ("x-train.csv", "x_dev.csv"), ("train/a.csv", "val/a.csv")]
)
def test_splits_are_told_by_names(folder, names):
    for name, texts in zip(names, (TEXTS, ["held out"]), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        _write(folder / name, texts)
    _write(folder / "contest.csv", ["not of a split"])
    assert read_calibration(folder)["text"][:] == TEXTS
    held_out = "test" if "TEST" in names[1] else "validation"
    assert read_calibration(folder, split=held_out)["text"][:] == ["held out"]


def test_other_files_in_a_folder_are_said(folder, caplog):
    _write(folder / "a.csv", TEXTS)
    for name in (".hidden.txt", "README.md", "LICENSE", "part-0", "b.csv.gz"):
        (folder / name).write_text("x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.txt").write_text("x")
    assert read_calibration(folder)["text"][:] == TEXTS
    assert "files of other kinds are not read: b.csv.gz, part-0." in caplog.text


# `get_calibration_dataset`


def _pruner():
    return OptinPruner(tiny_model(), word_tokenizer())


SEMICOLONS = "text;label\n" + "".join(f"{text}, well;{number % 2}\n" for number, text in enumerate(TEXTS))


@pytest.mark.parametrize("options", [{}, {"delimiter": ";"}, {"sep": ";"}, {"streaming": True}])
@pytest.mark.usefixtures("nothing_of_the_hub")
def test_a_local_file_is_drawn_from(folder, monkeypatch, options):
    monkeypatch.chdir(folder)
    (folder / "x[1].csv").write_text(SEMICOLONS)
    for source, more in (
        ("x[1].csv", {}),
        (folder / "x[1].csv", {}),
        (folder, {}),
        ("csv", {"data_files": "x[1].csv"}),
        ("csv", {"data_files": ["x[1].csv"]}),
    ):
        drawn = _pruner().get_calibration_dataset(source, num_samples=10, **options, **more)
        rows = list(drawn)
        assert isinstance(drawn, list) == ("streaming" in options)
        assert len(rows) == 10
        assert all(row["text"].removesuffix(", well") in TEXTS and row["label"] in ("0", "1") for row in rows)
        assert rows[0]["text"] != f"{TEXTS[0]}, well"  # drawn, not the first


def test_options_that_a_local_file_does_not_take_are_named(folder):
    (folder / "x.csv").write_text(SEMICOLONS)
    with pytest.raises(ValueError, match=r"x.csv is a local file, which is read without quotechar: delimiter="):
        _pruner().get_calibration_dataset(folder / "x.csv", quotechar="'")
    with pytest.raises(FileNotFoundError, match="no file or folder y.csv"):
        _pruner().get_calibration_dataset("y.csv", delimiter=";")
    (folder / "x.json").write_text('["a"]')
    with pytest.raises(ValueError, match=r"delimiter=';' is for tables, and .*x.json holds json"):
        _pruner().get_calibration_dataset(folder / "x.json", delimiter=";")


def test_a_loader_of_datasets_takes_no_pattern_for_a_path_either(folder):
    _write(folder / "data[1].csv", TEXTS)
    _write(folder / "data1.csv", ["another file"])
    drawn = _pruner().get_calibration_dataset("csv", data_files=str(folder / "data[1].csv"), skip_blank_lines=True)
    assert sorted(drawn["text"]) == sorted(TEXTS)
    (folder / "data1.csv").write_bytes("text\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"data1.csv'\] cannot be read: .*0xe9"):
        _pruner().get_calibration_dataset("csv", data_files=str(folder / "data1.csv"), skip_blank_lines=True)


@pytest.mark.usefixtures("nothing_of_the_hub")
def test_a_loaders_files_by_split_are_read_by_us(folder):
    (folder / "x[1].csv").write_text(SEMICOLONS)
    (folder / "x1.csv").write_text("text;label\nanother file;1\n")
    (folder / "held.csv").write_text("text;label\nheld out;1\n")
    named = str(folder / "x[1].csv")
    read = partial(_pruner().get_calibration_dataset, "csv", num_samples=40)
    for files in (named, [named], {"train": named}, {"train": [named], "test": str(folder / "held.csv")}):
        assert sorted(read(data_files=files)["text"]) == sorted(f"{text}, well" for text in TEXTS)
    assert read(data_files=files, split="test")["text"][:] == ["held out"]
    with pytest.raises(ValueError, match=r"data_files= has no split 'dev'; it has train, test"):
        read(data_files=files, split="dev")
    both = read(data_files=str(folder / "[xh]*.csv"))  # nothing is called so, and a pattern is one
    assert len(both) == 26
    (folder / "notes.txt").write_text("not for this loader")
    assert len(read(data_dir=str(folder))) == 26


@pytest.mark.usefixtures("nothing_of_the_hub")
@pytest.mark.parametrize(
    ("split", "rows"), [("train[:5]", range(5)), ("train[50%:]", range(12, 24)), ("train[-2:]+train[:1]", [22, 23, 0])]
)
def test_a_part_of_a_split(folder, split, rows):
    _write(folder / "train.csv", TEXTS)
    _write(folder / "test.csv", ["held out"])
    expected = [TEXTS[row] for row in rows]
    assert read_calibration(folder, split=split)["text"][:] == expected
    assert read_calibration(folder, split=f"{split}+test")["text"][:] == [*expected, "held out"]
    assert read_calibration(folder / "train.csv", split=split)["text"][:] == expected
    drawn = _pruner().get_calibration_dataset("csv", data_files=str(folder / "train.csv"), split=split)
    assert sorted(drawn["text"]) == sorted(expected)
    with pytest.raises(ValueError, match=r"split='train\[5\]' must be .* like 'train\[:10%\]'"):
        read_calibration(folder, split="train[5]")


@pytest.mark.usefixtures("nothing_of_the_hub")
def test_a_configuration_of_what_has_none_is_refused(folder):
    _write(folder / "a.csv", TEXTS)
    for source, config_name in ((folder / "a.csv", "de"), (folder, "de"), (f"{folder}:de", None)):
        for read in (read_calibration, _pruner().get_calibration_dataset):
            with pytest.raises(ValueError, match="has no configuration 'de'"):
                read(source, config_name)


def test_a_path_below_the_users_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    _write(folder / "a.csv", TEXTS)
    for source in ("~/a.csv", Path("~/a.csv"), bytes(folder / "a.csv")):
        assert read_calibration(source)["text"][:] == TEXTS
    with pytest.raises(FileNotFoundError, match="https://e.org/a.csv: download it first"):
        read_calibration("https://e.org/a.csv")


@pytest.mark.parametrize("name", ["README.txt", "LICENSE.txt", "readme-first.txt"])
def test_notes_beside_the_data_are_no_data(folder, name):
    (folder / name).write_text("about the data")
    assert read_calibration(folder)["text"][:] == ["about the data"]
    _write(folder / "a.csv", TEXTS)
    assert read_calibration(folder)["text"][:] == TEXTS
    _write(folder / "license_plates.txt", ["not a note"])
    with pytest.raises(ValueError, match="of one kind of"):
        read_calibration(folder)


def test_links_to_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    _write(tmp_path / "elsewhere" / "a.csv", TEXTS)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "round").symlink_to(folder)
    assert read_calibration(folder)["text"][:] == TEXTS


def test_columns_are_chosen_when_drawing(folder, monkeypatch):
    (folder / "x.csv").write_text(SEMICOLONS.replace("text", "one").replace("label", "other"))
    drawn = _pruner().get_calibration_dataset(folder / "x.csv", text_columns=["one"])
    assert drawn.column_names == ["text"]

    def load(name, config, split, **options):
        data = Dataset.from_dict({"one": TEXTS, "other": TEXTS})
        return data.to_iterable_dataset() if options.get("streaming") else data

    monkeypatch.setattr(datasets, "load_dataset", load)
    pruner = _pruner()
    drawn = pruner.get_calibration_dataset("user/name:c", text_columns="other", num_samples=16)
    assert drawn.column_names == ["text"]
    pruner.prune(drawn, OptinConfig(flops=0.6, probes=4))
    expected = {"dataset": "user/name", "config": "c", "split": "train", "text_columns": ["other"], "num_samples": 16}
    assert pruner.report.calibration == {"samples": 16, **expected, "seed": 0}
    assert 'text_columns=["other"]' in str(pruner.create_model_card())
    streamed = pruner.get_calibration_dataset("user/name", text_columns=["other"], num_samples=16, streaming=True)
    assert [set(row) for row in streamed] == [{"text"}] * 16
