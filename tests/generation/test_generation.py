"""Generation by models whose layers kept different numbers of heads and neurons: with any cache, as the masked ones."""

import copy
import tempfile
from functools import cache

import pytest
import torch
import transformers as tr
from decoders import DECODERS, GENERATORS, PAIRED, auto_of, generator, prompts
from tiny import tiny_samples
from torch._dynamo.testing import CompileCounter

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.masking import masked
from optimum_optin.editing.stand_ins import StandIn
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.pricing.macs import count_macs, total_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import masks_of, structure_of

CACHED = [name for name in GENERATORS if name != "mpt"]  # transformers' MPT generates without a cache
CHUNKED = [name for name in DECODERS if name != "mpt"]
ASSISTED = ["smollm", "gemma3", "gpt2", "t5", "bart", "whisper"]


def uneven(groups):
    """Masks by which the layers of a stack keep different numbers of units."""
    drawn, count, masks = torch.Generator().manual_seed(1), {}, {}
    for group in groups:
        place = count[group.role] = count.get(group.role, -1) + 1
        kept = group.units // 3 + 3 * place if group.width == 1 else 1 + place % (group.units - 1)
        masks[group.key] = torch.zeros(group.units, dtype=torch.bool)
        masks[group.key][torch.randperm(group.units, generator=drawn)[:kept]] = True
    return masks


def saved_and_loaded(name, model, groups, masks):
    """A copy of a model without what masks drop, as it comes back from disk."""
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    record_structure(pruned, structure_of(groups, masks), groups)
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_pretrained(folder)
        return auto_of(name).from_pretrained(folder).eval()


@cache
def case(name):
    """A dense model, its groups, masks, and the cut model as it comes back from disk."""
    model = generator(name)
    groups = find_groups(model)
    masks = uneven(groups)
    return model, groups, masks, saved_and_loaded(name, model, groups, masks)


def generated(model, inputs, **options):
    """Token ids that a model generates, always ten, and their logits."""
    torch.manual_seed(0)
    options = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, **options}
    found = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return found.sequences, torch.stack(found.logits)


@pytest.mark.parametrize("name", GENERATORS)
def test_layers_differ_in_heads_and_neurons(name):
    _, groups, masks, _ = case(name)
    kept = {}
    for group in groups:
        kept.setdefault(group.role, set()).add(int(masks[group.key].sum()))
    assert len(kept["neurons"]) > 1
    if name in DECODERS:
        assert len(kept["heads"]) > 1


WAYS = {
    "greedy": {},
    "beam search": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 20},
    "static cache": {"cache_implementation": "static"},
    "beams in a static cache": {"num_beams": 3, "cache_implementation": "static"},
}
SAMPLED = ("beam search", "sampling")


# How a static cache is made depends on the model; how tokens are drawn, and a dynamic cache is reordered, does not.
GENERATED = [(name, way) for name in GENERATORS for way in WAYS if name in ASSISTED or way not in SAMPLED]


@pytest.mark.parametrize(("name", "way"), GENERATED, ids=map(" by ".join, GENERATED))
def test_cut_generates_what_masked_does(name, way):
    """Two prompts, one of them padded at the left."""
    model, groups, masks, loaded = case(name)
    found = generated(loaded, prompts(name), **WAYS[way])
    with masked(model, groups, masks):
        expected = generated(model, prompts(name), **WAYS[way])
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(found[0], generated(model, prompts(name), **WAYS[way])[0])  # what the dense model says


@pytest.mark.parametrize("name", DECODERS)
def test_padding_at_the_left_changes_nothing(name):
    loaded, inputs = case(name)[-1], prompts(name)
    short = inputs["input_ids"][1:, inputs["attention_mask"][1].argmax() :]
    alone = generated(loaded, {"input_ids": short, "attention_mask": torch.ones_like(short)})[0]
    assert torch.equal(generated(loaded, inputs)[0][1, -10:], alone[0, -10:])


@torch.no_grad()
def in_pieces(name, model, ids, cache):
    """Logits of tokens that a model is given in pieces, with a cache of what came before."""
    found, start, encoded = [], 0, {}
    if name in PAIRED:
        encoded = {"encoder_outputs": model.get_encoder()(**prompts(name, (7,)))}
    for length in (5, 1, 1, 3, 1):
        piece = {"decoder_input_ids" if encoded else "input_ids": ids[:, start : start + length]}
        found.append(model(**piece, **encoded, past_key_values=cache, use_cache=cache is not None).logits)
        start += length
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", CACHED)
def test_cached_passes_are_one_full_pass(name, kind):
    _, groups, masks, loaded = case(name)
    config = loaded.config.get_text_config(decoder=True)
    options = {"config": config, "max_cache_len": 16} if kind == "static" else {"config": config}
    kept = tr.StaticCache if kind == "static" else tr.DynamicCache
    cache = tr.EncoderDecoderCache(kept(**options), tr.DynamicCache(config=config)) if name in PAIRED else None
    cache = cache or kept(**options)
    ids = torch.randint(5, 95, (1, 11), generator=torch.Generator().manual_seed(3))
    found = in_pieces(name, loaded, ids, cache)
    whole = prompts(name, (7,)) | {"decoder_input_ids": ids} if name in PAIRED else {"input_ids": ids}
    with torch.no_grad():
        expected = loaded(**whole, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    layers = (cache.self_attention_cache if name in PAIRED else cache).layers
    heads = [int(masks[group.key].sum()) for group in groups if group.key in {f"layers.{n}.heads" for n in range(3)}]
    if heads:  # each layer's cache has room for its own heads alone
        assert [layer.keys.shape[1] for layer in layers] == heads


@pytest.mark.parametrize("name", CHUNKED)
def test_a_prompt_in_chunks_and_a_static_cache(name):
    """transformers makes room for as many heads as the config says, in every layer."""
    loaded = case(name)[-1]
    options = {"cache_implementation": "static", "prefill_chunk_size": 4}
    assert torch.equal(generated(loaded, prompts(name), **options)[0], generated(loaded, prompts(name))[0])


@pytest.mark.parametrize("name", ASSISTED)
def test_each_assists_the_other(name):
    """What an assistant proposes changes how fast a model generates, and nothing of what."""
    model, _, _, loaded = case(name)
    inputs = prompts(name, (7,))
    for one, other in ((model, loaded), (loaded, model)):
        assisted = generated(one, inputs, assistant_model=other)[0]
        assert torch.equal(assisted, generated(one, inputs)[0])


@pytest.mark.parametrize("name", [name for name in ASSISTED if name != "whisper"])
def test_proposals_from_the_prompt(name):
    loaded = case(name)[-1]
    inputs = prompts(name, (7,))
    assert torch.equal(generated(loaded, inputs, prompt_lookup_num_tokens=2)[0], generated(loaded, inputs)[0])


def test_compiled_in_one_graph_with_a_static_cache():
    loaded = copy.deepcopy(case("smollm")[-1])
    expected = generated(loaded, prompts("smollm"), cache_implementation="static")
    compiled = CompileCounter()
    loaded.forward = torch.compile(loaded.forward, backend=compiled, fullgraph=True)
    found = generated(loaded, prompts("smollm"), cache_implementation="static")
    assert compiled.frame_count > 0
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_alibi_is_that_of_the_heads_that_are_left(name):
    """Slopes of all heads are made outside of the layers, which pick theirs; after a second pruning as well."""
    model, groups, masks, once = case(name)
    left = find_groups(once)
    again = {group.key: torch.arange(group.units) < max(1, group.units - 1) for group in left}
    twice = saved_and_loaded(name, once, left, again)
    both = {group.key: masks[group.key].clone() for group in groups}
    for key, mask in again.items():
        both[key][masks[key].nonzero().flatten()[~mask]] = False
    with masked(model, groups, both):
        expected = generated(model, prompts(name))
    assert torch.equal(generated(twice, prompts(name))[0], expected[0])
    entry = twice.config.quantization_config.selectors
    assert {text.partition(" of ")[2] for each in entry.values() for text in each.values()} == {"4"}


@pytest.mark.parametrize("name", ["bloom", "t5"])
def test_layers_that_a_cache_is_measured_by_keep_a_head(name):
    """A cache without numbers says that it holds no tokens, and nothing can stand in for this attention."""
    assert all(group.least for group in case(name)[1] if group.role.endswith("heads") and "encoder" not in group.layer)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "t5", "bart"])
def test_layers_without_attention_or_network_generate(name):
    """The first one's attention among them, by which a cache counts its tokens, and a whole layer."""
    model, groups, masks, _ = case(name)
    first, last = (end(group.layer for group in groups if "encoder" not in group.layer) for end in (min, max))
    gone = [group.key for group in groups if group.least == 0 and group.layer == last]
    gone += [group.key for group in groups if group.least == 0 and group.layer == first and "heads" in group.role]
    masks = {key: mask & (key not in gone) for key, mask in masks.items()}
    assert len(gone) > (name != "t5"), "T5's heads share a table, and so they go in all layers or in none"
    loaded = saved_and_loaded(name, model, groups, masks)
    skipped = [module for module in loaded.modules() if isinstance(module, StandIn) or hasattr(module, "in_graphs")]
    assert len(skipped) >= len(gone)
    with masked(model, groups, masks):
        expected = {way: generated(model, prompts(name), **options) for way, options in WAYS.items()}
    for way, options in WAYS.items():
        found = generated(loaded, prompts(name), **options)
        assert torch.equal(found[0], expected[way][0]), way
        torch.testing.assert_close(found[1], expected[way][1], rtol=1e-4, atol=1e-4)
    if name in CHUNKED:
        options = {"cache_implementation": "static", "prefill_chunk_size": 4}
        assert torch.equal(generated(loaded, prompts(name), **options)[0], expected["greedy"][0])
    one = prompts(name, (7,))
    assert torch.equal(generated(model, one, assistant_model=loaded)[0], generated(model, one)[0])
    assert torch.equal(generated(loaded, one, assistant_model=model)[0], generated(loaded, one)[0])


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_a_model_without_whole_sublayers_is_refitted_and_generates_from_its_folder(name, tmp_path):
    pruner = OptinPruner(generator(name))
    config = OptinConfig(flops=0.5, probes=4, rows=16, search="ranked", max_length=12, depth=3)
    pruned = pruner.prune(tiny_samples(), config, save_dir=tmp_path)
    assert sum(each["kept"] == 0 for roles in pruner.report.layers.values() for each in roles.values()) >= 3
    assert sum(isinstance(each, StandIn) or hasattr(each, "in_graphs") for each in pruned.modules()) >= 3
    assert 0.3 < pruner.report.flops_achieved <= 0.5
    loaded = auto_of(name).from_pretrained(tmp_path).eval()
    for way in WAYS.values():
        assert torch.equal(generated(loaded, prompts(name), **way)[0], generated(pruned, prompts(name), **way)[0])


@pytest.mark.parametrize("name", ["smollm", "gemma3", "gpt2"])
def test_a_pruned_decoder_generates_from_its_folder(name, tmp_path):
    pruner = OptinPruner(generator(name))
    config = OptinConfig(flops=0.7, probes=8, rows=16, search="ranked", min_heads=0)
    pruned = pruner.prune(tiny_samples(), config, save_dir=tmp_path)
    kept = [[roles[role]["kept"] for roles in pruner.report.layers.values()] for role in ("heads", "neurons")]
    assert len(set(kept[1])) > 1 and kept[0][0] > 0
    loaded = auto_of(name).from_pretrained(tmp_path).eval()
    for way in WAYS.values():
        assert torch.equal(generated(loaded, prompts(name), **way)[0], generated(pruned, prompts(name), **way)[0])


@pytest.mark.parametrize("name", [name for name in PAIRED if name != "whisper"])
def test_a_pruned_encoder_decoder_generates_from_its_folder(name, tmp_path):
    """Calibrated on texts alone."""
    pruner = OptinPruner(generator(name))
    config = OptinConfig(flops=0.6, probes=4, rows=16, search="ranked", max_length=12)
    pruned = pruner.prune(tiny_samples(), config, save_dir=tmp_path)
    report = pruner.report
    assert 0.3 < report.flops_achieved <= 0.6
    assert report.continuations.answers and not report.refit
    loaded = auto_of(name).from_pretrained(tmp_path).eval()
    for way in WAYS.values():
        assert torch.equal(generated(loaded, prompts(name), **way)[0], generated(pruned, prompts(name), **way)[0])
    batch = probe_batch(pruner.model, report.tokens)
    masks = masks_of(structure_of_model(pruned), groups := proved_groups(pruner.model, config))
    gone = count_macs(pruner.model, batch) - count_macs(pruned, batch)
    whole, left = (total_cost(pruner.model, groups, report.tokens, masks=each) for each in (None, masks))
    assert gone == pytest.approx(whole - left), "counted is measured"
