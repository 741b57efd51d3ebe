"""Which files of a folder or repository make up a model: its weights in any format, and the code that we add."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .json_files import read_object

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
_MODEL_FILES = re.compile(
    "|".join([*_WEIGHTS, r"adapter_config\.json", r"modeling_optin\.py", r"optin_(structure|tensors)\.json"])
)
_OF_MODULES = "optin_structure.json"  # which models of transformers do without
LISTING_FILE = "optin_tensors.json"  # what tensors the weights hold
# Tokenizers of transformers read these beside the files of `save_pretrained`, which hold all of it.
OLD_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json")
MASKS = "optin_masks.png"  # what the card of a segmenter shows
SWEEP = "optin_sweep.png"  # the picture of a sweep
PICTURES = (MASKS, SWEEP)
_MOST_OF_INDEX = 2**26  # bytes; those of a thousand experts in sixty layers are 15 MB
_INDEX_FILE = "model.safetensors.index.json"
_OUR_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def is_model_file(name: str) -> bool:
    """Whether a file at the top of a folder is part of a model.

    Beside other weights such a file is stale: it would be loaded instead of them, or along with them, or be pushed.
    """
    return _MODEL_FILES.fullmatch(name) is not None


def are_weights(name: str) -> bool:
    """Whether a file is weights as `save_pretrained` writes them."""
    return _OUR_WEIGHTS.fullmatch(name) is not None


def damaged_weights(folder: Path) -> Path | None:
    """The first file of weights in a folder whose header cannot be read; `None` if there is none."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return file
    return None


def stale_files(there: Iterable[str], written: Iterable[str]) -> list[str]:
    """Files of an earlier model that a save must remove, as it does not overwrite them.

    Args:
        there: names at the top of a folder.
        written: names that the save writes. Weights are stale only if there are weights among them, and files of a
            tokenizer only if there is a tokenizer.
    """
    written = set(written)
    others = set(there) - written
    stale = [name for name in others if is_model_file(name)] if any(map(are_weights, written)) else []
    if _OF_MODULES in written:  # with a config, it would be taken for a model of transformers
        stale += others & {"config.json"}
    if any(map(are_weights, written)):
        stale += others & {*PICTURES}
    if "tokenizer_config.json" in written:
        stale += others & set(OLD_TOKENIZER_FILES)
    return sorted(stale)


def left_over(folder: Path) -> list[str]:
    """Model files at the top of a saved folder that are not part of the model which loads from it.

    Raises:
        ValueError: the file that lists its shards is damaged.
    """
    there = {file.name for file in folder.iterdir()}
    own = {file.name for file in weights_in(folder)}
    own |= {_INDEX_FILE} & there if "model.safetensors" not in own else set()
    return stale_files(there, own | {"modeling_optin.py"} | ({_OF_MODULES, LISTING_FILE, *PICTURES} & there))


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that load from a folder: one, or those of the shards; none if it has no weights.

    Raises:
        ValueError: the file that lists the shards is damaged.
    """
    if (folder / "model.safetensors").exists():  # which transformers prefers
        return [folder / "model.safetensors"]
    index = folder / _INDEX_FILE
    if not index.exists():
        return []
    try:
        names = sorted(set(read_object(index, _MOST_OF_INDEX)["weight_map"].values()))
        if others := [name for name in names if Path(name).name != name]:
            raise TypeError(f"{others[0]!r:.80} is no file beside it")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: {error!r}.") from error
    return [folder / name for name in names]
