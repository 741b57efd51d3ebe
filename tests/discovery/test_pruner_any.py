"""The pruner on models that no row describes: pruned, reported, saved and loaded, and what is left whole is listed."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as tr
from tiny import TEXT as SHAPES
from toys import perturbed

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, find_groups
from optimum_optin.commands.run import run
from optimum_optin.passes.course import find_course
from optimum_optin.running.freezing import frozen
from optimum_optin.search.selection import limits_of

TEXT = {**SHAPES, "pad_token_id": 0}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
}
CONFIG = OptinConfig(flops=0.6, probes=8, compensation="none")


def _deberta():
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    return tr.DebertaV2ForSequenceClassification(
        tr.DebertaV2Config(conv_kernel_size=3, conv_act="gelu", share_att_key=True, **relative, **TEXT)
    )


def _gpt2():
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return tr.GPT2ForSequenceClassification(
        tr.GPT2Config(vocab_size=99, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
    )


MODELS = {
    "deberta-v2": _deberta,
    "gpt2": _gpt2,
    "llama": lambda: tr.LlamaModel(tr.LlamaConfig(num_key_value_heads=2, **TEXT)),
    "vit_msn": lambda: tr.ViTMSNForImageClassification(tr.ViTMSNConfig(**IMAGE)),
}


def samples(model):
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": torch.randn(3, 16, 16, generator=generator)} for _ in range(16)]
    lengths = torch.randint(6, 14, (16,), generator=generator).tolist()
    return [{"input_ids": torch.randint(5, 90, (length,), generator=generator).tolist()} for length in lengths]


@pytest.fixture(scope="module")
def pruners():
    """Pruners that have pruned, made once for each model type."""
    made = {}

    def of(name):
        if name not in made:
            pruner = OptinPruner(perturbed(MODELS[name]()), config=CONFIG)
            pruner.check()
            pruner.prune(samples(pruner.model))
            made[name] = pruner
        return made[name]

    return of


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_a_row_is_pruned_saved_and_loaded(name, pruners, tmp_path):
    pruner = pruners(name)
    report = pruner.report
    assert 0.4 < report.flops_achieved <= 0.6 and report.macs_pruned < report.macs_dense
    pruner.save_pretrained(tmp_path)
    loaded = type(pruner.pruned_model).from_pretrained(tmp_path).eval()
    batch = {key: torch.as_tensor(value)[None] for key, value in samples(pruner.model)[0].items()}
    with torch.no_grad():
        found, expected = loaded(**batch)[0], pruner.pruned_model(**batch)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert PruningReport.load(tmp_path) == report


@pytest.mark.parametrize("name", MODELS)
def test_every_group_is_pruned_or_left_whole_with_a_reason(name, pruners):
    pruner = pruners(name)
    groups = find_groups(pruner.model)
    pruned = {f"{layer}.{role}" for layer, roles in pruner.report.layers.items() for role in roles}
    assert pruned | pruner.report.left_whole.keys() >= {group.key for group in groups}
    assert not pruned & pruner.report.left_whole.keys()
    assert pruner.report.left_whole.keys() >= groups.left_whole.keys()
    card = pruner.create_model_card().text
    listed = bool(pruner.report.left_whole)
    assert ("What else was found is left whole" in card) == ("left whole" in str(pruner.report)) == listed


def test_linears_that_write_units_may_run_for_positions_as_well(pruners):
    pruner = pruners("deberta-v2")
    assert all(set(roles) == {"heads", "neurons"} for roles in pruner.report.layers.values())
    groups = find_groups(pruner.model)
    batch = {"input_ids": torch.arange(5, 15)[None].repeat(2, 1)}
    with frozen(pruner.model):
        course = find_course(pruner.model, groups, batch)
    heads = [stop for stop in course.stops if stop.group.role == "heads" and stop.producers]
    layers = "deberta.encoder.layer"
    assert [stop.producers for stop in heads] == [(f"{layers}.{i}.attention.self.value_proj",) for i in (0, 1)]
    pruner.prune(samples(pruner.model), replace(CONFIG, compensation="ridge"))
    assert pruner.report.divergence["agreement"] > 0.5


def test_what_is_left_whole_is_in_the_report_the_card_and_info(pruners, tmp_path, capsys):
    pruner = pruners("gpt2")
    reason = "transformer.h.0.attn.c_attn runs 2 times in a pass"
    kept, pruner.report = pruner.report, replace(pruner.report, left_whole={"layers.0.heads": reason})
    try:
        pruner.save_pretrained(tmp_path)
    finally:
        pruner.report = kept
    assert "- `layers.0.heads`: transformer.h.0.attn.c_attn runs" in (tmp_path / "README.md").read_text()
    assert run("info", [str(tmp_path)]) == 0
    assert f"left whole: layers.0.heads: {reason}" in capsys.readouterr().out
    assert run("info", [str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["left_whole"] == {"layers.0.heads": reason}


def test_scores_serve_any_budget_and_plans(pruners, tmp_path):
    pruner = pruners("gpt2")
    scores = pruner.score(samples(pruner.model))
    scores.save_pretrained(tmp_path)
    loaded = Scores.from_pretrained(tmp_path)
    loaded.check(pruner.model)
    plan = pruner.plan(loaded, flops=0.5)
    model = pruner.prune(scores=loaded, flops=0.5, config=replace(CONFIG, search="ranked", output_weight=1.0))
    assert pruner.report.layers == plan.layers
    assert sum(each.numel() for each in model.parameters()) < sum(each.numel() for each in pruner.model.parameters())


def test_scores_of_more_groups_than_are_pruned_are_fine(pruners):
    pruner = pruners("gpt2")
    scores = pruner.score(samples(pruner.model))
    groups = find_groups(pruner.model)
    fewer = replace(groups, members=tuple(group for group in groups if group.role == "neurons"))
    scores.check(pruner.model, CONFIG, fewer)
    assert set(scores.of(fewer).combine()) == {group.key for group in fewer}
    assert scores.of(groups).combine().keys() == scores.combine().keys()
    with pytest.raises(ValueError, match=r"no scores for, or does not know, layers\.0\.heads"):
        scores.of(fewer).check(pruner.model, CONFIG, groups)


def test_the_choice_of_what_may_go_knows_found_groups(pruners):
    pruner = pruners("llama")
    config = replace(CONFIG, exclude=("*.heads",), floors={"neurons": 10}, search="ranked")
    pruner.prune(samples(pruner.model), config)
    for roles in pruner.report.layers.values():
        assert roles["heads"]["kept"] == roles["heads"]["units"] and roles["neurons"]["kept"] >= 10


def test_roles_of_heads_have_the_floor_of_heads_and_others_are_not_emptied():
    side = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
    sizes = {f"{name}_{field}": size for name in ("encoder", "decoder") for field, size in side.items()}
    model = perturbed(tr.BartModel(tr.BartConfig(vocab_size=99, d_model=32, max_position_embeddings=64, **sizes)))
    groups = find_groups(model)
    channels = replace(groups[0], role="channels", least=0)
    limits = limits_of(replace(CONFIG, min_heads=2, min_neurons=3), [*groups, channels])
    floors = {key: limit.least for key, limit in limits.items()}
    assert floors == {
        "encoder.0.heads": 2,
        "encoder.0.neurons": floors["encoder.0.neurons"],
        "decoder.0.heads": 2,
        "decoder.0.encoder_attn_heads": 2,
        "decoder.0.neurons": floors["decoder.0.neurons"],
        "encoder.0.channels": 1,
    }
    assert floors["encoder.0.neurons"] >= 3


def test_merging_tokens_is_left_out_with_a_warning(pruners, caplog):
    pruner = pruners("vit_msn")
    pruner.prune(samples(pruner.model), replace(CONFIG, merging="auto", search="ranked"))
    assert pruner.report.merges == {}


def test_check_on_the_command_line_folds_what_is_alike(pruners, tmp_path, capsys):
    model = perturbed(tr.BertModel(tr.BertConfig(is_decoder=True, add_cross_attention=True, **TEXT)))
    model.save_pretrained(tmp_path)
    assert run("check", [str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 groups are proved" in shown
    assert shown.count("left whole") == 1
    assert "left whole: encoder.layer.0.crossattention and 1 more: no operation reads it for this sample" in shown
    assert run("check", [str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["left_whole"]) == 2


def test_an_image_is_made_up_for_an_encoder_decoder():
    decoder = tr.BertLMHeadModel(tr.BertConfig(is_decoder=True, add_cross_attention=True, **TEXT))
    model = perturbed(tr.VisionEncoderDecoderModel(encoder=tr.ViTModel(tr.ViTConfig(**IMAGE)), decoder=decoder))
    groups = find_groups(model)
    assert groups.sample["pixel_values"].shape == (1, 3, 16, 16)
    assert {"encoder.0.heads", "decoder.0.heads", "decoder.0.crossattention_heads"} <= {group.key for group in groups}
