"""What a card says of a plain module: how to load it, and how it was made."""

from __future__ import annotations

from collections.abc import Iterable

from ..quoting import literal


def loading_lines(kind: str, name: str, revision: str | None) -> list[str]:
    """The code that loads a pruned module.

    Args:
        kind: the class of the module.
        name: the Hub id or folder that the card tells users to load.
        revision: the branch to load from.
    """
    address = literal(name) if revision is None else f"{literal(name)}, revision={literal(revision)}"
    return [
        "from optimum_optin import load_pruned",
        f"...  # import {kind}, the module's own class",
        "",
        f"model = load_pruned(lambda: {kind}(...), {address})  # with the arguments of the dense module",
    ]


def making_lines(kind: str, settings: str) -> Iterable[str]:
    """The code that made a pruned module.

    Args:
        kind: the class of the module.
        settings: the arguments of its configuration, as they stand in code.
    """
    return [
        "from optimum_optin import OptinConfig, OptinPruner",
        "",
        f"dense = ...  # the trained {kind}",
        "example_inputs = ...  # a batch of its inputs: a tensor, a tuple, or a dict by the names of its arguments",
        "pruner = OptinPruner.from_model(dense, example_inputs)",
        "calibration = ...  # your calibration data: a DataLoader, a data set, a list of tensors, tuples or dicts",
        f"config = OptinConfig({settings})",
        'model = pruner.prune(calibration, config, save_dir="pruned")',
    ]


AFTER_LOADING = """

The module is built by its own code, cut as `optin_structure.json` says, and filled with the weights (`pip install \
optimum-optin`). It is in evaluation mode, on the CPU."""

LIMITS = """\
- It does what its dense module does, faults and biases included; the calibration data decide what was kept, so check it
  on data of your own.
- MACs are not speed: the gain in time depends on the hardware, the batch and the size of the samples.
- Its inputs must be made as those of the dense module were: their preprocessing is not saved with it."""
