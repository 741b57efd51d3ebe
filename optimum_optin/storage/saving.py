"""Saving: `save_pretrained` of a pruned model writes its digest, too, and a listing of its tensors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..files.json_files import read_object
from ..files.model_files import LISTING_FILE, are_weights
from ..files.tensor_headers import Header, forms_in, read_header, replace_note
from .digest import PENDING, STRUCTURE, TENSORS, structure_digest, tensors_digest
from .entry import METHOD, OptinStructureConfig, noted_in
from .listing import write_listing
from .plugin import OptinHfQuantizer


class DigestNotes(OptinHfQuantizer):
    """Stands where transformers asks a quantizer what to note beside the tensors of each file that it writes.

    Args:
        entry: the model's entry.
        state_dict: what to save; `None` for all that the model has.
    """

    def __init__(self, entry: OptinStructureConfig, state_dict: Mapping[str, Any] | None):
        super().__init__(entry)
        self._state_dict = state_dict
        self.notes = {STRUCTURE: structure_digest(entry), TENSORS: PENDING}

    def get_state_dict_and_metadata(self, model: PreTrainedModel, *_: Any) -> tuple[Any, dict[str, str]]:
        """What to save, and what to note beside it."""
        return self._state_dict, dict(self.notes)


def save_with_digest(save: Callable[..., None], model: PreTrainedModel, *args, **kwargs) -> None:
    """Save a model as transformers does and, if it is pruned, write its digest and a listing of its tensors.

    Args:
        save: the `save_pretrained` of transformers, bound to the model.
        model: the model.
        *args: arguments for `save`.
        **kwargs: more of them.
    """
    given = inspect.signature(save).bind(*args, **kwargs).arguments
    main = given.get("is_main_process", True)
    main = getattr(model, "should_save_on_this_rank", lambda main: main)(main)
    entry = _tied_entry(model)
    adapter = getattr(model, "_hf_peft_config_loaded", False)  # it alone is saved
    if main and not adapter:
        Path(given["save_directory"], LISTING_FILE).unlink(missing_ok=True)
    if entry is None or adapter or getattr(model, "hf_quantizer", None) is not None:
        save(*args, **kwargs)
        return
    try:
        model.hf_quantizer = notes = DigestNotes(entry, given.get("state_dict"))
        save(*args, **kwargs)
    finally:
        vars(model).pop("hf_quantizer", None)
    if main:
        _write_digest(Path(given["save_directory"]), notes.notes[STRUCTURE])


def _tied_entry(model: PreTrainedModel) -> OptinStructureConfig | None:
    """The entry of a pruned model; `None` for others, and in an earlier format, which has no digest."""
    noted = noted_in(model)
    data = noted if isinstance(noted, Mapping) else noted.to_dict() if noted else {}
    if data.get("quant_method") != METHOD or data.get("format_version") == 1:
        return None
    return OptinStructureConfig(**data)


def _write_digest(folder: Path, structure: str) -> None:
    """Write the digest of the files that were just saved: into them, and into the config beside them."""
    headers: dict[Path, Header] = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = read_header(file)
        if header.notes.get(TENSORS) == PENDING:
            headers[file] = header
    if not headers:  # weights of another format
        return
    tensors = tensors_digest(forms_in(headers))
    write_listing(headers, folder)
    for file in headers:
        replace_note(file, PENDING, tensors)
    config = folder / "config.json"
    data = read_object(config)
    digest = {"structure": structure}
    if all(are_weights(file.name) for file in headers):  # a variant has its own
        digest["tensors"] = tensors
    data["quantization_config"]["digest"] = digest
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
