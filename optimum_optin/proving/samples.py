"""One sample to prove on: of the form of a probe, with tokens and pixels that differ from each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..architectures.group import Groups
from ..inputs.modalities import modality_of
from ..media.vision import usual_image
from ..running.batch import Batch

_TOKENS = 16  # of a text, or what else may have any number


def made_up_sample(model: nn.Module, groups: Groups) -> Batch:
    """One sample of a model's modality, drawn with a fixed seed, on the model's device; or what it was traced with."""
    if groups.sample is not None:
        return dict(groups.sample)
    generator = torch.Generator().manual_seed(0)
    modality = modality_of(model)
    most = modality.most_tokens(model)  # `None` for images, whose tokens are counted by a pass
    sample = dict(usual_image(model) if most is None else modality.probe(model, min(_TOKENS, most)))
    for name in sample.keys() & {"input_ids", "decoder_input_ids"}:
        sample[name] = _words(model, sample[name], generator)
    for name, value in sample.items():
        if value.is_floating_point():
            sample[name] = torch.randn(value.shape, generator=generator).to(value)
    return sample


def _words(model: nn.Module, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Token ids of the vocabulary in random order, without those that have a meaning of their own (padding, ends)."""
    config = model.config.get_text_config()
    special = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    drawn = torch.randperm(config.vocab_size, generator=generator).tolist()
    words = [word for word in drawn if word not in special] or drawn
    chosen = [words[place % len(words)] for place in range(ids.numel())]
    return torch.tensor(chosen, dtype=ids.dtype, device=ids.device).view_as(ids)
