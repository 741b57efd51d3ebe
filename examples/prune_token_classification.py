"""Prune a tagger of words (named entities, parts of speech); accuracy over words before and after.

    python examples/prune_token_classification.py
    python examples/prune_token_classification.py my-model --data my-rows.jsonl --flops 0.7

Rows have `tokens`, a list of words, and `ner_tags`, one for each: the number of a class, or its name in the model's
config.
"""

from before_and_after import batches, class_index, prune_and_measure, read_arguments


def tokenised(rows, tokenizer):
    """What to calibrate on."""
    return [tokenizer(words, is_split_into_words=True, truncation=True) for words in rows["tokens"]]


def accuracy(model, tokenizer, rows):
    """Share of words whose tag is right; a word's first token speaks for it."""
    names = getattr(rows.features["ner_tags"].feature, "names", None)
    right = words = 0
    for batch in batches(rows):
        encoded = tokenizer(
            batch["tokens"], is_split_into_words=True, truncation=True, padding=True, return_tensors="pt"
        )
        predicted = model(**encoded.to(model.device)).logits.argmax(-1).tolist()
        for row, tags in enumerate(batch["ner_tags"]):
            places = encoded.word_ids(row)
            for word in range(len(tags)):
                if word in places:  # it was not cut off
                    right += predicted[row][places.index(word)] == class_index(tags[word], names, model)
                    words += 1
    return right / words


if __name__ == "__main__":
    arguments = read_arguments(__doc__, model="dslim/bert-base-NER", data="lhoestq/conll2003")
    prune_and_measure(arguments, "token-classification", tokenised, accuracy)
