"""Pruned models of types without a row: saved, loaded by Auto classes, saved and pruned again."""

import copy
import json
from functools import cache

import pytest
import torch
import transformers as tr
from folders import without_digest
from tiny import TEXT, perturbed, random_masks, tiny_batch, tiny_model

from optimum_optin import convert_model, find_groups
from optimum_optin.architectures.group import Blocks
from optimum_optin.discovery.samples import tiny_sample
from optimum_optin.editing.surgery import rewrite
from optimum_optin.proving.reload import reload_problem
from optimum_optin.running.forward import call_model
from optimum_optin.storage import rebuild as rebuilding
from optimum_optin.storage.entry import attention_without
from optimum_optin.storage.record import check_structure, record_structure, unsavable
from optimum_optin.storage.structure import Kept, structure_from_json, structure_of

BART = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "conv_kernel_size": 3}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}
# name -> Auto class, configuration
MODELS = {
    "gpt2": (tr.AutoModelForCausalLM, tr.GPT2Config(**GPT2)),
    "llama": (tr.AutoModelForCausalLM, tr.LlamaConfig(num_key_value_heads=2, **TEXT)),
    "t5": (tr.AutoModelForSeq2SeqLM, tr.T5Config(decoder_start_token_id=0, **T5)),
    "bart": (tr.AutoModelForSeq2SeqLM, tr.BartConfig(**BART)),
    "albert": (tr.AutoModelForSequenceClassification, tr.AlbertConfig(embedding_size=16, **TEXT)),
    "deberta-v2": (tr.AutoModelForSequenceClassification, tr.DebertaV2Config(**DEBERTA, **TEXT)),
    "resnet": (tr.AutoModelForImageClassification, tr.ResNetConfig(**RESNET)),
    "mixtral": (
        tr.AutoModelForCausalLM,
        tr.MixtralConfig(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **TEXT),
    ),
}


@cache
def traced(name, headed=True):
    """A model and its groups, traced once."""
    auto, config = MODELS[name]
    model = perturbed((auto if headed else tr.AutoModel).from_config(config))
    return model, find_groups(model)


def cut(model, groups, masks):
    """A copy of a model without the units that masks drop."""
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    record_structure(pruned, structure_of(groups, masks), groups)
    return pruned


def every_other(groups):
    return {group.key: torch.arange(group.units) % 2 == 1 for group in groups}


@cache
def halved(name, headed=True):
    """A model without every other unit."""
    model, groups = traced(name, headed)
    return cut(model, groups, every_other(groups))


@torch.no_grad()
def numbers(model, sample):
    """What a model computes, in one vector."""
    outputs = call_model(model, sample)
    found = [value.flatten() for value in outputs.values() if torch.is_tensor(value)]
    return torch.cat(found)


def same(one, other, sample):
    torch.testing.assert_close(numbers(one, sample), numbers(other, sample), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS, ids=MODELS)
def test_saved_loaded_and_saved_again(name, tmp_path):
    dense, _ = traced(name)
    pruned, sample = halved(name), tiny_sample(dense)
    assert sum(map(torch.numel, pruned.parameters())) < sum(map(torch.numel, dense.parameters()))
    pruned.save_pretrained(tmp_path / "once")
    loaded = MODELS[name][0].from_pretrained(tmp_path / "once")
    assert type(loaded) is type(pruned)
    same(loaded, pruned, sample)
    check_structure(loaded)
    loaded.save_pretrained(tmp_path / "twice")
    same(MODELS[name][0].from_pretrained(tmp_path / "twice"), pruned, sample)
    entries = [json.loads((tmp_path / each / "config.json").read_text()) for each in ("once", "twice")]
    assert entries[0]["quantization_config"] == entries[1]["quantization_config"]
    assert entries[0]["quantization_config"]["transformers"] == tr.__version__


@pytest.mark.parametrize("name", MODELS, ids=MODELS)
def test_the_head_goes_and_comes(name, tmp_path):
    headed, bare = halved(name), halved(name, headed=False)
    sample = tiny_sample(traced(name)[0])
    headed.save_pretrained(tmp_path / "headed")
    bare.save_pretrained(tmp_path / "bare")
    without = tr.AutoModel.from_pretrained(tmp_path / "headed")
    assert type(without) is type(bare)
    same(tr.AutoModel.from_pretrained(tmp_path / "bare"), bare, sample)
    with_head = MODELS[name][0].from_pretrained(tmp_path / "bare")
    assert type(with_head) is type(headed)
    if name != "t5":  # its classes hold stacks of one name, and no base model
        same(without, headed.base_model, sample)
        same(with_head.base_model, bare, sample)
    without.save_pretrained(tmp_path / "again")
    same(tr.AutoModel.from_pretrained(tmp_path / "again"), without, sample)


def test_an_encoder_of_a_model_that_has_a_decoder_too(tmp_path):
    halved("t5").save_pretrained(tmp_path)
    encoder = tr.T5EncoderModel.from_pretrained(tmp_path)
    sample = {"input_ids": tiny_sample(encoder)["input_ids"]}
    same(encoder, halved("t5").encoder, sample)
    assert not any("decoder" in name for name in encoder.config.quantization_config.shapes)


@pytest.mark.parametrize("name", ["gpt2", "bart", "albert"])
def test_a_second_pruning_on_top(name, tmp_path):
    once, sample = halved(name), tiny_sample(traced(name)[0])
    groups = find_groups(once)
    twice = cut(once, groups, every_other(groups))
    twice.save_pretrained(tmp_path)
    loaded = MODELS[name][0].from_pretrained(tmp_path)
    same(loaded, twice, sample)
    structure = structure_from_json(loaded.config.quantization_config.structure)
    neurons = next(entry for key, entry in structure.items() if key.endswith("neurons"))
    assert neurons == Kept(48, tuple(range(3, 48, 4)))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_sublayers_that_are_gone(name, tmp_path):
    model, groups = traced(name)
    gone = [
        next(group.key for group in groups if group.role == role and not group.least) for role in ("heads", "neurons")
    ]
    masks = {key: mask & (key not in gone) for key, mask in every_other(groups).items()}
    pruned = cut(model, groups, masks)
    pruned.save_pretrained(tmp_path)
    same(MODELS[name][0].from_pretrained(tmp_path), pruned, tiny_sample(model))
    assert reload_problem(pruned, [], tiny_sample(model)) is None


def test_a_known_structure_is_cut(tmp_path):
    model = copy.deepcopy(traced("gpt2")[0])
    convert_model(model, {"layers.0.heads": Kept(4, (1, 3)), "layers.1.neurons": Kept(48, (0, 7, 8))})
    assert model.transformer.h[0].attn.c_attn.weight.shape == (32, 48)
    assert model.transformer.h[1].mlp.c_proj.weight.shape == (3, 32)
    model.save_pretrained(tmp_path)
    same(tr.AutoModelForCausalLM.from_pretrained(tmp_path), model, tiny_sample(model))


def test_a_group_that_has_the_name_of_an_earlier_one_is_not_cut():
    model = copy.deepcopy(traced("gpt2")[0])
    convert_model(model, {"layers.0.neurons": Kept(48, (0, 7, 8))})
    model.config.quantization_config.structure["layers.0.neurons"]["kept"] = "0-1"
    with pytest.raises(ValueError, match=r"layers\.0\.neurons has 3 units, but an earlier pruning left 2 of what had"):
        convert_model(model, {"layers.0.neurons": Kept(3, (0,))})
    assert model.transformer.h[0].mlp.c_proj.weight.shape == (3, 32)


def test_nothing_is_traced_on_the_meta_device():
    with torch.device("meta"):
        model = tr.GPT2Model(MODELS["gpt2"][1])
    with pytest.raises(ValueError, match="GPT2Model is on the meta device, where it cannot be traced"):
        convert_model(model, {})


def test_loading_runs_no_pass_and_needs_no_row(tmp_path, monkeypatch):
    halved("gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr("optimum_optin.discovery.find.discover", None)
    monkeypatch.setattr(tr.GPT2Model, "forward", None)
    tr.AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", MODELS, ids=MODELS)
def test_a_trial_of_saving(name):
    model, groups = traced(name)
    before = copy.deepcopy(model.state_dict())
    assert reload_problem(model, groups, tiny_sample(model)) is None
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")


class Own(tr.PreTrainedModel):
    """A class of one's own, of layers that PyTorch brings."""

    config_class = tr.BertConfig
    main_input_name = "states"

    def __init__(self, config):
        super().__init__(config)
        layers = [torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0) for _ in range(2)]
        self.layers = torch.nn.ModuleList(layers)
        self.config.model_type = "own"
        self.post_init()

    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return {"last_hidden_state": states}


def test_a_trial_of_saving_a_class_of_ones_own():
    model, sample = perturbed(Own(tr.BertConfig())), {"states": torch.randn(1, 7, 32)}
    groups = find_groups(model, sample)
    assert [group.role for group in groups] == ["heads", "neurons"] * 2
    assert reload_problem(model, groups, sample) is None


def test_a_trial_of_saving_finds_what_is_not_saved(monkeypatch):
    model, groups = traced("gpt2")
    monkeypatch.setattr(rebuilding, "set_attribute", lambda *_: None)
    assert "does not load (" in reload_problem(model, groups, tiny_sample(model))


def test_a_trial_of_saving_compares():
    model, groups = copy.deepcopy(traced("llama"))
    model.model.layers[0].self_attn.scaling *= 2  # on the object alone
    assert "its outputs are off by " in reload_problem(model, groups, tiny_sample(model))


def test_what_is_made_anew_on_loading_cannot_be_cut():
    model = tiny_model()
    groups = list(find_groups(model))
    layer = model.bert.encoder.layer[0]
    layer.register_buffer("slopes", torch.ones(4), persistent=False)
    writes = (*groups[0].cut.writes, Blocks("bert.encoder.layer.0.slopes", 0, (1,)))
    changed = copy.copy(groups[0])
    object.__setattr__(changed, "cut", type(groups[0].cut)(**{**vars(groups[0].cut), "writes": writes}))
    assert unsavable(model, groups[0]) is None
    assert "bert.encoder.layer.0.slopes, which its units own a part of, is not among" in unsavable(model, changed)
    masks = random_masks([changed])
    rewrite(model, [changed], masks)
    with pytest.raises(ValueError, match=r"layers\.0\.heads cannot be cut, as bert\.encoder\.layer\.0\.slopes"):
        record_structure(model, structure_of([changed], masks), [changed])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a pruned model, one of whose layers has no heads left; without a digest, which tells any damage."""
    folder = tmp_path_factory.mktemp("bert")
    model = tiny_model()
    groups = find_groups(model)
    masks = random_masks(groups) | {"layers.1.heads": torch.zeros(4, dtype=torch.bool)}
    cut(model, groups, masks).save_pretrained(folder)
    return without_digest(folder)


HEADS = "bert.encoder.layer.0.attention.self"
QUERY = f"{HEADS}.query.weight"
LEFT = attention_without("")
DAMAGE = {
    "a larger shape": (
        "shapes",
        {QUERY: [33, 32]},
        r"query\.weight the shape \(33, 32\), but a dense model has \(32, 32\)",
    ),
    "an absurd shape": ("shapes", {QUERY: [10**12, 32]}, "the shape .* but a dense model has"),
    "a negative shape": (
        "shapes",
        {QUERY: [-1, 32]},
        r"quantization_config\.shapes must be .* config\.json is damaged",
    ),
    "a shape of fractions": ("shapes", {QUERY: [16.0, 32]}, r"quantization_config\.shapes must be"),
    "a shape of true": ("shapes", {QUERY: [True, 32]}, r"quantization_config\.shapes must be"),
    "another number of dimensions": ("shapes", {QUERY: [32]}, "the shape .* but a dense model has"),
    "shapes in a list": ("shapes", [QUERY], r"quantization_config\.shapes must be"),
    "a shape of a method": ("shapes", {f"{HEADS}.forward": [1]}, "config.json names .*forward, which a Bert"),
    "a shape of a class": ("shapes", {"bert.__class__": [1]}, "names bert.__class__, which a BertForSeq"),
    "a name that moved": (
        "shapes",
        {"bert.encoder.layers.0.attention.self.query.weight": [16, 32]},
        "saved with transf",
    ),
    "a larger counter": ("counters", {f"{HEADS}.num_attention_heads": 5}, "to 5, but it is 4 in a dense model"),
    "a negative counter": ("counters", {f"{HEADS}.num_attention_heads": -1}, r"quantization_config\.counters must be"),
    "a counter of a fraction": (
        "counters",
        {f"{HEADS}.num_attention_heads": 2.0},
        r"quantization_config\.counters must",
    ),
    "a counter of a method": ("counters", {f"{HEADS}.forward": 1}, "names .*forward, which a Bert"),
    "a counter of a flag": ("counters", {f"{HEADS}.is_causal": 0}, "names .*is_causal, which a Bert"),
    "a private counter": ("counters", {"_private": 0}, "names _private, which a Bert"),
    "a counter of a class": ("counters", {"__class__.counter": 0}, "names __class__.counter, which a Bert"),
    "a counter outside": ("counters", {"bert.forward.__globals__.torch": 0}, "names bert.forward.__globals__.torch"),
    "a selector without argument": ("selectors", {HEADS: {"nothing": "0"}}, "the argument 'nothing' of bert"),
    "a selector of too few heads": ("selectors", {HEADS: {"hidden_states": "3 of 3"}}, r"\.selectors must be"),
    "a selector of no heads": ("selectors", {HEADS: {"hidden_states": "a"}}, r"quantization_config\.selectors must be"),
    "an absurd selector": (
        "selectors",
        {HEADS: {"hidden_states": "0-9999999"}},
        r"quantization_config\.selectors must",
    ),
    "a removed model": ("removed", {"": ""}, "config.json names , which a Bert"),
    "a removed method": ("removed", {f"{HEADS}.forward": ""}, "forward, which a Bert"),
    "a consumer that is not there": ("removed", {HEADS: "out"}, r"the bias of out of bert\S+self, which is not there"),
    "a consumer that reads": (
        "stand_ins",
        {HEADS: {**LEFT, "reader": "query"}},
        r"query of \S+, which .* reads",
    ),
    "a stand-in without form": ("stand_ins", {HEADS: {"reader": ""}}, r"quantization_config\.stand_ins must be"),
    "an absurd stand-in": ("stand_ins", {HEADS: {**LEFT, "width": 10**9}}, r"quantization_config\.stand_ins must be"),
    "a stand-in for nothing": ("stand_ins", {f"{HEADS}.forward": LEFT}, "forward, which a Bert"),
    "a consumer elsewhere": ("removed", {HEADS: "query.weight"}, r"quantization_config\.removed must be"),
    "gone from what is gone": (
        "without",
        [f"{HEADS}.query", f"{HEADS}.query"],
        "removes what holds .*query, and names",
    ),
    "gone attributes": ("without", [f"{HEADS}.num_attention_heads"], "num_attention_heads, which a Bert"),
    "a base of no text": ("base", 3, r"quantization_config\.base must be"),
    "a version of no text": ("transformers", 5, r"quantization_config\.transformers must be"),
    "merging without places": ("tokens", {"protected": 1, "merges": {"layers.0": 2}}, "does not say where layers.0 is"),
    "merging of nothing": ("merging", [{"layer": "layers.0"}], r"quantization_config\.merging must be"),
    "an unknown key": ("more", 1, "quantization_config of format 2 has no more: the file is damaged, or was saved by"),
}


@pytest.mark.parametrize("name", DAMAGE, ids=DAMAGE)
def test_a_damaged_entry_is_refused_by_name(name, bert, tmp_path):
    part, value, message = DAMAGE[name]
    config = json.loads((bert / "config.json").read_text())
    entry = config["quantization_config"]
    entry[part] = {**entry.get(part, {}), **value} if isinstance(value, dict) and part != "tokens" else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(bert / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        tr.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_name_that_moved_is_an_error_that_says_the_versions(bert, tmp_path):
    text = (bert / "config.json").read_text().replace("encoder.layer.", "encoder.layers.")
    text = text.replace(f'"transformers": "{tr.__version__}"', '"transformers": "5.1.2"')
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").symlink_to(bert / "model.safetensors")
    with pytest.raises(
        ValueError, match=rf"saved with transformers 5\.1\.2, and this is {tr.__version__}, where modules"
    ):
        tr.AutoModel.from_pretrained(tmp_path)


def decoder():
    return tr.BertConfig(**TEXT | {"num_hidden_layers": 1}, is_decoder=True, add_cross_attention=True)


COMPOSITES = {
    "vision encoder, decoder": (
        lambda: tr.VisionEncoderDecoderModel(
            encoder=tiny_model("vit", base=True), decoder=tr.BertLMHeadModel(decoder())
        ),
        lambda model: tiny_batch(model.encoder, samples=1) | {"decoder_input_ids": torch.arange(5, 12)[None]},
    ),
    "encoder, decoder": (
        lambda: tr.EncoderDecoderModel(encoder=tiny_model(base=True), decoder=tr.BertLMHeadModel(decoder())),
        lambda model: {"input_ids": torch.arange(20, 30)[None], "decoder_input_ids": torch.arange(5, 12)[None]},
    ),
    "speech encoder, decoder": (
        lambda: tr.SpeechEncoderDecoderModel(
            encoder=tr.Wav2Vec2Model(
                tr.Wav2Vec2Config(
                    **{name: size for name, size in TEXT.items() if name != "max_position_embeddings"},
                    conv_dim=[16, 16],
                    conv_kernel=[10, 3],
                    conv_stride=[5, 2],
                    num_feat_extract_layers=2,
                    num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=2,
                )
            ),
            decoder=tr.BertLMHeadModel(decoder()),
        ),
        lambda model: {"input_values": torch.randn(1, 600), "decoder_input_ids": torch.arange(5, 12)[None]},
    ),
    "dual encoder": (
        lambda: tr.VisionTextDualEncoderModel(
            vision_model=tiny_model("vit", base=True), text_model=tiny_model(base=True)
        ),
        lambda model: tiny_batch(model.vision_model, samples=1) | {"input_ids": torch.arange(5, 15)[None]},
    ),
}


@pytest.mark.parametrize("name", COMPOSITES, ids=COMPOSITES)
def test_a_composite_that_was_pruned_itself(name, tmp_path):
    make, sample_of = COMPOSITES[name]
    model = perturbed(make())
    sample = sample_of(model)
    groups = find_groups(model, sample)
    stacks = {group.layer.partition(".")[0] for group in groups}
    assert len(stacks) > 1, "both parts are pruned"
    pruned = cut(model, groups, every_other(groups))
    pruned.save_pretrained(tmp_path)
    same(type(model).from_pretrained(tmp_path), pruned, sample)
