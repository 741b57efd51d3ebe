"""Folders of pruned models, as other versions or other hands leave them."""

import json

from safetensors import safe_open
from safetensors.torch import load_file, save_file

ENTRIES = {"config.json": "quantization_config", "optin_structure.json": "pruned"}


def entry_of(folder):
    """The entry in a folder's JSON, and a function that writes the JSON with it."""
    name = next(name for name in reversed(ENTRIES) if (folder / name).exists())
    data = json.loads((folder / name).read_text())
    return data[ENTRIES[name]], lambda: (folder / name).write_text(json.dumps(data))


def change_tensors(folder, edit, notes=True):
    """Edit the tensors of a folder; `notes`: keep what is noted beside them."""
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        kept = opened.metadata() if notes else {"format": "pt"}
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata=kept)


def without_digest(folder):
    """The folder as an earlier version saved it."""
    entry, write = entry_of(folder)
    entry.pop("digest", None)
    write()
    change_tensors(folder, lambda tensors: None, notes=False)
    (folder / "optin_tensors.json").unlink(missing_ok=True)
    return folder
