"""Prune a classifier of sentences or of pairs of them; accuracy before and after.

    python examples/prune_text_classification.py
    python examples/prune_text_classification.py my-model --data my-rows.csv --flops 0.5

Rows have one or two text columns, and `label`: the number of a class, or its name in the model's config.
"""

from before_and_after import batches, class_index, prune_and_measure, read_arguments

from optimum_optin.reading.columns import text_columns


def accuracy(model, tokenizer, rows):
    """Share of rows whose class is right."""
    strings = [name for name, feature in rows.features.items() if getattr(feature, "dtype", None) == "string"]
    values = {name: rows[name][:] for name in strings if name != "label"}
    columns = text_columns(rows.column_names, list(values), values)
    names = getattr(rows.features["label"], "names", None)
    right = 0
    for batch in batches(rows):
        inputs = tokenizer(*(batch[name] for name in columns), padding=True, truncation=True, return_tensors="pt")
        predicted = model(**inputs.to(model.device)).logits.argmax(-1).tolist()
        labels = [class_index(label, names, model) for label in batch["label"]]
        right += sum(map(int.__eq__, predicted, labels))
    return right / len(rows)


if __name__ == "__main__":
    arguments = read_arguments(__doc__, model="textattack/bert-base-uncased-SST-2", data="nyu-mll/glue:sst2")
    prune_and_measure(arguments, "text-classification", lambda rows, _: rows.remove_columns("label"), accuracy)
