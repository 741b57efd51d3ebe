"""Prune a classifier of images; accuracy before and after.

    python examples/prune_image_classification.py
    python examples/prune_image_classification.py my-model --data my-photos --flops 0.7

Rows have an image, `image` or `img`, and `label`: the number of a class, or its name in the model's config. Or data are
a folder with folders train and validation, each with a folder of images for every class, named as in the config.
"""

from before_and_after import batches, class_index, prune_and_measure, read_arguments


def accuracy(model, processor, rows):
    """Share of images whose class is right."""
    column = "image" if "image" in rows.column_names else "img"
    names = getattr(rows.features["label"], "names", None)
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"
    right = 0
    for batch in batches(rows):
        images = [image.convert(mode) for image in batch[column]]
        inputs = processor(images=images, return_tensors="pt").to(model.device, model.dtype)
        predicted = model(**inputs).logits.argmax(-1).tolist()
        labels = [class_index(label, names, model) for label in batch["label"]]
        right += sum(map(int.__eq__, predicted, labels))
    return right / len(rows)


if __name__ == "__main__":
    arguments = read_arguments(__doc__, model="nateraw/food", data="ethz/food101")
    prune_and_measure(arguments, "image-classification", lambda rows, _: rows.remove_columns("label"), accuracy)
