"""Which columns hold the text: told by their names, or else by what is in them; if both fail, an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from unicodedata import category

# Text columns of GLUE and the like, in the order in which a tokenizer wants them.
_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("#1 String", "#2 String"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
# Columns of what is read and what is to be written for it, of data for summaries and the like.
_SOURCES_AND_TARGETS = (
    ("text", "text_pair"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("article", "summary"),
    ("text", "summary"),
    ("source", "target"),
    ("source_text", "target_text"),
    ("input_text", "target_text"),
    ("input", "target"),
    ("input", "output"),
    ("text", "target"),
    ("src", "tgt"),
)
_TARGETS = frozenset(target for _, target in _SOURCES_AND_TARGETS)
# Names that say text, if only one of them is there; a title or a summary may stand beside it.
_USUAL = frozenset(
    "abstract article body caption clean_text comment comment_text content document full_text message paragraph "
    "passage post raw_text review review_body review_text statement transcript tweet tweet_text utterance".split()
)
# Names that may be the first half of a pair: text only if nothing else looks like it.
_HALVES = frozenset("anchor instruction prompt query question".split())
# Names of columns that hold no text: targets, and identifiers of rows.
_OTHERS = frozenset(
    "_id author authors brand categories category city class class_label classes company country "
    "created_at currency date datetime domain email emotion emotions file file_name file_path filename filepath "
    "gender genre gold gold_label grade guid hash helpful host id idx image image_id image_path image_url img index "
    "intent intents ip ip_address job key label label_ids label_text labels lang language link locale md5 name "
    "owner path person phone platform polarity pos product publisher quality rating ratings reviewer role row_id "
    "score scores sentiment sentiments sha sha1 sha256 source source_file split stance star stars subreddit tag "
    "tags target targets time timestamp topic topics toxicity type uid uri url urls user user_id user_name username "
    "uuid verified version writer y".split()
)
_OTHER_ENDINGS = tuple(
    "_class _code _date _file _filename _hash _id _ids _idx _label _labels _lang _language _name _path _rating "
    "_score _sentiment _time _timestamp _type _url _uuid".split()
)
# Scripts without spaces, and about how many of their signs make a word.
_UNSPACED = {
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff": "{1,5}",  # Thai, Lao, Burmese, Khmer
    r"\u3040-\u309f": "{1,3}",  # Hiragana
    r"\u30a0-\u30ff": "+",  # Katakana
    r"\u3400-\u9fff\uf900-\ufaff": "{1,2}",  # Han
}
_SIGNS = "".join(_UNSPACED)
_WORD = re.compile(
    "|".join(f"[{signs}]{count}" for signs, count in _UNSPACED.items())
    + rf"|[^\s{_SIGNS}]*[^\W\d_{_SIGNS}][^\s{_SIGNS}]*"
)
_ADDRESS = re.compile(r"\w+://\S*|\S+@\S+\.\w+|.*\w\.[A-Za-z]\w{1,3}")  # of a page, of a person, of a file


def text_columns(
    columns: Sequence[str], strings: Sequence[str], values: Mapping[str, Sequence] | None = None
) -> tuple[str, ...]:
    """The columns to feed a tokenizer: a known pair or single, else the only one that looks like text.

    Args:
        columns: all column names.
        strings: those that hold strings.
        values: what these hold; without it, only names are looked at.

    Raises:
        ValueError: no such columns, or several; lists those there are.
    """
    plain = {_plain(name): name for name in reversed(strings)}
    for known in _TEXT_COLUMNS:
        if all(_plain(name) in plain for name in known):
            return tuple(name if name in strings else plain[_plain(name)] for name in known)
    likely = [name for name in strings if not is_other(name) and (values is None or looks_like_text(values[name]))]
    sure = _USUAL if len(likely) > 1 else _USUAL | _HALVES
    usual = [name for name in strings if _plain(name) in sure]
    if len(usual) == 1 and (not likely or usual[0] in likely):
        return tuple(usual)
    if len(likely) == 1 and (not usual or likely[0] in usual) and not _is_cell(likely[0]):
        return tuple(likely)
    there = ", ".join(map(str, columns[:20])) or "none"
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    raise ValueError(
        f"cannot tell the text columns among {there}{more}: rename them to 'text' (and 'text_pair'), or name one or "
        "two with text_columns= (--text-columns), or tokenise the data first so that it has 'input_ids'."
    )


def source_and_target(
    columns: Sequence[str], strings: Sequence[str], values: Mapping[str, Sequence] | None = None
) -> tuple[str, ...]:
    """The column that a model reads and the one that it is to write, by their names; else the only one of text.

    Args:
        columns: all column names.
        strings: those that hold strings.
        values: see `text_columns`.

    Raises:
        ValueError: none or several of known names, or two columns of text that no name tells apart; lists those there
            are.
    """
    plain = {_plain(name): name for name in reversed(strings)}
    found = [tuple(plain[name] for name in known) for known in _SOURCES_AND_TARGETS if plain.keys() >= set(known)]
    if len(found) == 1:
        return found[0]
    there = ", ".join(map(str, columns[:20]))
    cure = (
        "name the column that is read and the one that is to be written, in this order, with text_columns= "
        "(--text-columns), or the first alone: the model then goes by what it writes itself."
    )
    if found:
        raise ValueError(f"several columns among {there} may be what is read or what is to be written: {cure}")
    try:
        names = text_columns(columns, strings, values)
    except ValueError:
        names = ()
    others = [name for name in strings if name not in names and (not is_other(name) or _plain(name) in _TARGETS)]
    if len(names) != 1 or others:
        raise ValueError(f"cannot tell what the model reads and what it is to write among {there}: {cure}")
    return names


def named(columns: str | int | Sequence[str | int]) -> list[str | int]:
    """The columns that the user named, as a list; a single one may come without."""
    return [columns] if isinstance(columns, (str, int)) else list(columns)


def check_unused(columns: str | int | Sequence[str | int] | None, cause: str) -> None:
    """Raise if the user named columns where there are none to choose from.

    Raises:
        ValueError: the user did. The message ends in the cause.
    """
    if columns is not None:
        raise ValueError(f"text_columns={named(columns)!r} does not apply: {cause}.")


def is_known(columns: Iterable[str]) -> bool:
    """Whether these are columns whose names leave no doubt."""
    known = (*_TEXT_COLUMNS, *_SOURCES_AND_TARGETS)
    return tuple(map(_plain, columns)) in {tuple(map(_plain, each)) for each in known}


def is_other(name: str) -> bool:
    """Whether a column of this name is a target, or identifies a row."""
    plain = _plain(name)
    return plain in _OTHERS or plain.endswith(_OTHER_ENDINGS) or plain.startswith(("id_", "is_", "column_"))


def looks_like_text(values: Iterable) -> bool:
    """Whether strings look like text: mostly of several words, and not a few short ones over and over.

    Args:
        values: the values of a column; those that are no strings are passed over.
    """
    strings = [value.strip() for value in values if isinstance(value, str) and value.strip()]
    if not strings:
        return False
    if sum(bool(_ADDRESS.fullmatch(value)) for value in strings) * 2 > len(strings):
        return False
    words = [len(_WORD.findall(value)) for value in strings]
    if sum(count > 1 for count in words) * 2 < len(words):
        return False
    signs = [category(sign)[0] for value in strings for sign in value if not sign.isspace()]
    if sum(map("LM".count, signs)) * 2 < len(signs):  # more digits and punctuation than letters and their marks
        return False
    few = len(set(strings)) * 2 <= len(strings)
    return not (few and sum(words) < 5 * len(words))


def _is_cell(name: str) -> bool:
    """Whether the name of a column is itself a text, as in the first row of a table without names."""
    return isinstance(name, str) and len(_WORD.findall(name)) > 3


def _plain(name: str) -> str:
    """A name in one spelling: `review_text` for `reviewText`, `Review Text` and `review-text`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name).strip())
    return re.sub(r"[^0-9a-z]+", "_", spaced.lower()) if re.search(r"[a-zA-Z0-9]", spaced) else spaced
