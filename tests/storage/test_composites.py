"""A pruned model inside another: what could never be loaded is not saved."""

import copy

import pytest
import torch
from tiny import output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    CLIPModel,
    EncoderDecoderModel,
    PreTrainedModel,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderModel,
)

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_from_json, structure_of


def _pruned(model_type, **options):
    model = tiny_model(model_type, **options)
    groups = find_groups(model)
    masks = random_masks(groups)
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    return model


def _decoder():
    shape = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertLMHeadModel(BertConfig(**shape, intermediate_size=16, is_decoder=True, add_cross_attention=True))


class Holder(PreTrainedModel):
    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.encoder = BertModel(config)
        self.out = nn.Linear(config.hidden_size, 2)
        self.post_init()


def _holder():
    model = Holder(tiny_model(base=True).config)
    model.encoder = _pruned("bert", base=True)
    return model


def _dual():
    model = tiny_model("clip")
    model.vision_model = _pruned("clip_vision_model", base=True)
    return model


COMPOSITES = {
    "encoder": lambda: VisionEncoderDecoderModel(encoder=_pruned("vit", base=True), decoder=_decoder()),
    "encoder, of texts": lambda: EncoderDecoderModel(encoder=_pruned("bert", base=True), decoder=_decoder()),
    "vision_model": lambda: VisionTextDualEncoderModel(
        vision_model=_pruned("vit", base=True), text_model=tiny_model("bert", base=True)
    ),
    "text_model": lambda: VisionTextDualEncoderModel(
        vision_model=tiny_model("vit", base=True), text_model=_pruned("bert", base=True)
    ),
    "encoder, of one's own": _holder,
    "vision_model, of CLIP": _dual,
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_is_refused_at_save(name, tmp_path):
    model, path = COMPOSITES[name](), name.partition(",")[0]
    with pytest.raises(ValueError, match=rf"{type(model).__name__}.{path} was pruned, .* could never be loaded. Save "):
        model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    # What the message says works.
    part = model.get_submodule(path)
    part.save_pretrained(tmp_path / "part")
    loaded = type(part).from_pretrained(tmp_path / "part")
    batch = tiny_batch(part)
    assert torch.equal(output_of(loaded.eval(), batch), output_of(part.eval(), batch))


def test_a_pruned_encoder_below_a_new_head_is_saved(tmp_path):
    encoder = _pruned("bert", base=True)
    model = BertForSequenceClassification(encoder.config).eval()
    model.bert = encoder
    model.save_pretrained(tmp_path)
    batch = tiny_batch(model)
    assert torch.equal(
        output_of(BertForSequenceClassification.from_pretrained(tmp_path), batch), output_of(model, batch)
    )


class Cutter(Holder):
    """One that cuts its encoder itself, from what its config says."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = BertModel(copy.deepcopy(config))
        OptinPruner.convert_model(self.encoder, structure_from_json(config.cut))


def test_a_class_of_ones_own_that_cuts_its_part_is_saved(tmp_path):
    encoder = _pruned("bert", base=True)
    model = Cutter(tiny_model(base=True, cut=encoder.config.quantization_config.structure).config)
    model.encoder.load_state_dict(encoder.state_dict())
    model.save_pretrained(tmp_path)
    loaded, batch = Cutter.from_pretrained(tmp_path), tiny_batch(encoder)
    assert torch.equal(output_of(loaded.encoder.eval(), batch), output_of(encoder, batch))


def test_a_dense_model_with_a_pruned_models_config_is_refused_at_save(tmp_path):
    model = AutoModel.from_config(copy.deepcopy(_pruned("bert", base=True).config))
    with pytest.raises(ValueError, match=r"the config says that encoder\.\S+ has the shape .* but the model has"):
        model.save_pretrained(tmp_path / "dense")
    del model.config.quantization_config
    model.save_pretrained(tmp_path / "dense")


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_part_of_a_pruned_dual_model_is_refused_at_save(reloaded, tmp_path):
    model = _pruned("clip")
    if reloaded:
        model.save_pretrained(tmp_path / "whole")
        model = CLIPModel.from_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="is a part of a pruned CLIPModel, whose config alone says what was cut"):
        model.vision_model.save_pretrained(tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_dense_models_are_saved_as_ever(tmp_path):
    for model in (
        VisionEncoderDecoderModel(encoder=tiny_model("vit", base=True), decoder=_decoder()),
        tiny_model("clip"),
        _pruned("clip"),
    ):
        model.save_pretrained(tmp_path / type(model).__name__)
    assert PreTrainedModel.save_pretrained.__doc__.strip().startswith("Save a model and its configuration")
    assert isinstance(CLIPModel.from_pretrained(tmp_path / "CLIPModel"), CLIPModel)


def test_composites_by_the_whole_road(tmp_path):
    model = tiny_model("vit", base=True)
    pruned = OptinPruner(model).prune(tiny_samples(model=model), OptinConfig(flops=0.5, probes=4))
    with pytest.raises(ValueError, match="VisionEncoderDecoderModel.encoder was pruned"):
        VisionEncoderDecoderModel(encoder=pruned, decoder=_decoder()).save_pretrained(tmp_path)
