"""Questions with choices: from rows in the forms that data sets have, with the place of the right choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from ..reading.samples import is_missing
from .drawn_rows import drawn_rows

# Names of columns in data sets of this kind (MMLU, ARC, HellaSwag and their kin).
_QUESTIONS = ("question", "ctx", "context", "query", "sentence", "prompt")
_CHOICES = ("choices", "endings", "options")
_ANSWERS = ("answer", "answerKey", "label", "gold", "target")


@dataclass(frozen=True)
class Question:
    """A question with its choices.

    Args:
        text: the question, as a model is to read it.
        choices: what may follow it.
        right: the place of the right one.
    """

    text: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Questions:
    """Questions of one source.

    Args:
        questions: the questions.
        source: name of the data set, or of the file or folder.
        split: the split; `"all"` for data without splits.
    """

    questions: Sequence[Question]
    source: str
    split: str

    def __len__(self) -> int:
        return len(self.questions)

    def described(self, task: str) -> dict[str, Any]:
        """The fields of an `Evaluation` that these samples tell."""
        return {"task": task, "dataset": self.source, "split": self.split, "samples": len(self)}


def read_questions(task: str, **given: Any) -> Questions:
    """The questions of a data set or its name (`data`), of rows in memory, or of a file or folder (`data_dir`).

    Args:
        task: the task's name, for messages.
        **given: `data`, `data_dir`, `split` and `max_samples`, as for `evaluate_model`.

    Raises:
        ValueError: see `drawn_rows` and `question_of`.
        FileNotFoundError, ConnectionError: there is no such file, or the Hub does not answer.
    """
    source, split, rows = drawn_rows(task, "questions with choices", **given)
    return Questions([question_of(row, f"row {place} of {source}") for place, row in rows.items()], source, split)


def question_of(row: Any, name: str) -> Question:
    """A row as a question.

    Args:
        row: a dict with a question (`question`, `ctx`, ...), choices (`choices`, `endings` or `options`: a list of
            strings, or a dict that has it as `text`) and the right one (`answer`, `answerKey`, `label`, ...): its
            place, which counts from 0, its letter, its label among `choices["label"]`, or the choice itself.
        name: what messages call the row.

    Raises:
        ValueError: it has no such columns, fewer than two choices, an empty text, or an answer that is none of the
            choices, or of which it cannot be told which.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{name} must be a dict with a question, choices and an answer, got {row!r:.80}.")
    text, given, answer = (_column(row, names, name) for names in (_QUESTIONS, _CHOICES, _ANSWERS))
    labels = None
    if isinstance(given, Mapping):
        given, labels = given.get("text"), given.get("label")
    choices = list(given) if hasattr(given, "__len__") and not isinstance(given, str) else [given]
    if len(choices) < 2:
        raise ValueError(f"{name} needs a list of two choices at least, got {given!r:.80}.")
    for what, part in (("question", text), *((f"choice {place}", choice) for place, choice in enumerate(choices))):
        if not isinstance(part, str) or (what != "question" and not part.strip()):
            raise ValueError(
                f"{name} has {part!r:.40} for its {what}: it must be text, and a choice must not be empty."
            )
    return Question(text, tuple(choices), _place(answer, choices, labels, name))


def _column(row: Mapping, names: Sequence[str], name: str) -> Any:
    found = next((each for each in names if not is_missing(row.get(each))), None)
    if found is None:
        raise ValueError(f"{name} has no {' or '.join(names)}; it has {', '.join(map(str, row))}.")
    return row[found]


def _place(answer: Any, choices: Sequence[str], labels: Any, name: str) -> int:
    """The place of the right choice."""
    if isinstance(answer, bool) or not (isinstance(answer, str) or hasattr(answer, "__index__")):
        raise ValueError(f"{name} has the answer {answer!r:.40}: it must be a choice's place, letter or text.")
    count = len(choices)
    if labels is not None:
        found = {list(map(str, labels)).index(str(answer))} if str(answer) in map(str, labels) else set()
    elif isinstance(answer, str):
        found = {place for place, choice in enumerate(choices) if choice.strip() == answer.strip()}
        letter = ascii_uppercase.find(answer.strip().upper()) if len(answer.strip()) == 1 else -1
        found |= {letter} if 0 <= letter < count else set()
        found |= {int(answer)} if answer.strip().isdecimal() and int(answer) < count else set()
    else:
        found = {int(answer)} if 0 <= int(answer) < count else set()
    if len(found) > 1:
        raise ValueError(
            f"{name} has the answer {answer!r}, which may be choice {' or '.join(map(str, sorted(found)))}: give its "
            "place, counted from 0, as a number."
        )
    if not found:
        raise ValueError(
            f"{name} has the answer {answer!r:.40}, which is none of its {count} choices: give its place (0 to "
            f"{count - 1}), its letter, or its text."
        )
    return found.pop()
