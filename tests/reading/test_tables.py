"""Tables in files: delimiters, quotation marks, encodings, torn rows; the same reader for calibration and for GLUE."""

import csv
import gzip
import io
import re

import pytest
from words import TEXTS

from optimum_optin.evaluation.glue import read_glue
from optimum_optin.reading.plain_text import split_lines, without_surrogates
from optimum_optin.reading.rows import read_rows
from optimum_optin.reading.sources import read_calibration
from optimum_optin.reading.tables import read_csv, read_tsv

# Texts that make a sniffer err.
HARD = [f"{text}, well; it | cost\t3,50" for text in TEXTS]
ODD = ['"good" film', "a, b", "two\nlines", 'he said "no"', "semi; colon", "tab\there", "NA", "null", "1.50", "", " x "]


def _csv(rows, **options):
    stream = io.StringIO(newline="")
    csv.writer(stream, **options).writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_csv_writes_is_read(tmp_path, delimiter, end):
    """Against Python's own writer, whose delimiter has to be found."""
    file = tmp_path / "a.csv"
    rows = [[text, str(number), "x"] for number, text in enumerate(HARD + ODD)]
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows([["review", "id", "note"], *rows])
    assert read_csv(file).columns == ("review", "id", "note")
    assert read_csv(file).rows == [[cell.replace("\r\n", "\n") for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text;label\na, b;1\nc, d;0\n", [["a, b", "1"], ["c, d", "0"]]),
        ('review\nfoo, bar; baz\n\n"quoted, text"\n', [["foo, bar; baz"], ["quoted, text"]]),
        ('review\n"good" film\n"bad\n', [['"good" film'], ['"bad']]),
        ('text,label\n"he said \\"hi\\", ok",1\nplain,0\n', [['he said "hi", ok', "1"], ["plain", "0"]]),
        ('text;label\n"Good" film;1\nplain;0\n', [['"Good" film', "1"], ["plain", "0"]]),
        ("sep=|\ntext|label\na;b,c|1\n", [["a;b,c", "1"]]),
        ("text,label\ra,1\rb,0\r", [["a", "1"], ["b", "0"]]),
        ("text,label\n" + "x" * 200_000 + ",1\n", [["x" * 200_000, "1"]]),
        ('"te;xt",label\na,1\n', [["a", "1"]]),
        ("\n\ntext,label\n\na,1\n", [["a", "1"]]),
    ],
    ids=[
        "semicolons",
        "one column",
        "one column, stray quotes",
        "backslashes",
        "quotes as characters",
        "Excel's hint",
        "old newlines",
        "a long cell",
        "a delimiter in a quoted name",
        "blank lines",
    ],
)
def test_tables_that_people_have(tmp_path, content, expected):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    before = csv.field_size_limit()
    assert read_csv(tmp_path / "a.csv").rows == expected
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("delimiter", ["^", "~", "::", "/"])
def test_a_delimiter_that_is_not_looked_for_is_said(tmp_path, delimiter):
    rows = [f"{text}{delimiter}1" for text in TEXTS]
    (tmp_path / "a.csv").write_text("\n".join([f"text{delimiter}label", *rows]))
    with pytest.raises(ValueError, match=f"seem to be set apart by '{re.escape(delimiter[0])}'"):
        read_csv(tmp_path / "a.csv")
    if len(delimiter) == 1:
        assert read_csv(tmp_path / "a.csv", delimiter).rows == [[text, "1"] for text in TEXTS]


def test_a_delimiter_may_be_given(tmp_path):
    (tmp_path / "a.csv").write_text("text,more;label\na,b;1\n")
    assert read_csv(tmp_path / "a.csv", ";").columns == ("text,more", "label")


@pytest.mark.parametrize("stray", ['"Good film, but', '"Good" film,1', '"He said "hi" to me",1', "a,b,c", "alone"])
def test_a_torn_row_is_left_out_alone_and_named(tmp_path, stray, caplog):
    rows = [f'"{text}, they said",{number % 2}' for number, text in enumerate(TEXTS)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows[:10], stray, *rows[10:]]))
    table = read_csv(tmp_path / "a.csv")
    assert [text for text, _ in table.rows] == [f"{text}, they said" for text in TEXTS]
    assert "a.csv: 1 of 25 rows do not have one cell for each of the 2 columns, line 12 the first" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_many_torn_rows_are_refused_with_file_and_line(tmp_path, suffix):
    delimiter = {".csv": ",", ".tsv": "\t"}[suffix]
    rows = [delimiter.join([text, "1", *(["more"] if number % 4 == 3 else [])]) for number, text in enumerate(TEXTS)]
    file = tmp_path / f"a{suffix}"
    file.write_text("\n".join([f"text{delimiter}label", *rows]))
    with pytest.raises(ValueError, match=rf"a\{suffix}: 6 of 24 rows .*line 5 the first"):
        read_calibration(file)


def test_names_of_columns(tmp_path):
    (tmp_path / "a.csv").write_text(",text,label\n0,a,1\n")  # as pandas writes its index
    assert read_csv(tmp_path / "a.csv").columns == ("column 1", "text", "label")
    (tmp_path / "a.csv").write_text("text,text\na,1\n")
    with pytest.raises(ValueError, match="it has text more than once"):
        read_csv(tmp_path / "a.csv")


def test_an_id_may_be_there_twice(tmp_path):
    """As in an export of two tables that were joined."""
    (tmp_path / "a.csv").write_text("id,text,id,label,label\n1,a b,2,x,y\n")
    row = {"id": "1", "text": "a b", "column 3 id": "2", "label": "x", "column 5 label": "y"}
    assert read_calibration(tmp_path / "a.csv")[0] == row


def test_one_reader_of_tsv(tmp_path):
    """GLUE's form, in which quotation marks are characters: the same rows for calibration and evaluation."""
    texts = [f'"{text}' if number % 3 == 0 else f'the "{text}"' for number, text in enumerate(TEXTS)]
    texts[5], texts[6] = "a\rb", "a\x0cb\u2028c"
    file = tmp_path / "SST-2" / "dev.tsv"
    file.parent.mkdir()
    lines = "".join(f"{text}\t{number % 2}\r\n" for number, text in enumerate(texts))
    file.write_bytes(("\ufeffsentence\tlabel\r\n" + lines).encode())
    assert read_calibration(file)["sentence"][:] == texts
    assert read_calibration(file)["label"][:] == ["0", "1"] * 12
    assert read_glue("sst2", data_dir=tmp_path).texts == [(text,) for text in texts]
    assert [row[0] for row in read_tsv(file).rows] == texts


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("texts", [HARD + ODD, [f'{text}, "well"' for text in TEXTS]], ids=["odd", "on a line each"])
def test_quoted_tsv_is_read_as_what_wrote_it_meant(tmp_path, quoting, texts):
    """As `DataFrame.to_csv(sep="\\t")` writes it."""
    rows = [["review", "label"], *([text, number % 2] for number, text in enumerate(texts))]
    (tmp_path / "a.tsv").write_text(_csv(rows, delimiter="\t", quoting=quoting, lineterminator="\n"), newline="")
    assert read_tsv(tmp_path / "a.tsv").columns == ("review", "label")
    assert [text for text, _ in read_tsv(tmp_path / "a.tsv").rows] == texts


def test_quotation_marks_that_quote_nothing_stay(tmp_path):
    """GLUE's texts may be wholly in quotation marks."""
    for texts in (
        [f'"{text}"' for text in TEXTS],
        ['"he said "no""', '"a dog"', '"a", "b"'],
        ['"open', 'closed"', '"a ""b"" c"'],
        ['"', '""', "a"],
    ):
        (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
        assert [text for text, _ in read_tsv(tmp_path / "a.tsv").rows] == texts


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_another_delimiter_in_a_file_called_tsv_is_found(tmp_path, delimiter):
    (tmp_path / "a.tsv").write_text(_csv([["text", "label"], *([text, 1] for text in HARD)], delimiter=delimiter))
    assert read_calibration(tmp_path / "a.tsv")["text"][:] == HARD
    (tmp_path / "a.tsv").write_text("\n".join(["text", *TEXTS]))
    assert read_calibration(tmp_path / "a.tsv")["text"][:] == TEXTS


@pytest.mark.parametrize("title", ["My export", "# made in May"])
def test_a_title_above_the_names_is_said(tmp_path, title):
    for suffix, delimiter, message in (
        (".csv", ",", "it is '.*'; those seem to be in line 3. Remove what stands before it"),
        (".csv", ";", "those seem to be in line 3"),
        (".tsv", "\t", "line 3 the first: a line is a row, and the first one names the columns"),
    ):
        file = tmp_path / f"a{suffix}"
        file.write_text(f"{title}\n\n" + _csv([["text", "label"], *([text, 1] for text in TEXTS)], delimiter=delimiter))
        with pytest.raises(ValueError, match=message):
            read_calibration(file)
    (tmp_path / "a.csv").write_text("\n".join(["text", "yes,no", *(f"{text}, they said" for text in TEXTS)]))
    with pytest.raises(ValueError, match="line 2"):
        read_calibration(tmp_path / "a.csv")
    rows = ["well, no", *(f"{text}, they said" for text in TEXTS)]
    (tmp_path / "a.csv").write_text("\n".join(["text", *rows]))
    assert read_calibration(tmp_path / "a.csv")["text"][:] == rows


def test_spaces_after_delimiters_are_no_part_of_cells(tmp_path):
    (tmp_path / "a.csv").write_text('id, text, label\n1, "a, b", 0\n2, "c", 1\n3, d "e", 0\n')
    assert read_csv(tmp_path / "a.csv").columns == ("id", "text", "label")
    assert read_csv(tmp_path / "a.csv").rows == [["1", "a, b", "0"], ["2", "c", "1"], ["3", 'd "e"', "0"]]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".json", ".parquet"])
def test_a_pointer_to_a_file_elsewhere_is_no_data(tmp_path, suffix):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
    (tmp_path / f"a{suffix}").write_text(pointer)
    with pytest.raises(ValueError, match=rf"a\{suffix} is a pointer of Git LFS.*git lfs pull"):
        read_calibration(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: b"PK\3\4" + content], ids=["gzip", "zip"])
def test_what_is_packed_is_to_be_unpacked(tmp_path, pack):
    (tmp_path / "a.csv").write_bytes(pack(b"text,label\na b,1\n"))
    with pytest.raises(ValueError, match=r"a\.csv is packed: unpack it first"):
        read_calibration(tmp_path / "a.csv")


def test_words_stay_words(tmp_path):
    words = ["NA", "N/A", "null", "NULL", "None", "nan", "NaN", "true", "1e5", "007", "", "-"]
    expected = [word or None for word in words]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{word},1\n" for word in words))
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{word}\t1\n" for word in words))
    assert read_calibration(tmp_path / "a.csv")["text"][:] == expected
    assert read_calibration(tmp_path / "a.tsv")["text"][:] == expected


# Encodings

CONTENTS = {
    ".csv": "text,label\ncafé 日本,1\nthe cat,0\n",
    ".tsv": "text\tlabel\ncafé 日本\t1\nthe cat\t0\n",
    ".txt": "café 日本\nthe cat\n",
    ".json": '[\n{"text": "café 日本"},\n{"text": "the cat"}]',
    ".jsonl": '{"text": "café 日本"}\n{"text": "the cat"}\n',
}


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_are_read(tmp_path, suffix, encoding):
    (tmp_path / f"a{suffix}").write_bytes(CONTENTS[suffix].encode(encoding))
    assert read_calibration(tmp_path / f"a{suffix}")["text"][:] == ["café 日本", "the cat"]


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_other_encodings_are_refused_with_file_line_and_byte(tmp_path, suffix, encoding):
    content = CONTENTS[suffix].replace("日本", "")
    (tmp_path / f"a{suffix}").write_bytes(content.encode(encoding))
    line = content[: content.index("é")].count("\n") + 1
    where = f"byte 0xe9 in line {line}" if encoding == "latin-1" else "zero byte in line 1"
    with pytest.raises(ValueError, match=rf"a\{suffix} is not text in UTF-8: .*{where}.*iconv -f"):
        read_calibration(tmp_path / f"a{suffix}")


def test_lines_end_at_newlines_alone():
    assert split_lines("a\x0cb\u2028c\x85d\x1ce\r\nf\n") == ["a\x0cb\u2028c\x85d\x1ce", "f"]
    assert split_lines("a\rb\r") == ["a", "b"]
    assert split_lines("") == []


def test_surrogates():
    assert without_surrogates("plain 😀") == "plain 😀"
    assert without_surrogates("a\ud800b\udc00") == "a\ufffdb\ufffd"
    assert without_surrogates("\ud83d\ude00") == "😀"


# Other kinds


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "label": 1}, {"text": "b", "label": 0}]',
        '{"version": "1", "data": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]}',
        '{"text": ["a", "b"], "label": [1, 0]}',
        '{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}',
        '{"7": {"text": "a"}, "8": {"text": "b"}}',
        '\n{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}',
        '{"text": "a"}\n{"text": "b"}',
        '["a", "b"]',
        '"a"\n"b"',
    ],
    ids=[
        "list",
        "wrapped",
        "columns",
        "as pandas writes",
        "by ids",
        "lines",
        "other columns",
        "strings",
        "lines of strings",
    ],
)
def test_forms_of_json(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_calibration(tmp_path / "a.json")["text"][:] == ["a", "b"]


@pytest.mark.parametrize("content", ['[{"text": "a"}, {"text": "b"}]', '{"text": "a"}\n\n{"text": "b"}', '"a"\n"b"\n'])
def test_forms_of_json_lines(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    assert read_calibration(tmp_path / "a.jsonl")["text"][:] == ["a", "b"]
    (tmp_path / "a.jsonl").write_text('{"text": "a", "parts": [{"word": "b"}]}')
    assert read_calibration(tmp_path / "a.jsonl")["text"][:] == ["a"]


def test_a_column_of_several_kinds(tmp_path, caplog):
    (tmp_path / "a.json").write_text(
        '[{"text": "a", "meta": 1}, {"text": 5, "meta": {"b": [1]}}, {"text": "c \\ud800"}]'
    )
    dataset = read_calibration(tmp_path / "a.json")
    assert dataset.to_dict() == {"text": ["a", None, "c \ufffd"]}
    assert "a.json: in column text, what is no string counts as missing, row 1 the first" in caplog.text
    assert "column meta is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "a"},\n{"text":', "a.json is no JSON: line 2, column 9"),
        ("a.jsonl", '{"text": "a"}\n{"text": b}\n', "a.jsonl is no JSON: line 2, column 10"),
        ("a.json", "[1, 2]", "a.json must hold a list of objects or of strings, got 1"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "several lists of rows, train, test"),
        ("a.json", "", "a.json: there are no rows"),
        ("a.csv", "", "a.csv: there are no rows"),
        ("a.tsv", "text\tlabel\n", "a.tsv: there are no rows"),
        ("a.txt", "\n \n", "a.txt: there are no rows"),
        ("a.parquet", "PAR1, they say", "a.parquet is no Parquet file that can be read"),
        ("a.parquet", "text", "a.parquet is no Parquet file that can be read"),
        ("a", "text", "it has a without a suffix"),
        ("a.xlsx", "text", "it has .xlsx"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_calibration(tmp_path / name)


@pytest.mark.parametrize("form", ["{text};{label}", "{text}\t{label}", "{label}\t{text}", "{number};{text};{label}"])
def test_a_text_file_that_is_a_table_with_labels_is_said(tmp_path, form, caplog):
    lines = [form.format(text=text, number=row, label=["joy", "fear"][row % 2]) for row, text in enumerate(TEXTS)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert read_calibration(tmp_path / "a.txt")["text"][:] == lines
    assert "a.txt: every line has a" in caplog.text and "call the file .csv" in caplog.text
    caplog.clear()
    for plain in (TEXTS, [f"{text}; well" for text in TEXTS] + ["no sign"], [f"{text}; {text}" for text in TEXTS]):
        (tmp_path / "a.txt").write_text("\n".join(plain))
        read_calibration(tmp_path / "a.txt")
    assert not caplog.text


def test_files_of_other_columns_do_not_go_together(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "b.csv").write_text("label,review\n1,b\n")
    with pytest.raises(ValueError, match="a.csv has text, label, .*b.csv has label, review"):
        read_calibration(tmp_path)
    (tmp_path / "b.csv").write_text("label,text\n1,b\n")
    assert read_rows(sorted(tmp_path.iterdir()), "csv")["text"][:] == ["a", "b"]


def test_categories_of_parquet_are_read(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"text": pandas.Categorical(TEXTS), "n": range(24)}).to_parquet(tmp_path / "a.parquet")
    assert read_calibration(tmp_path / "a.parquet")["text"][:] == TEXTS
    (tmp_path / "a.parquet").rename(tmp_path / "a")
    assert read_calibration(tmp_path / "a")["text"][:] == TEXTS
