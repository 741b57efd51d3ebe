"""A folder in which the pages' code runs offline: tiny models and data under the names that the pages use."""

import importlib.util
import json

import numpy as np
import transformers as tr
from dense import dense_model
from tiny import tiny_model
from words import TEXTS, word_tokenizer

# the name of a model -> model type, class
MODELS = {
    "bert-base-uncased": ("bert", tr.BertForMaskedLM),
    "deepset/roberta-base-squad2": ("roberta", tr.RobertaForQuestionAnswering),
    "dslim/bert-base-NER": ("bert", tr.BertForTokenClassification),
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", tr.BertModel),
    "textattack/bert-base-uncased-SST-2": ("bert", tr.BertForSequenceClassification),
}
IMAGE_MODELS = {
    "facebook/dinov2-small": ("dinov2", tr.Dinov2Model),
    "google/vit-base-patch16-224": ("vit", tr.ViTForImageClassification),
    "openai/clip-vit-base-patch32": ("clip", tr.CLIPModel),
}
DENSE_MODELS = {
    "facebook/detr-resnet-50": ("detr", tr.DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})),
    "nvidia/segformer-b0-finetuned-ade-512-512": (
        "segformer",
        tr.SegformerImageProcessorPil(size={"height": 32, "width": 32}),
    ),
}
NEXT = TEXTS[1:] + TEXTS[:1]
# the name of a data set -> configuration, columns of the split train and, alike, of validation
DATASETS = {
    "nyu-mll/glue": ("sst2", {"sentence": TEXTS, "label": [0, 1] * 12}),
    "rajpurkar/squad": ("default", {"question": TEXTS, "context": NEXT}),
    "sentence-transformers/stsb": ("default", {"sentence1": TEXTS, "sentence2": NEXT, "score": [0.0, 1.0] * 12}),
}


def set_up(folder):
    """Fill `folder`, which is then to be the working directory."""
    for name, (model_type, model_class) in MODELS.items():
        tiny_model(model_type, model_class=model_class, num_labels=2).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    if importlib.util.find_spec("PIL"):
        for name, (model_type, model_class) in IMAGE_MODELS.items():
            tiny_model(model_type, model_class=model_class, num_labels=2).save_pretrained(folder / name)
            processor = tr.ViTImageProcessorPil(size={"height": 16, "width": 16})
            if model_type == "clip":
                processor = tr.CLIPProcessor(image_processor=processor, tokenizer=word_tokenizer())
            processor.save_pretrained(folder / name)
        for name, (model, processor) in DENSE_MODELS.items():
            dense_model(model).save_pretrained(folder / name)
            processor.save_pretrained(folder / name)
        for name in ("ethz/food101", "photos"):
            write_images(folder / name)
    for name, (configuration, columns) in DATASETS.items():
        write_rows(folder / name / "train.jsonl", columns)
        write_rows(folder / name / "validation.jsonl", columns)
        files = "".join(f"\n  - split: {split}\n    path: {split}.jsonl" for split in ("train", "validation"))
        card = f"---\nconfigs:\n- config_name: {configuration}\n  data_files:{files}\n---\n"
        (folder / name / "README.md").write_text(card, encoding="utf-8")
    sentences = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(TEXTS))
    (folder / "GLUE/SST-2").mkdir(parents=True)
    (folder / "GLUE/SST-2/dev.tsv").write_text(f"sentence\tlabel\n{sentences}", encoding="utf-8")
    write_rows(folder / "ner.jsonl", {"tokens": [text.split() for text in TEXTS]})


def write_images(folder, count=24):
    """Random images in folders by class, below train and validation."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    for split in ("train", "validation"):
        for index, image in enumerate(pixels):
            file = folder / split / f"LABEL_{index % 2}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)


def write_rows(path, columns):
    """Columns as a JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
