"""Query heads of grouped-query attention as units: equally many of each KV head, which of them is free."""

import copy
import dataclasses
import itertools
from functools import cache

import pytest
import torch
import transformers as tr
from decoders import generator, prompts, real
from tiny import tiny_samples

from optimum_optin import OptinConfig, OptinPruner, convert_model, find_groups
from optimum_optin.counting.queries import by_query_heads
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.pricing.macs import count_macs, total_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.search.limits import Limit
from optimum_optin.search.masks import search
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import masks_of, structure_of

NAMES = ["llama", "smollm", "mistral", "qwen3", "gemma2", "gemma3"]
CONFIG = OptinConfig(flops=0.7, probes=8, rows=16, search="ranked", gqa_units="query_heads")


@cache
def case(name):
    """A model, and its groups."""
    model = generator(name)
    return model, by_query_heads(model, find_groups(model))


def balanced(groups, seed=0):
    """Masks of as many query heads of each KV head as it has less one, others in each; half of the neurons."""
    drawn, masks = torch.Generator().manual_seed(seed), {}
    for group in groups:
        each = group.units // group.parts
        kept = each - 1 if group.parts > 1 else each // 2
        parts = [torch.randperm(each, generator=drawn) < kept for _ in range(group.parts)]
        masks[group.key] = torch.cat(parts)
    return masks


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_query_heads(name):
    model, groups = case(name)
    config = model.config
    queries, neurons = list(groups)[:2]
    assert (queries.key, neurons.key) == ("layers.0.query_heads", "layers.0.neurons")
    assert (queries.units, queries.parts) == (config.num_attention_heads, config.num_key_value_heads)
    assert queries.width == model.model.layers[0].self_attn.head_dim
    owned = {part.tensor.partition("self_attn.")[2] for part in (*queries.cut.writes, *queries.cut.reads)}
    assert owned == {"q_proj.weight", "o_proj.weight"}  # what belongs to KV heads stays, and so does the cache
    groups_of = {path.rpartition(".")[2]: amount * queries.units for path, amount in queries.cut.counters.items()}
    assert groups_of == {"num_key_value_groups": config.num_attention_heads // config.num_key_value_heads}


@torch.no_grad()
@pytest.mark.parametrize(("name", "kernel"), [*((name, "eager") for name in NAMES), ("smollm", "sdpa")])
def test_cut_is_masked(name, kernel):
    model, groups = case(name)
    masks, pruned = balanced(groups), copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    for each in (model, pruned):
        each.set_attn_implementation(kernel)
    for inputs in (prompts(name), {"input_ids": prompts(name)["input_ids"]}):
        with masked(model, groups, masks):
            expected = model(**inputs).logits
        found = pruned(**inputs).logits
        torch.testing.assert_close(real(found, inputs), real(expected, inputs), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, model(**inputs).logits, rtol=1e-2)


def test_a_cut_that_leaves_one_kv_head_fewer_queries_is_refused():
    model, groups = case("smollm")
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["layers.0.query_heads"][0] = False
    with pytest.raises(ValueError, match=r"layers\.0\.query_heads must keep equally many units of each of its 3 parts"):
        rewrite(copy.deepcopy(model), groups, masks)


@pytest.mark.parametrize("name", ["smollm", "gemma2"])
def test_a_pruned_model_keeps_equally_many_and_generates_from_its_folder(name, tmp_path):
    model, _ = case(name)
    groups = proved_groups(model, CONFIG)
    pruner = OptinPruner(model, config=CONFIG)
    pruned = pruner.prune(tiny_samples(), save_dir=tmp_path)
    masks, kept = masks_of(structure_of_model(pruned), groups), set()
    for group in groups.of_role("query_heads"):
        (count,) = set(masks[group.key].view(group.parts, -1).sum(1).tolist())
        kept.add(count)
    assert len(kept) > 1 and 0.6 < pruner.report.flops_achieved <= 0.7
    batch = probe_batch(model, pruner.report.tokens)
    gone = count_macs(model, batch) - count_macs(pruned, batch)
    whole, left = (total_cost(model, groups, pruner.report.tokens, masks=each) for each in (None, masks))
    assert gone == pytest.approx(whole - left)
    loaded = tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    lengths = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
        found, expected = (each.generate(**prompts(name), **lengths, **options) for each in (loaded, pruned))
        assert torch.equal(found, expected)
    again = OptinPruner(loaded, config=OptinConfig(flops=0.9, probes=4, rows=16, search="ranked"))
    again.prune(tiny_samples())  # by KV heads with the queries that are left
    assert {"query_heads", "neurons"} <= set(again.report.layers["layers.2"])


def test_a_structure_of_query_heads_converts_a_dense_model():
    model, groups = case("smollm")
    masks, pruned, converted = balanced(groups), copy.deepcopy(model), copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    convert_model(converted, structure_of(groups, masks))
    with torch.no_grad():
        assert torch.equal(converted(**prompts("smollm")).logits, pruned(**prompts("smollm")).logits)


def test_uniform_layout_writes_the_number_of_query_heads(tmp_path):
    model, _ = case("smollm")
    config = dataclasses.replace(CONFIG, layout="uniform", ceilings={"query_heads": 7})
    pruned = OptinPruner(model).prune(tiny_samples(), config, save_dir=tmp_path)
    assert (pruned.config.num_attention_heads, pruned.config.num_key_value_heads) in ((3, 3), (6, 3))
    again = tr.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**prompts("smollm")).logits, pruned(**prompts("smollm")).logits)


@pytest.mark.parametrize("stay", [(), (0,), (0, 1, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_of_each_part(seed, stay):
    """Against all masks that keep equally many of each of three parts."""
    score = torch.rand(9, generator=torch.Generator().manual_seed(seed))
    costs, limit = {"a.query_heads": torch.arange(10.0)}, Limit(stay=stay, parts=3)
    for budget in range(6 if len(stay) > 1 else 3, 10):
        mask = search({"a.query_heads": score}, costs, float(budget), {"a.query_heads": limit})["a.query_heads"]
        best = -1.0
        for chosen in itertools.product([False, True], repeat=9):
            counts = torch.tensor(chosen).view(3, 3).sum(1)
            if len(set(counts.tolist())) == 1 and sum(chosen) <= budget and all(chosen[unit] for unit in stay):
                best = max(best, float(score[torch.tensor(chosen)].double().sum()))
        assert len(set(mask.view(3, 3).sum(1).tolist())) == 1 and mask[list(stay)].all()
        assert float(score[mask].double().sum()) == pytest.approx(best)


@pytest.mark.parametrize("name", ["gpt2", "phi"])
def test_a_model_whose_heads_share_nothing_is_refused(name):
    with pytest.raises(ValueError, match="gqa_units='query_heads' is for models in which several query heads share"):
        OptinPruner(generator(name), config=CONFIG).check()


def test_scores_of_the_other_kind_are_refused_by_name():
    pruner = OptinPruner(generator("smollm"), config=dataclasses.replace(CONFIG, gqa_units="kv_heads"))
    scores = pruner.score(tiny_samples())
    with pytest.raises(ValueError, match="with gqa_units='kv_heads', the configuration asks for 'query_heads'"):
        pruner.plan(scores, config=CONFIG)
