"""SliceGPT: a narrower residual stream of a Llama, by PCA (Ashkboos et al. 2024, arXiv 2401.15024), from the paper.

The weights of norms are folded into the linears that read them. What is left of a norm commutes with rotations, so that
the input of every block (attention or MLP) may have a basis of its own: that of its principal components on the
calibration data. The least of these directions are deleted, from the embeddings, from all weights that read or write
the stream, and from the matrices that carry the stream from one basis to the next past each block. These shortcut
matrices are new parameters, and count as such. The embeddings and the head, if they were one, no longer are.
"""

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from optimum_optin.running.batch import Batch


class Norm(nn.Module):
    """RMSNorm without a weight, whose mean is over as many channels as the dense model has.

    The paper divides by the length of what is left of the vector; the root of the number of channels, by which a mean
    differs from that, belongs to the weights.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.channels, self.eps = channels, eps

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().sum(-1, keepdim=True) / self.channels + self.eps)


class Shortcut(nn.Module):
    """The stream from the basis of one block to that of the next (Q_l^T Q_{l+1} of the paper)."""

    def __init__(self, before: Tensor, after: Tensor):
        super().__init__()
        self.weight = nn.Parameter((before.T @ after).float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight


class SlicedLayer(nn.Module):
    """A layer of a Llama whose two blocks read and write the stream in bases of their own.

    Its shortcuts and the rows of what it writes follow once the bases after it are known.
    """

    def __init__(self, layer: LlamaDecoderLayer):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            Norm(norm.weight.numel(), norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        self.self_attn, self.mlp = copy.deepcopy(layer.self_attn), copy.deepcopy(layer.mlp)
        self.attention_shortcut, self.mlp_shortcut = nn.Identity(), nn.Identity()

    def forward(self, hidden: Tensor, **options) -> Tensor:
        hidden = self.attention_shortcut(hidden) + self.attention(hidden, **options)
        return self.mlp_shortcut(hidden) + self.feed_forward(hidden)

    def attention(self, hidden: Tensor, **options) -> Tensor:
        return self.self_attn(hidden_states=self.input_layernorm(hidden), **options)[0]

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(self.post_attention_layernorm(hidden))


@torch.no_grad()
def sliced(model: LlamaForCausalLM, batches: Sequence[Batch], width: int) -> LlamaForCausalLM:
    """A copy whose residual stream has `width` channels.

    Layer by layer: a basis is that of inputs that have passed the sliced layers before.

    Args:
        model: the dense model, which stays as it is.
        batches: calibration blocks of one length without padding.
        width: how many directions are kept of every block's input.
    """
    cut = copy.deepcopy(model)
    channels = model.config.hidden_size
    norm = Norm(channels, model.config.rms_norm_eps)
    options = _options(model, batches[0]["input_ids"].shape[1])
    streams = [model.model.embed_tokens(batch["input_ids"]) for batch in batches]  # in the dense model's basis
    basis = _principal(map(norm, streams), width)
    cut.model.embed_tokens = nn.Embedding.from_pretrained((model.model.embed_tokens.weight.double() @ basis).float())
    streams = [stream @ basis.float() for stream in streams]  # (blocks, tokens, width)
    for number, dense in enumerate(model.model.layers):
        layer = cut.model.layers[number] = SlicedLayer(dense)
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            _read(linear, dense.input_layernorm.weight, basis)
        after, streams = _step(streams, basis, lambda x, layer=layer: layer.attention(x, **options), norm, width)
        layer.attention_shortcut = Shortcut(basis, after)
        _write(layer.self_attn.o_proj, after)
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            _read(linear, dense.post_attention_layernorm.weight, after)
        basis, streams = _step(streams, after, layer.feed_forward, norm, width)
        layer.mlp_shortcut = Shortcut(after, basis)
        _write(layer.mlp.down_proj, basis)
    cut.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    _read(cut.lm_head, model.model.norm.weight, basis)
    cut.model.norm = norm
    cut.config.tie_word_embeddings = False
    return cut


def width_within(model: LlamaForCausalLM, budget: float) -> int:
    """The largest width at which the blocks keep at most this share of their parameters, shortcuts included."""
    layers, channels = model.model.layers, model.config.hidden_size
    dense = sum(each.numel() for each in layers.parameters())
    linears = sum(each.weight.numel() for each in layers.modules() if isinstance(each, nn.Linear))
    widths = range(channels, 0, -1)
    fits = (w for w in widths if linears * w / channels + 2 * len(layers) * w * w <= budget * dense)
    return next(fits)


def _options(model: LlamaForCausalLM, tokens: int) -> dict:
    """What layers are given beside the stream: how positions turn, and a causal mask."""
    positions = torch.arange(tokens)[None]
    turned = model.model.rotary_emb(torch.zeros(1), position_ids=positions)
    mask = torch.full((1, 1, tokens, tokens), float("-inf")).triu(1)
    return {"position_embeddings": turned, "attention_mask": mask}


def _step(
    streams: list[Tensor], before: Tensor, block: Callable[[Tensor], Tensor], norm: Norm, width: int
) -> tuple[Tensor, list[Tensor]]:
    """The next basis, and the streams in it, after a block that still writes all channels."""
    whole = [stream @ before.float().T + block(stream) for stream in streams]  # (blocks, tokens, channels)
    after = _principal(map(norm, whole), width)
    return after, [each @ after.float() for each in whole]


def _principal(inputs: Iterable[Tensor], width: int) -> Tensor:
    """The first principal directions of inputs, about zero as in the paper; shape (channels, width)."""
    moment = sum((each.flatten(0, -2).T @ each.flatten(0, -2)).double() for each in inputs)
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :width]


def _read(linear: nn.Linear, norm: Tensor, basis: Tensor) -> None:
    """Let a linear read the stream in a basis, in place; `norm` is the weight of the norm before it."""
    weight = (linear.weight.double() * norm.double()) @ basis
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    linear.in_features = basis.shape[1]


def _write(linear: nn.Linear, basis: Tensor) -> None:
    """Let a linear write to the stream in a basis, in place."""
    linear.weight = nn.Parameter((basis.T @ linear.weight.double()).float(), requires_grad=False)
    linear.out_features = basis.shape[1]
    if linear.bias is not None:
        linear.bias = nn.Parameter((linear.bias.double() @ basis).float(), requires_grad=False)
