"""Prune a model that finds answers in a context; F1 of the words of the answer before and after.

    python examples/prune_question_answering.py
    python examples/prune_question_answering.py my-model --data my-rows.json --flops 0.7

Rows have `question`, `context` and `answers`, a list of texts as in SQuAD: `{"text": ["in 1998"]}`. A context longer
than the model takes is cut.
"""

from collections import Counter

from before_and_after import batches, prune_and_measure, read_arguments


def pairs(rows, tokenizer):
    """What to calibrate on."""
    return list(zip(rows["question"], rows["context"], strict=True))


def f1(model, tokenizer, rows):
    """Mean over rows of the overlap with the best of the right answers."""
    total = 0.0
    for batch in batches(rows):
        given = zip(answers(model, tokenizer, batch), batch["answers"], strict=True)
        total += sum(max((overlap(answer, right) for right in each["text"]), default=0.0) for answer, each in given)
    return total / len(rows)


def answers(model, tokenizer, batch):
    """The span from the likeliest start to the likeliest end after it, as text."""
    encoded = tokenizer(
        batch["question"],
        batch["context"],
        truncation="only_second",
        padding=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = encoded.pop("offset_mapping")
    outputs = model(**encoded.to(model.device))
    for row, context in enumerate(batch["context"]):
        inside = [index for index, part in enumerate(encoded.sequence_ids(row)) if part == 1]
        start = max(inside, key=outputs.start_logits[row].tolist().__getitem__)
        end = max((index for index in inside if index >= start), key=outputs.end_logits[row].tolist().__getitem__)
        yield context[offsets[row, start, 0] : offsets[row, end, 1]]


def overlap(answer, right):
    """F1 of two texts' words."""
    ours, theirs = answer.lower().split(), right.lower().split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


if __name__ == "__main__":
    arguments = read_arguments(
        __doc__, model="distilbert/distilbert-base-cased-distilled-squad", data="rajpurkar/squad"
    )
    prune_and_measure(arguments, "question-answering", pairs, f1)
