"""Loading pruned modules: the dense one is made by its own code, cut as the structure file says, and filled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn
from transformers.utils import logging

from ..digests.digest import check_digest
from ..hub_id import is_hub_id
from ..models.identity import dtype_of
from ..running.prepared import copy_of
from ..storage.entry import STRUCTURE_FILE, OptinStructureConfig, noted_in
from ..storage.rebuild import rebuild
from .structure_file import WEIGHTS_FILE, PrunedModule, read_structure
from .weights import read_weights, shared_names, without_values

logger = logging.get_logger(__name__)


def load_pruned(
    factory: Callable[[], nn.Module] | nn.Module,
    folder: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    subfolder: str = "",
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """Load a pruned module that `OptinPruner.save_pretrained` or `push_to_hub` saved.

    Args:
        factory: what makes the dense module: a class or a function without arguments, such as
            `lambda: ResNet(depth=20)`; or a dense module, which stays as it is. Its weights do not matter. It may be
            called under `torch.device("meta")`, where tensors hold nothing, and again without.
        folder: a folder, or a repository on the Hub.
        revision: the repository's branch, tag or commit.
        token: token for a private repository.
        cache_dir: where to keep what is downloaded.
        subfolder: folder inside the folder or the repository.
        local_files_only: take what is in the cache, and ask no one.
        force_download: download it again.

    Returns:
        The module on the CPU, in evaluation mode, in the types that its weights were saved in.

    Raises:
        FileNotFoundError: there is no pruned module.
        TypeError: `factory` is no function and no module.
        ValueError: a file is damaged, or the module that `factory` makes is not the one that was pruned.

    Example:
        >>> import tempfile, torch
        >>> from torch import nn
        >>> from optimum_optin import OptinConfig, OptinPruner, load_pruned
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 5)
        ...         layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        ...         self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        ...     def forward(self, ids):
        ...         return self.head(self.encoder(self.embed(ids)).mean(1))
        >>> samples = torch.randint(0, 50, (32, 9))
        >>> pruner = OptinPruner.from_model(Classifier().eval(), samples[:1])
        >>> pruned = pruner.prune(samples, OptinConfig(flops=0.5, probes=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pruner.save_pretrained(folder)
        ...     loaded = load_pruned(Classifier, folder)
        >>> torch.allclose(loaded(samples), pruned(samples), atol=1e-6)
        True
    """
    options = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    pruned = read_structure(_file(folder, STRUCTURE_FILE, subfolder, options))
    weights = _file(folder, WEIGHTS_FILE, subfolder, options)
    check_digest(OptinStructureConfig(**pruned.entry).to_dict(), [weights], STRUCTURE_FILE)
    if isinstance(factory, nn.Module):
        return _filled(_rebuilt(_copied(factory, pruned), pruned), weights, f"the {type(factory).__name__}")
    return _filled(_made(factory, pruned), weights, _name(factory))


def filled_copy(module: nn.Module, file: Path) -> nn.Module:
    """A copy of a pruned module, with the weights of a file in the place of its own.

    Args:
        module: the module, which stays as it is.
        file: its weights as they were saved.

    Raises:
        ValueError: see `read_weights`.
    """
    return _filled((copy_of(module), shared_names(module)), file, f"the {type(module).__name__}")


_Made = tuple[nn.Module, dict[str, str]]
"""A module as it was pruned, without its weights, and which names in it are of one tensor."""


def _copied(factory: nn.Module, pruned: PrunedModule) -> nn.Module:
    _check_kind(factory, pruned, f"the {type(factory).__name__} that was given")
    if noted_in(factory) is not None:
        raise ValueError(
            f"the {type(factory).__name__} that was given is pruned already: give a dense one, or what makes it."
        )
    return copy_of(factory)


def _made(factory: Callable[[], nn.Module], pruned: PrunedModule) -> _Made:
    """What a factory makes, cut: on the meta device if everything in it is filled later, else in memory."""
    if not callable(factory):
        raise TypeError(f"factory must make a module when it is called, or be one, got {factory!r:.80}.")
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                module = factory()
            unfilled = without_values(module) if isinstance(module, nn.Module) else "nothing"
        except Exception as error:  # a factory may compute with what tensors hold, or load weights
            module, unfilled = None, f"{type(error).__name__}: {error}"
        if unfilled is not None:
            logger.debug(f"{_name(factory)} makes its module in memory, as on the meta device it cannot: {unfilled}")
            module = factory()
    _check_kind(module, pruned, f"what {_name(factory)} makes")
    if noted_in(module) is not None:
        raise ValueError(f"{_name(factory)} makes a module that is pruned already: give what makes the dense one.")
    return _rebuilt(module, pruned)


def _rebuilt(module: nn.Module, pruned: PrunedModule) -> _Made:
    same = shared_names(module)
    rebuild(module, pruned.entry)
    return module, same


def _filled(made: _Made, weights: Path, name: str) -> nn.Module:
    module, same = made
    read_weights(module, weights, same, name)
    for each in module.modules():
        if hasattr(each, "hold"):  # an `EmptyLinear`, whose weights have no elements and are not on disk
            kept = {part: getattr(each, part) for part in each.empty}
            each.hold({part: torch.empty(value.shape, dtype=dtype_of(module)) for part, value in kept.items()})
    return module.eval()


def _check_kind(module: Any, pruned: PrunedModule, what: str) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{what} must be a torch.nn.Module, got {type(module).__name__}.")
    if type(module).__name__ != pruned.kind:
        raise ValueError(
            f"{what} is a {type(module).__name__}, and the folder holds a pruned {pruned.kind}: give what makes the "
            f"dense {pruned.kind}."
        )


def _name(factory: Any) -> str:
    return getattr(factory, "__name__", None) or type(factory).__name__


def _file(folder: str | os.PathLike, name: str, subfolder: str, options: dict[str, Any]) -> Path:
    """The path of a file in a folder, or of the copy of one on the Hub."""
    place = Path(folder, subfolder)
    if not Path(folder).is_dir() and isinstance(folder, str) and is_hub_id(folder):
        try:
            return Path(hf_hub_download(folder, name, subfolder=subfolder or None, **options))
        except LocalEntryNotFoundError:  # the Hub was not reached, which says nothing of the file
            raise
        except EntryNotFoundError as error:
            raise FileNotFoundError(_lacking(folder, name, of_transformers=False)) from error
    file = place / name
    if not file.is_file():
        raise FileNotFoundError(_lacking(place, name, of_transformers=(place / "config.json").is_file()))
    return file


def _lacking(place: str | os.PathLike, name: str, *, of_transformers: bool) -> str:
    if of_transformers:
        return (
            f"{place} holds a model of transformers, and no {name}: `import optimum_optin`, and load it with "
            "AutoModel...from_pretrained."
        )
    return f"{place} holds no {name}, and so no pruned module as OptinPruner.save_pretrained writes it."
