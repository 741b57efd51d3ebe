"""Tiny random models, one per registered architecture: three layers, width 32, perturbed weights."""

import torch
import transformers as tr

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
DISTILBERT_SHAPE = {
    "vocab_size": 99,
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
MODERNBERT_SHAPE = {
    **SHAPE,
    "pad_token_id": 98,  # at the end, as in the real ones: positions do not count from it
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "local_attention": 8,  # shorter than the test sequences, so that local and global layers differ
    "global_attn_every_n_layers": 2,
}

# model type -> (sequence classifier, base model, configuration)
TINY = {
    "bert": (tr.BertForSequenceClassification, tr.BertModel, tr.BertConfig(**SHAPE)),
    "camembert": (tr.CamembertForSequenceClassification, tr.CamembertModel, tr.CamembertConfig(**SHAPE)),
    "distilbert": (tr.DistilBertForSequenceClassification, tr.DistilBertModel, tr.DistilBertConfig(**DISTILBERT_SHAPE)),
    "electra": (tr.ElectraForSequenceClassification, tr.ElectraModel, tr.ElectraConfig(embedding_size=16, **SHAPE)),
    "modernbert": (tr.ModernBertForSequenceClassification, tr.ModernBertModel, tr.ModernBertConfig(**MODERNBERT_SHAPE)),
    "mpnet": (tr.MPNetForSequenceClassification, tr.MPNetModel, tr.MPNetConfig(**SHAPE)),
    "roberta": (tr.RobertaForSequenceClassification, tr.RobertaModel, tr.RobertaConfig(**SHAPE)),
    "xlm-roberta": (tr.XLMRobertaForSequenceClassification, tr.XLMRobertaModel, tr.XLMRobertaConfig(**SHAPE)),
}


def tiny_model(model_type="bert", base=False, model_class=None, seed=0, **changes):
    """A tiny model in evaluation mode; weights are perturbed, since at initialisation wrong code can look right."""
    classifier, base_class, config = TINY[model_type]
    settings = config.to_dict()
    if "num_labels" in changes:  # the names would win
        settings = {name: value for name, value in settings.items() if name not in ("id2label", "label2id")}
    config = type(config).from_dict({**settings, **changes})
    torch.manual_seed(seed)
    model = (model_class or (base_class if base else classifier))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_batch(model, seed=0, samples=3, tokens=14):
    """A padded batch of token ids for a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 95, (samples, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for sample in range(1, samples):
        mask[sample, tokens - 2 * sample :] = 0
    ids[mask == 0] = model.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def tiny_samples(count=24, seed=0):
    """Tokenised samples of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 14, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(5, 95, (length,), generator=generator).tolist()} for length in lengths]


def random_masks(groups, seed=0, share=0.5):
    """A random mask per group that keeps at least one unit and drops at least one."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in groups:
        order = torch.rand(group.units, generator=generator).argsort()
        mask = torch.zeros(group.units, dtype=torch.bool)
        mask[order[: min(max(round(share * group.units), 1), group.units - 1)]] = True
        masks[group.key] = mask
    return masks
