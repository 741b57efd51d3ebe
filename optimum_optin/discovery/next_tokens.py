"""Whether a model of text predicts the next token: measured, as an encoder with a head for tokens looks much alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.identity import config_of, main_input_of
from ..running.facts import measured_once
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen

_TOKENS = 8
_ROUNDING = 16  # units in the last place of the largest logit


def predicts_next_token(model: nn.Module) -> bool:
    """Whether there are logits over the vocabulary for every token, which what follows the token does not change.

    A class that cannot generate is not run: it may not run on tokens alone (CLIP).
    """
    config = config_of(model)
    if config is None or getattr(config, "is_encoder_decoder", False) or main_input_of(model) != "input_ids":
        return False
    if not (isinstance(model, PreTrainedModel) and model.can_generate()):
        return False
    return measured_once(model, "predicts the next token", lambda: _looks_back_alone(model))


@torch.no_grad()
def _looks_back_alone(model: nn.Module) -> bool:
    config = model.config.get_text_config()
    vocabulary = config.vocab_size
    tokens = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
    ids = torch.full((1, tokens), 0 if getattr(config, "pad_token_id", None) == 1 else 1, device=model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    changed = ids.clone()
    changed[:, -1] = vocabulary - 1 if int(ids[0, -1]) != vocabulary - 1 else vocabulary - 2
    with frozen(model):
        some, others = (_logits(model, {**batch, "input_ids": each}) for each in (ids, changed))
    if some is None or some.shape != (*ids.shape, vocabulary) or ids.shape[1] < 2:
        return False
    most = _ROUNDING * torch.finfo(some.dtype).eps * some.abs().max()
    differences = (some - others).abs().amax(dim=(0, 2))  # (tokens,)
    return bool(differences[:-1].max() <= most < differences[-1])


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor | None:
    return logits_of(run_model(model, batch))
