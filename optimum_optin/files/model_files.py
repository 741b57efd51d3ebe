"""Which files of a folder or repository are a model: its weights in any format, and the code that we add."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

_INDEX = r"(\.index(\.[\w-]+)?\.json)?"
# A variant, as in model.fp16.safetensors, may stand before or after the number of a shard.
_PART = r"(\.[\w-]+?)*(-\d+-of-\d+)?(\.[\w-]+?)*"
_WEIGHTS = (
    rf"(model|adapter_model){_PART}\.safetensors{_INDEX}",
    rf"(pytorch_model|adapter_model){_PART}\.bin{_INDEX}",
    rf"tf_model{_PART}\.h5{_INDEX}",
    rf"flax_model{_PART}\.msgpack{_INDEX}",
)
# Not config.json, which every model has and writes again.
_MODEL_FILES = re.compile("|".join([*_WEIGHTS, r"adapter_config\.json", r"modeling_optin\.py"]))
# Read by tokenizers of transformers beside what `save_pretrained` writes, which has it all.
OLD_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json")
_OUR_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def is_model_file(name: str) -> bool:
    """Whether a file at the top of a folder is what a model consists of.

    Beside other weights such a file is stale: it would be loaded instead of them, or along with them, or be pushed.
    """
    return _MODEL_FILES.fullmatch(name) is not None


def are_weights(name: str) -> bool:
    """Whether a file is weights as `save_pretrained` writes them."""
    return _OUR_WEIGHTS.fullmatch(name) is not None


def stale_files(there: Iterable[str], written: Iterable[str]) -> list[str]:
    """What is there of a model that the written files replace, under names that they do not use.

    Args:
        there: names at the top of a folder.
        written: names of what is saved to it; without weights among them, no weights are stale, and without a
            tokenizer, nothing of one.
    """
    written = set(written)
    others = set(there) - written
    stale = [name for name in others if is_model_file(name)] if any(map(are_weights, written)) else []
    if "tokenizer_config.json" in written:
        stale += others & set(OLD_TOKENIZER_FILES)
    return sorted(stale)


def left_over(folder: Path) -> list[str]:
    """Model files at the top of a saved folder that are not part of the model which loads from it.

    Raises:
        ValueError: the list of its shards is damaged.
    """
    there = {file.name for file in folder.iterdir()}
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" in there:  # which transformers prefers
        own = {"model.safetensors"}
    elif index.name in there:
        try:
            own = {index.name, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is damaged: {error!r}.") from error
    else:
        own = set()
    return stale_files(there, own | {"modeling_optin.py"})
