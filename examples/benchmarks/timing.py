"""Images per second of a pruned model against the dense one, side by side, for several sizes of batches."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from optimum_optin.evaluation.latency import latency_entry


def images_per_second(
    dense: nn.Module, pruned: nn.Module, *, tokens: int, batches: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """What `latency_entry` measures, medians of runs in turn, with `images_per_second` of both models beside it.

    Args:
        dense: the dense model.
        pruned: the pruned one, loaded from disk.
        tokens: of an image, as the report has them.
        batches: images in a pass, one after the other.
        repeats: timed passes of each model.
    """
    for batch_size in batches:
        entry = latency_entry(dense, pruned, batch_size=batch_size, tokens=tokens, repeats=repeats).to_dict()
        per_second = {name: 1e3 * batch_size / entry[f"{name}_ms"] for name in ("dense", "pruned")}
        yield entry | {"images_per_second": per_second}
