"""Which texts are calibrated on: the columns chosen, samples without text, and what holds the samples."""

import math
import re
from collections import OrderedDict, deque

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tiny import tiny_model
from words import TEXTS, token_lists, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.accuracy import predict
from optimum_optin.evaluation.glue import TASKS, GlueSamples
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.texts import read_texts

NEXT = TEXTS[1:] + TEXTS[:1]
LABELS = ["good", "bad"] * 12
# column -> what is no text in it
OTHERS = {
    "sentiment": LABELS,
    "label": ["not entailment", "entailment"] * 12,
    "gold_label": TEXTS,  # even if it is long
    "verdict": LABELS,
    "opinion of it": ["very good", "very bad"] * 12,
    "topic_name": ["World News", "Sports", "Science and Technology"] * 8,
    "customer": [f"c{number:05d}" for number in range(24)],
    "checksum": [f"{number * 7919:032x}" for number in range(24)],
    "uuid4": [f"550e8400-e29b-41d4-a716-4466554400{number:02d}" for number in range(24)],
    "homepage": [f"https://example.org/a/{number}" for number in range(24)],
    "contact": [f"someone{number}@example.org" for number in range(24)],
    "day": [f"2020-01-{number + 1:02d} 10:00:00" for number in range(24)],
    "when it was": [f"Mon Apr {number + 1:02d} 22:19:45 PDT 2009" for number in range(24)],
    "amount": [f"{number} 000,50" for number in range(24)],
    "photo": [f"my holiday photo {number}.jpg" for number in range(24)],
    "imageId": TEXTS,
    "userName": TEXTS,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert")


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def _tokens(texts, pairs=None, tokenizer=None):
    encoded = (tokenizer or word_tokenizer())(list(texts), None if pairs is None else list(pairs))
    return sorted(map(tuple, encoded["input_ids"]))


def _rows(columns):
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# Columns


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", ["text", "review", "what they wrote"])
def test_a_label_or_an_id_is_no_text(model, tokenizer, name, other, caplog):
    columns = {other: OTHERS[other], name: TEXTS}
    for data in (_rows(columns), Dataset.from_dict(columns), columns):
        caplog.clear()
        assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(TEXTS)
        said = [record.message for record in caplog.records if "texts are those in" in record.message]
        assert said == (
            []
            if name == "text"
            else [
                f"texts are those in column {name}; not used: {other}. text_columns= (--text-columns) chooses others."
            ]
        )


@pytest.mark.parametrize(
    "columns",
    [
        {"one": TEXTS, "other": NEXT},
        {"review": TEXTS, "comment": NEXT},
        {"review": LABELS, "other": NEXT},
        {"a": LABELS},
        {"sentiment": TEXTS},
    ],
)
def test_columns_that_cannot_be_told_are_listed(model, tokenizer, columns):
    message = rf"among {', '.join(columns)}: rename .*text_columns= \(--text-columns\)"
    with pytest.raises(ValueError, match=message):
        calibration_batches(_rows(columns), model, tokenizer)
    with pytest.raises(ValueError, match=message):
        OptinPruner(model, tokenizer).score(Dataset.from_dict(columns))


def test_of_many_columns_some_are_listed():
    with pytest.raises(ValueError, match=r"among id0, .*, id19 and 480 more: rename"):
        read_texts({0: {f"id{number}": "the red cat sat" for number in range(500)}})


def test_columns_are_chosen(model, tokenizer):
    columns = {"one": TEXTS, "other": NEXT, "label": LABELS}
    for data in (_rows(columns), Dataset.from_dict(columns)):
        one = calibration_batches(data, model, tokenizer, text_columns=["one"])
        assert token_lists(one) == _tokens(TEXTS)
        assert token_lists(calibration_batches(data, model, tokenizer, text_columns="one")) == _tokens(TEXTS)
        both = calibration_batches(data, model, tokenizer, text_columns=["other", "one"])
        assert token_lists(both) == _tokens(NEXT, TEXTS)
    with pytest.raises(ValueError, match="no column two; there are one, other, label"):
        calibration_batches(_rows(columns), model, tokenizer, text_columns=["two"])
    with pytest.raises(ValueError, match="one column or two, got one, other, label"):
        calibration_batches(_rows(columns), model, tokenizer, text_columns=list(columns))
    with pytest.raises(ValueError, match="none of the 24 calibration texts can be read; the first: row 0 .int, not"):
        calibration_batches([{"label": 1}] * 24, model, tokenizer, text_columns=["label"])
    for data in (TEXTS, [dict(tokenizer(text)) for text in TEXTS]):
        with pytest.raises(ValueError, match=r"text_columns=\['one'\]"):
            calibration_batches(data, model, tokenizer, text_columns=["one"])


def test_score_and_prune_take_the_columns(model, tokenizer):
    data = _rows({"one": TEXTS, "other": NEXT})
    pruner = OptinPruner(model, tokenizer, OptinConfig(flops=0.6, probes=4, search="ranked"))
    expected = OptinPruner(model, tokenizer, pruner.config).prune(TEXTS).state_dict()
    scores = pruner.score(data, text_columns=["one"])
    for given in ({}, {"scores": scores}):
        pruned = pruner.prune(data, text_columns=["one"], **given).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in pruned.items())


def test_names_are_known_in_any_case(model, tokenizer):
    for names in (
        ("Premise", "Hypothesis"),
        ("SENTENCE1", "Sentence2"),
        ("#1 String", "#2 String"),
        ("text_a", "text_b"),
    ):
        data = _rows(dict(zip(names, (TEXTS, NEXT), strict=True)))
        assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(TEXTS, NEXT)
    for name in ("Text", "Review Text", "reviewText"):
        data = _rows({name: TEXTS, "writer": NEXT})
        assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(TEXTS)


def test_class_labels_are_no_text(model, tokenizer):
    features = Features({"kind": ClassLabel(names=["a word", "two words"]), "wording": Value("string")})
    data = Dataset.from_dict({"kind": [0, 1] * 12, "wording": TEXTS}, features=features)
    assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(TEXTS)


def test_text_without_spaces_is_text(model, tokenizer):
    data = _rows({"内容": [f"这部电影很好看{number}" for number in range(24)], "标签": ["好", "坏"] * 12})
    assert {len(text) for text in read_texts(dict(enumerate(data))).values()} == {1}


# script -> texts, labels
SCRIPTS = {
    "Japanese": ([f"「この映画はとても面白かった」{number}" for number in range(24)], ["ポジティブ", "ネガティブ"]),
    "Chinese": ([f"《这部电影》很好看{number}" for number in range(24)], ["科技与互联网", "财经新闻报道"]),
    "Thai": ([f"อาหารอร่อยมากครับ {number}" for number in range(24)], ["เชิงบวก", "เชิงลบ"]),
    "Burmese": ([f"ကျွန်တော် ဒီရုပ်ရှင်ကို ကြိုက်တယ် {number}" for number in range(24)], ["ကောင်း", "ဆိုး"]),
    "Hindi": ([f"यह फिल्म बहुत अच्छी है {number}" for number in range(24)], ["सकारात्मक", "नकारात्मक"]),
    "Arabic": ([f"هذا الفيلم رائع جدا {number}" for number in range(24)], ["إيجابي", "سلبي"]),
    "Korean": ([f"영화가 정말 재미있었어요 {number}" for number in range(24)], ["긍정", "부정"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_and_labels_of_all_scripts_are_told_apart(script):
    texts, labels = SCRIPTS[script]
    data = _rows({"一": labels * 12, "二": texts})
    assert read_texts(dict(enumerate(data))) == {row: (text,) for row, text in enumerate(texts)}


@pytest.mark.parametrize("name", ["question", "query", "prompt", "anchor"])
@pytest.mark.parametrize("other", ["answer", "response", "positive", "product title", "category"])
def test_half_of_a_pair_is_not_taken_alone(name, other):
    """`category` is no text whatever it holds."""
    data = dict(enumerate(_rows({name: TEXTS, other: NEXT})))
    if other == "category":
        assert read_texts(data)[3] == (TEXTS[3],)
    else:
        with pytest.raises(ValueError, match=f"cannot tell the text columns among {name}, {other}"):
            read_texts(data)
    assert read_texts(dict(enumerate(_rows({name: TEXTS, other: LABELS}))))[3] == (TEXTS[3],)


@pytest.mark.parametrize("name", ["body", "message", "content", "article"])
@pytest.mark.parametrize("other", ["title", "subject", "summary", "highlights"])
def test_a_title_beside_the_text_is_none(name, other):
    assert read_texts(dict(enumerate(_rows({other: NEXT, name: TEXTS}))))[3] == (TEXTS[3],)


def test_texts_that_end_in_a_price_are_no_files():
    texts = [f"{text} for {number}.50" for number, text in enumerate(TEXTS)]
    assert read_texts(dict(enumerate(_rows({"0": texts, "1": LABELS}))))[3] == (texts[3],)


def test_the_first_row_of_a_table_without_names_is_no_name(model, tokenizer):
    data = _rows({"the red cat sat on the mat": TEXTS, "1": LABELS})
    with pytest.raises(ValueError, match="cannot tell the text columns among the red cat sat on the mat, 1"):
        calibration_batches(data, model, tokenizer)


# Tuples


@pytest.mark.parametrize(
    "second",
    [LABELS, [0, 1] * 12, ["very good", "very bad"] * 12, OTHERS["customer"], OTHERS["homepage"], [None] * 24],
    ids=["words", "numbers", "two words", "ids", "addresses", "none"],
)
@pytest.mark.parametrize("make", [tuple, list])
def test_the_label_in_a_tuple_is_no_text(model, tokenizer, second, make, caplog):
    data = [make(pair) for pair in zip(TEXTS, second, strict=True)]
    assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(TEXTS)
    assert "texts are those in place 0; not used: 1." in caplog.text
    turned = [make(pair) for pair in zip(second, TEXTS, strict=True)]
    assert token_lists(calibration_batches(turned, model, tokenizer)) == _tokens(TEXTS)


def test_pairs_of_texts_stay_pairs(model, tokenizer):
    for firsts, seconds in ((TEXTS, NEXT), (["the cat sat"] * 8, ["a dog ran"] * 8), (["the cat"], ["a dog"])):
        data = list(zip(firsts, seconds, strict=True))
        assert token_lists(calibration_batches(data, model, tokenizer)) == _tokens(firsts, seconds)


@pytest.mark.parametrize("other", [[5, 6, 7], np.ones(3), torch.ones(3), {"ids": [5]}, object()])
def test_the_label_of_something_else_is_no_text(other):
    with pytest.raises(ValueError, match="cannot tell texts from labels"):
        read_texts(dict(enumerate((other, label) for label in LABELS)))
    assert read_texts(dict(enumerate((other, text) for text in TEXTS)))[3] == (TEXTS[3],)
    for single in (1, 0.5, np.int64(1), torch.tensor(1), True, None):
        assert read_texts({0: ("cat", single)}) == {0: ("cat",)}


def test_tuples_that_cannot_be_told(model, tokenizer):
    data = [("cat", "dog"), ("dog", "bird")]
    with pytest.raises(ValueError, match=r"cannot tell texts from labels in samples such as \('(cat|dog)'.*\[0, 1\]"):
        calibration_batches(data, model, tokenizer)
    both = calibration_batches(data, model, tokenizer, text_columns=[0, 1])
    assert token_lists(both) == _tokens(["cat", "dog"], ["dog", "bird"])
    assert token_lists(calibration_batches(data, model, tokenizer, text_columns=["1"])) == _tokens(["dog", "bird"])


# Samples without text

NOT_A_NUMBER = float("nan")


@pytest.mark.parametrize("missing", [None, NOT_A_NUMBER, np.float32("nan"), "", " \n", b"the cat", 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: text,
        lambda text: (text,),
        lambda text: (text, 1),
        lambda text: {"text": text, "label": 1},
        lambda text: {"sentence1": text, "sentence2": "the cat sat"},
        lambda text: ("the cat sat on it", text),
    ],
    ids=["list", "tuples of one", "with labels", "dicts", "half a pair", "half a tuple"],
)
def test_a_missing_text_is_named_and_left_out(model, tokenizer, make, missing, caplog):
    data = [make(text) for text in TEXTS]
    expected = token_lists(calibration_batches(data, model, tokenizer))
    data[7:7] = [make(missing)]
    assert token_lists(calibration_batches(data, model, tokenizer)) == expected
    assert "left out of the calibration data, as there is no text to read: row 7 (" in caplog.text
    assert "24 of 25 calibration texts are left" in caplog.text
    with pytest.raises(ValueError, match=r"a calibration text cannot be read: row 7 \(.*or take unreadable='skip'"):
        calibration_batches(data, model, tokenizer, unreadable="stop")


def test_no_other_samples_are_drawn_for_missing_ones(model, tokenizer):
    data = [text if number % 2 else None for number, text in enumerate(TEXTS * 4)]
    count = len(token_lists(calibration_batches(data, model, tokenizer, num_samples=40)))
    assert 0 < count < 40


def test_nothing_but_missing_texts_is_an_error(model, tokenizer):
    for data in ([{"text": None}] * 5, [{"text": NOT_A_NUMBER}] * 5):
        with pytest.raises(ValueError):
            calibration_batches(data, model, tokenizer)
    with pytest.raises(ValueError, match="none of the 5 calibration texts can be read"):
        calibration_batches([{"text": None}] * 5, model, tokenizer, text_columns=["text"])


def test_empty_texts_alone_are_what_was_asked_for(model, tokenizer, caplog):
    assert token_lists(calibration_batches([""] * 3, model, tokenizer)) == _tokens([""] * 3)
    assert "all calibration texts are empty" in caplog.text


def test_a_sample_without_tokens_is_named_and_left_out(model, tokenizer, caplog):
    samples = [dict(tokenizer(text)) for text in TEXTS]
    expected = _tokens(TEXTS)
    for odd in ({"input_ids": [], "attention_mask": []}, {"input_ids": [5, 6], "attention_mask": [0, 0]}):
        caplog.clear()
        data = [*samples[:3], odd, *samples[3:]]
        assert token_lists(calibration_batches(data, model, tokenizer)) == expected
        assert "row 3 (no tokens); 24 of 25 calibration texts are left" in caplog.text
        with pytest.raises(ValueError, match=r"row 3 \(no tokens\)"):
            calibration_batches(data, model, tokenizer, unreadable="stop")


def test_half_a_surrogate_pair_is_replaced(model, tokenizer, caplog):
    data = [*TEXTS, "the \ud800 cat"]
    expected = _tokens([*TEXTS, "the \ufffd cat"])
    for form in (data, [{"text": text} for text in data], iter(data), [np.str_(text) for text in data]):
        caplog.clear()
        assert token_lists(calibration_batches(form, model, tokenizer)) == expected
        assert "1 of 25 texts hold half a surrogate pair" in caplog.text
    pairs = list(zip(data, TEXTS + NEXT[:1], strict=True))
    assert len(token_lists(calibration_batches(pairs, model, tokenizer))) == 25


def test_half_a_surrogate_pair_is_measured_on(model, tokenizer):
    model = tiny_model(num_labels=2)
    for texts in ([("the \ud800 cat",), ("a dog",)], [("the \ufffd cat",), ("a dog",)]):
        predicted = predict(model, tokenizer, GlueSamples(TASKS["sst2"], "validation", texts, torch.tensor([0, 1])))
        assert len(predicted) == 2


# What holds the samples


class _Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return len(TEXTS)

    def __iter__(self):
        return iter(TEXTS)


class _OldSequence:
    def __getitem__(self, place):
        return TEXTS[place]


@pytest.mark.parametrize(
    "make",
    [
        lambda: deque(TEXTS),
        lambda: dict.fromkeys(TEXTS).keys(),
        lambda: dict(enumerate(TEXTS)).values(),
        lambda: OrderedDict(zip(TEXTS, LABELS, strict=True)).items(),
        lambda: np.array(TEXTS),
        lambda: np.array(TEXTS, dtype=object),
        lambda: np.array([*TEXTS, None], dtype=object),
        lambda: np.array(list(zip(TEXTS, range(24), strict=True)), dtype=[("text", "U40"), ("n", int)]),
        lambda: np.array([TEXTS, LABELS], dtype=object).T,
        lambda: (text for text in TEXTS),
        lambda: map(str, TEXTS),
        lambda: zip(TEXTS, LABELS, strict=True),
        lambda: Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
        lambda: Dataset.from_dict({"text": TEXTS}).to_iterable_dataset().with_format("pandas"),
        lambda: Dataset.from_dict({"text": TEXTS}).to_iterable_dataset().with_format("arrow"),
        lambda: Dataset.from_dict({"text": TEXTS})["text"],
        lambda: Dataset.from_dict({"text": TEXTS}).with_format("pandas"),
        lambda: Dataset.from_dict({"text": TEXTS}).with_format("arrow"),
        lambda: Dataset.from_dict({"text": TEXTS}).filter(lambda row: True).data.table,
        lambda: torch.utils.data.Subset(TEXTS, range(24)),
        _Stream,
        _OldSequence,
        lambda: {"text": TEXTS, "label": LABELS},
        lambda: {"text": np.array(TEXTS)},
        lambda: {"text": iter(TEXTS)},
    ],
    ids=[
        "deque",
        "keys",
        "values",
        "items",
        "array",
        "objects",
        "objects and none",
        "records",
        "rows of an array",
        "generator",
        "map",
        "zip",
        "stream of datasets",
        "stream in pandas' format",
        "stream in arrow's format",
        "column of datasets",
        "format of pandas",
        "format of arrow",
        "table of pyarrow",
        "subset",
        "stream of torch",
        "old sequence",
        "columns",
        "column of an array",
        "column of an iterator",
    ],
)
def test_whatever_iterates_in_order_works(model, tokenizer, make):
    got = token_lists(calibration_batches(make(), model, tokenizer))
    assert len(got) in (len(TEXTS), len(set(TEXTS)))  # keys are there once
    assert set(got) == set(_tokens(TEXTS))


def test_what_pandas_holds_is_read_by_place(model, tokenizer):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"review": [*TEXTS, None], "stars": [*range(24), 0], "keep": [True] * 25})
    frame = frame[frame["keep"]].iloc[::-1]
    frame.index = frame.index + 100
    later = frame[frame["stars"] > 11]
    for data, count in (
        (frame["review"], 24),
        (frame, 24),
        (later["review"], 12),
        (later, 12),
        ({"review": later["review"]}, 12),
        (later.to_dict("list"), 12),
        (pandas.Index(TEXTS), 24),
        (frame["review"].astype("category"), 24),
        (frame["review"].astype("string"), 24),
        (frame["review"].astype(object), 24),
    ):
        expected = _tokens(TEXTS if count == 24 else TEXTS[12:])
        assert token_lists(calibration_batches(data, model, tokenizer)) == expected
    for rows in ([row for _, row in frame.iterrows()], frame.itertuples(), frame.itertuples(index=False, name=None)):
        assert token_lists(calibration_batches(rows, model, tokenizer)) == _tokens(TEXTS)
    unnamed = pandas.DataFrame(list(zip(TEXTS, LABELS, strict=True)))
    assert token_lists(calibration_batches(unnamed, model, tokenizer)) == _tokens(TEXTS)
    assert token_lists(calibration_batches(unnamed, model, tokenizer, text_columns=[0])) == _tokens(TEXTS)
    ids = pandas.Series([tokenizer(text)["input_ids"] for text in TEXTS], index=range(100, 124))
    assert token_lists(calibration_batches({"input_ids": ids}, model, tokenizer)) == _tokens(TEXTS)


def test_a_sized_iterable_is_drawn_from_as_a_whole(model, tokenizer):
    """Of what has a length, not the first samples are taken."""
    texts = [" ".join(["cat"] * (number + 1)) for number in range(40)]
    (expected,) = calibration_batches(texts, model, tokenizer, num_samples=5)
    for data in (deque(texts), dict.fromkeys(texts).keys(), {"text": texts}):
        (batch,) = calibration_batches(data, model, tokenizer, num_samples=5)
        assert torch.equal(batch["input_ids"], expected["input_ids"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (set(TEXTS), "which a set is not: pass a list"),
        (frozenset(TEXTS), "which a set is not: pass a list"),
        (b"the cat", "got a single string"),
        (np.array("the cat"), "got ndarray"),
        ({"train": Dataset.from_dict({"text": TEXTS})}, "a dict of splits"),
        ({"text": TEXTS, "label": [1]}, "lists of one length"),
        ({"text": "the cat"}, "a dict of splits: pass one split, or a list"),
        ([b"the cat", b"a dog"], "must be a string, a pair of strings or a dict"),
        ([None, None], "must be a string, a pair of strings or a dict"),
        ([math.nan], "must be a string, a pair of strings or a dict"),
        ([("a cat", 1), ("a cat",)], "all alike"),
        ([("a cat", 1), {"text": "a cat"}], "all alike"),
    ],
)
def test_what_has_no_order_or_no_texts_is_refused(model, tokenizer, data, message):
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, model, tokenizer)


@pytest.mark.parametrize("odd", [("a cat",), "a cat", {"text": "a cat"}, ("a cat", 1, 2)])
def test_the_one_odd_sample_is_named(odd):
    samples = dict(enumerate((text, 1) for text in TEXTS))
    with pytest.raises(ValueError, match=rf"all alike, got {re.escape(repr(odd))} in row 30: drop or mend"):
        read_texts({30: odd, **samples})


def test_the_users_data_stay_as_they_are(model, tokenizer):
    data = [{"text": text, "label": 1} for text in TEXTS]
    calibration_batches(data, model, tokenizer)
    assert data == [{"text": text, "label": 1} for text in TEXTS]
    formatted = Dataset.from_dict({"text": TEXTS}).with_format("pandas")
    calibration_batches(formatted, model, tokenizer)
    assert formatted.format["type"] == "pandas"
    assert isinstance(formatted, datasets.Dataset)
