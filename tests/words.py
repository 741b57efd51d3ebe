"""A tokenizer made on the spot, so that tests with text need no files."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    "the a cat dog bird sat ran flew on under over mat tree house and then slept red blue big small fast slow".split()
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    f"the {color} {animal} {verb} {place} the {thing}"
    for color, animal, verb, place, thing in zip(
        ["red", "blue", "big", "small"] * 6,
        ["cat", "dog", "bird"] * 8,
        ["sat", "ran", "flew", "slept"] * 6,
        ["on", "under", "over"] * 8,
        ["mat", "tree", "house", "cat"] * 6,
        strict=True,
    )
]


def word_tokenizer():
    """A tokenizer of whole words for the tiny models, with at most 64 tokens."""
    ids = {token: index for index, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def token_lists(batches):
    """The real tokens of every sample of some batches, sorted."""
    rows = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            rows.append(tuple(ids[mask.bool()].tolist()))
    return sorted(rows)
