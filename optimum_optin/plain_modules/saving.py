"""Saving pruned modules: weights and structure, and a look at whether they load as they are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from ..digests.listing import write_listing
from ..digests.writing import notes_for, write_digest
from ..files.tensor_headers import read_headers
from ..models.identity import device_of
from ..storage.entry import noted_in
from .loading import filled_copy, load_pruned
from .structure_file import WEIGHTS_FILE, pruned_entry, write_structure
from .weights import write_weights


def save_module(module: nn.Module, folder: Path, dense: nn.Module) -> None:
    """Write a pruned module into a folder with its digest and a listing of its tensors, and make sure that what is
    loaded will be the same module.

    Args:
        module: the pruned module.
        folder: an empty folder.
        dense: the module that it was made from, which stands for what will make it when it is loaded.

    Raises:
        ValueError: the module cannot be saved, or would not load as it is; names the first weight that differs.
    """
    entry, file = pruned_entry(module).to_dict(), folder / WEIGHTS_FILE
    write_weights(module, file, notes_for(entry))
    write_structure(module, folder, write_digest(entry, folder))
    write_listing(read_headers([file]), folder, hashed=True)
    found = _loaded(module, folder, dense).state_dict()
    for name, tensor in module.state_dict().items():
        if name not in found or not torch.equal(found[name], tensor.detach().cpu()):
            raise ValueError(
                f"what is saved is not the module: {name} is another when loaded. It stays in memory "
                "(pruner.pruned_model); check what was done to that weight."
            )


def reloaded_module(module: nn.Module, dense: nn.Module) -> nn.Module:
    """The module as a user gets it: saved and loaded again, on the same device, in evaluation mode."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_module(module, folder, dense)
        return _loaded(module, folder, dense).to(device_of(module)).eval()


def _loaded(module: nn.Module, folder: Path, dense: nn.Module) -> nn.Module:
    # What was pruned before is no factory: what makes the first dense module is not here.
    pruned_before = noted_in(dense) is not None
    return filled_copy(module, folder / WEIGHTS_FILE) if pruned_before else load_pruned(dense, folder)
