"""The network's trajectory: record what layers return, and replay the prefix that a mask cannot change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import stack_of
from ..inputs.tokens import TokenMasks, token_masks, token_rows
from ..merging.hooks import MergedTokens
from ..running.batch import Batch
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from .losses import BINARY, CATEGORICAL, REAL, token_features

Rows = Mapping[str, Tensor]
"""Stack name -> token positions to compare: indices into batch * tokens of its first layer, shape (K,)."""


@contextmanager
def recorded(model: nn.Module, layers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Collect what each layer returns during the forward passes inside.

    Args:
        model: the model.
        layers: name -> module path.

    Yields:
        name -> the layer's last output, as it returned it; filled as the model runs.
    """
    outputs: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, path in layers.items():
            hook = model.get_submodule(path).register_forward_hook(_recording_hook(outputs, name))
            stack.callback(hook.remove)
        yield outputs


@dataclass(frozen=True)
class Passage:
    """What went into a module and came out of it."""

    input: Tensor
    output: Tensor


@contextmanager
def observed(model: nn.Module, paths: Iterable[str], stop_after: str | None = None) -> Iterator[dict[str, Passage]]:
    """Collect inputs and outputs of modules during the forward passes inside.

    Args:
        model: the model, or a part of it that holds the modules.
        paths: module paths.
        stop_after: one of them, after which the rest of the block is skipped.

    Yields:
        path -> its last passage; filled as the model runs.
    """
    seen: dict[str, Passage] = {}
    with ExitStack() as stack:
        for path in paths:
            hook = model.get_submodule(path).register_forward_hook(_observing_hook(seen, path, stop_after))
            stack.callback(hook.remove)
        with suppress(_Stop):
            yield seen


@contextmanager
def replayed(model: nn.Module, layers: Mapping[str, str], outputs: Mapping[str, Any]) -> Iterator[None]:
    """Let layers return recorded outputs instead of running: exact, and needs no per-model code.

    Args:
        model: the model.
        layers: name -> module path; of these, the ones named in `outputs` are replayed.
        outputs: name -> what `recorded` collected on the same batch.
    """
    with ExitStack() as stack:
        for name in outputs:
            module = model.get_submodule(layers[name])
            stack.callback(_restore_forward, module, vars(module).get("forward"))
            module.forward = _replaying_forward(outputs[name])
        yield


def hidden_states(output: Any) -> Tensor:
    """The hidden states, shape (batch, tokens, channels), in whatever a layer returns; merged tokens restored."""
    if isinstance(output, MergedTokens):
        return output.restored()
    return output if isinstance(output, Tensor) else output[0]


def draw_rows(real: TokenMasks, rows: int, generator: torch.Generator) -> Rows:
    """The token positions to compare in every stack: drawn once per batch, padding excluded.

    Args:
        real: the batch's real tokens.
        rows: how many of each stack, at most; fewer where the batch has fewer tokens.
        generator: source of the draw.
    """
    drawn = {}
    for stack, mask in real.items():
        valid = token_rows(mask)
        order = torch.randperm(len(valid), generator=generator)
        drawn[stack] = valid[order[:rows].to(valid.device)]
    return drawn


@dataclass(frozen=True)
class Output:
    """The part of a model's output that L_KD compares.

    Args:
        values: shape (rows, classes or channels).
        kind: kind of the values, see `output_distance`.
        of_head: whether a task's head gave them; the pooled output of a model without one need not be what its
            user reads.
    """

    values: Tensor
    kind: str
    of_head: bool = True


def compared_output(model: nn.Module, batch: Batch, rows: Rows) -> Output | None:
    """Run the model; return what L_KD compares: logits or projected embeddings, else the pooled output, else nothing.

    Args:
        model: the model.
        batch: its inputs.
        rows: token positions (`draw_rows`), used where there are logits for every token.

    Of a class that is not transformers' own, what has no name is told by its shape (`forward.run_model`): logits of
    shape (batch, classes) count for each sample, those of shape (batch, tokens, classes) for each token.
    """
    outputs = run_model(model, batch)
    rows = next(iter(rows.values()))  # no model of several stacks has logits for every token
    if outputs.get("start_logits") is not None:
        return Output(torch.cat([outputs["start_logits"], outputs["end_logits"]]), CATEGORICAL)
    logits = logits_of(outputs)
    if logits is None:
        return _embedding(outputs)
    if logits.dim() == 1:  # one number per sample
        logits = logits[:, None]
    labels, problem = (getattr(model.config, name, None) for name in ("num_labels", "problem_type"))
    if logits.dim() == 3:
        logits = logits.flatten(0, 1)
        logits = logits[rows[rows < len(logits)]]  # BEiT's masked images have none for the class token
    elif "input_ids" in batch and logits.shape == batch["input_ids"].shape and logits.shape[1] != labels:
        return Output(logits.flatten()[rows][:, None], BINARY)  # ELECTRA's discriminator: replaced or not
    return Output(logits, _OUTPUT_KINDS.get(problem) or (CATEGORICAL if logits.shape[1] > 1 else REAL))


def _embedding(outputs: Mapping[str, Tensor]) -> Output | None:
    embeddings = [outputs[name] for name in ("image_embeds", "text_embeds") if outputs.get(name) is not None]
    if embeddings:  # of a dual model, both
        return Output(torch.cat([each.to(embeddings[0].device) for each in embeddings], dim=1), REAL)
    pooled = outputs.get("pooler_output")
    return None if pooled is None else Output(pooled, REAL, of_head=False)


@torch.no_grad()
def has_head(model: nn.Module, batch: Batch) -> bool:
    """Whether the model ends in a task's head, found by running it on a batch."""
    rows = {stack: token_rows(mask) for stack, mask in token_masks(model, batch).items()}
    with frozen(model):
        output = compared_output(model, batch, rows)
    return output is not None and output.of_head


_OUTPUT_KINDS = {"multi_label_classification": BINARY, "regression": REAL}


def layer_rows(rows: Tensor, hidden: Tensor, tokens: int) -> Tensor:
    """The rows of a layer's hidden states that stand for rows of the first layer's; not all of them in the end.

    Args:
        rows: indices into batch * tokens of the first layer.
        hidden: hidden states of the layer, whose tokens may be fewer, each in the place of several.
        tokens: how many the first layer gets of each sample.
    """
    rows = rows.to(hidden.device)
    return rows if tokens == hidden.shape[1] else (rows * hidden.shape[1] // tokens).unique()


def trajectory_features(outputs: Mapping[str, Any], rows: Rows, real: TokenMasks) -> dict[str, Tensor]:
    """Normalised features of the compared tokens after each layer: name -> shape (K, channels).

    Args:
        outputs: what the layers returned, by name.
        rows: see `draw_rows`.
        real: the batch's real tokens.

    Raises:
        ValueError: a layer's output is not finite. The message names the first such layer.
    """
    features = {}
    for name, output in outputs.items():
        hidden = hidden_states(output)
        stack = stack_of(name)
        features[name] = token_features(hidden, layer_rows(rows[stack], hidden, real[stack].shape[1]))
        if not features[name].isfinite().all():
            raise ValueError(
                f"the output of {name} is not finite on the calibration data: "
                "check the weights, and prefer float32 or bfloat16 to float16."
            )
    return features


def _recording_hook(outputs: dict[str, Any], name: str):
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        outputs[name] = output

    return hook


class _Stop(Exception):
    """Ends a forward pass early."""


def _observing_hook(seen: dict[str, Passage], path: str, stop_after: str | None):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen[path] = Passage(args[0], output)
        if path == stop_after:
            raise _Stop

    return hook


def _restore_forward(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:  # Accelerate's hooks live there
        module.forward = forward


def _replaying_forward(output: Any):
    def forward(*args, **kwargs) -> Any:
        return output

    return forward
