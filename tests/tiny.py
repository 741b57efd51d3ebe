"""Tiny random models, one per registered architecture: three layers, width 32, perturbed weights."""

import torch
import transformers as tr

from optimum_optin.inputs.modalities import IMAGES, PAIRS, modality_of

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
# Of models without a row: what most configs of texts take.
TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
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

VISION_SHAPE = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 3,
}
BEIT_SHAPE = {**VISION_SHAPE, "layer_scale_init_value": 0.5, "drop_path_rate": 0.0}
DINOV2_SHAPE = {**{name: size for name, size in VISION_SHAPE.items() if name != "intermediate_size"}, "mlp_ratio": 2}
SWIN_SHAPE = {
    "image_size": 16,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 1],  # the second layer shifts its windows
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 1.5,
    "drop_path_rate": 0.0,
    "num_labels": 3,
}
SWINV2_SHAPE = {**SWIN_SHAPE, "pretrained_window_sizes": [0, 0]}
CLIP_TEXT_SHAPE = {**SHAPE, "projection_dim": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
SIGLIP_TEXT_SHAPE = {
    **SHAPE,
    "max_position_embeddings": 16,  # to which every sample is filled up
    "projection_size": 32,
    "pad_token_id": 1,
    "bos_token_id": 3,
    "eos_token_id": 2,
}

# model type -> (class with a head, base model, configuration)
TINY = {
    "bert": (tr.BertForSequenceClassification, tr.BertModel, tr.BertConfig(**SHAPE)),
    "beit": (
        tr.BeitForImageClassification,
        tr.BeitModel,
        tr.BeitConfig(use_relative_position_bias=True, **BEIT_SHAPE),
    ),
    "camembert": (tr.CamembertForSequenceClassification, tr.CamembertModel, tr.CamembertConfig(**SHAPE)),
    "clip": (
        tr.CLIPModel,
        tr.CLIPModel,
        tr.CLIPConfig(
            text_config=CLIP_TEXT_SHAPE,
            vision_config={**VISION_SHAPE, "projection_dim": 16},
            projection_dim=16,
            num_labels=3,
        ),
    ),
    "clip_text_model": (tr.CLIPTextModelWithProjection, tr.CLIPTextModel, tr.CLIPTextConfig(**CLIP_TEXT_SHAPE)),
    "clip_vision_model": (
        tr.CLIPVisionModelWithProjection,
        tr.CLIPVisionModel,
        tr.CLIPVisionConfig(projection_dim=16, **VISION_SHAPE),
    ),
    "deit": (tr.DeiTForImageClassification, tr.DeiTModel, tr.DeiTConfig(**VISION_SHAPE)),
    "dinov2": (tr.Dinov2ForImageClassification, tr.Dinov2Model, tr.Dinov2Config(**DINOV2_SHAPE)),
    "dinov2_with_registers": (
        tr.Dinov2WithRegistersForImageClassification,
        tr.Dinov2WithRegistersModel,
        tr.Dinov2WithRegistersConfig(num_register_tokens=2, **DINOV2_SHAPE),
    ),
    "dinov3_vit": (
        tr.DINOv3ViTModel,
        tr.DINOv3ViTModel,
        tr.DINOv3ViTConfig(num_register_tokens=2, **VISION_SHAPE),
    ),
    "distilbert": (tr.DistilBertForSequenceClassification, tr.DistilBertModel, tr.DistilBertConfig(**DISTILBERT_SHAPE)),
    "electra": (tr.ElectraForSequenceClassification, tr.ElectraModel, tr.ElectraConfig(embedding_size=16, **SHAPE)),
    "modernbert": (tr.ModernBertForSequenceClassification, tr.ModernBertModel, tr.ModernBertConfig(**MODERNBERT_SHAPE)),
    "mpnet": (tr.MPNetForSequenceClassification, tr.MPNetModel, tr.MPNetConfig(**SHAPE)),
    "roberta": (tr.RobertaForSequenceClassification, tr.RobertaModel, tr.RobertaConfig(**SHAPE)),
    "siglip": (
        tr.SiglipModel,
        tr.SiglipModel,
        tr.SiglipConfig(text_config=SIGLIP_TEXT_SHAPE, vision_config=VISION_SHAPE, num_labels=3),
    ),
    "siglip_text_model": (
        tr.SiglipTextModel,
        tr.SiglipTextModel,
        tr.SiglipTextConfig(**SIGLIP_TEXT_SHAPE),
    ),
    "siglip_vision_model": (tr.SiglipVisionModel, tr.SiglipVisionModel, tr.SiglipVisionConfig(**VISION_SHAPE)),
    "swin": (tr.SwinForImageClassification, tr.SwinModel, tr.SwinConfig(**SWIN_SHAPE)),
    "swinv2": (tr.Swinv2ForImageClassification, tr.Swinv2Model, tr.Swinv2Config(**SWINV2_SHAPE)),
    "vit": (tr.ViTForImageClassification, tr.ViTModel, tr.ViTConfig(**VISION_SHAPE)),
    "xlm-roberta": (tr.XLMRobertaForSequenceClassification, tr.XLMRobertaModel, tr.XLMRobertaConfig(**SHAPE)),
}
# Other forms of these: name -> model type, class (`None` for the same), changes of the configuration
VARIANTS = {
    "beit without bias": (
        "beit",
        None,
        {"use_relative_position_bias": False, "use_absolute_position_embeddings": True},
    ),
    "beit with a shared bias": (
        "beit",
        None,
        {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
    ),
    "beit with both biases": ("beit", None, {"use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    "beit without layer scale": ("beit", None, {"layer_scale_init_value": 0.0}),
    "clip, a classifier of images": ("clip", tr.CLIPForImageClassification, {}),
    "siglip, a classifier of images": ("siglip", tr.SiglipForImageClassification, {}),
    "deit with a teacher": ("deit", tr.DeiTForImageClassificationWithTeacher, {}),
    "dinov2 with SwiGLU": ("dinov2", None, {"use_swiglu_ffn": True}),
    "swin with padded windows": ("swin", None, {"window_size": 3}),
    "swinv2 with padded windows": ("swinv2", None, {"window_size": 3}),
    "dinov3 with a gated MLP": ("dinov3_vit", None, {"use_gated_mlp": True, "key_bias": True}),
}
CASES = [*sorted(TINY), *VARIANTS]
# One of each kind of arithmetic around the units: norms before or after, gates, scales, shared and windowed biases.
KINDS = ["beit with both biases", "bert", "clip", "dinov2 with SwiGLU", "dinov3 with a gated MLP", "modernbert"]
KINDS += ["mpnet", "siglip", "swin", "swinv2 with padded windows", "vit"]


def tiny_model(model_type="bert", base=False, model_class=None, seed=0, **changes):
    """A tiny model in evaluation mode; weights are perturbed, since at initialisation wrong code can look right.

    `model_type` may name one of `VARIANTS`.
    """
    if model_type in VARIANTS:
        model_type, variant_class, settings = VARIANTS[model_type]
        model_class, changes = model_class or variant_class, {**settings, **changes}
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


def load(model, folder, **options):
    """A saved model of the same class, through the Auto class where that makes it."""
    for auto in (tr.AutoModelForSequenceClassification, tr.AutoModelForImageClassification):
        classes = auto._model_mapping.get(type(model.config), None)
        if type(model) in (classes if isinstance(classes, tuple) else (classes,)):
            return auto.from_pretrained(folder, **options)
    return type(model).from_pretrained(folder, **options)


@torch.no_grad()
def output_of(model, batch):
    """What a model is used for: logits, embeddings, or the pooled output of a model without a head."""
    outputs = model(**batch)
    if outputs.get("image_embeds") is not None and outputs.get("text_embeds") is not None:
        return torch.cat([outputs.image_embeds, outputs.text_embeds])
    names = ("logits", "image_embeds", "text_embeds", "pooler_output")
    return next(outputs[name] for name in names if outputs.get(name) is not None)


def tiny_batch(model, seed=0, samples=3, tokens=14):
    """A batch for a tiny model: padded token ids, pixels, or both."""
    generator = torch.Generator().manual_seed(seed)
    pixels = {"pixel_values": torch.randn(samples, 3, 16, 16, generator=generator)}
    if modality_of(model) is IMAGES:
        return pixels
    ids = torch.randint(5, 95, (samples, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for sample in range(1, samples):
        mask[sample, tokens - 2 * sample :] = 0
    ids[mask == 0] = model.config.get_text_config().pad_token_id
    text = {"input_ids": ids, "attention_mask": mask}
    return text | pixels if modality_of(model) is PAIRS else text


def tiny_samples(count=24, seed=0, model=None):
    """Tokenised samples of different lengths, pixel values for a model of images, or both."""
    generator = torch.Generator().manual_seed(seed)
    modality = model and modality_of(model)
    if modality is IMAGES:
        return [{"pixel_values": torch.randn(3, 16, 16, generator=generator)} for _ in range(count)]
    lengths = torch.randint(4, 14, (count,), generator=generator).tolist()
    texts = [{"input_ids": torch.randint(5, 95, (length,), generator=generator).tolist()} for length in lengths]
    if modality is not PAIRS:
        return texts
    return [{**text, "pixel_values": torch.randn(3, 16, 16, generator=generator)} for text in texts]


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


def perturbed(model, seed=0):
    """The model in evaluation mode, with weights that are not those of the start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()
