"""Mixtures of experts that kept other neurons in each: cut as masked, cached as uncached, after a reload."""

import copy

import pytest
import torch
import transformers as tr
from decoders import prompts, real
from expert_models import CONFIGS, expert_model, token_batches

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of


def uneven(groups):
    """Masks that keep other neurons of each expert, and twice as many in the second layer."""
    drawn, masks = torch.Generator().manual_seed(1), {}
    for place, group in enumerate(groups):
        count = 8 if place % 4 < 2 else 16
        rows = [torch.randperm(group.units // group.parts, generator=drawn) < count for _ in range(group.parts)]
        masks[group.key] = torch.cat(rows) if group.role == "expert_neurons" else group.first(1)
    return masks


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "nemotron_h"])
def test_cut_generates_what_masked_does_with_any_cache(name, tmp_path):
    model = expert_model(name)
    groups = find_groups(model)
    assert sum(group.role == "expert_neurons" for group in groups) == 2
    masks = uneven(groups)
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    record_structure(pruned, structure_of(groups, masks), groups)
    pruned.save_pretrained(tmp_path)
    loaded = tr.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "output_logits": True}
    options["return_dict_in_generate"] = True
    found = loaded.generate(**prompts("llama"), **options)
    with masked(model, groups, masks):
        expected = model.generate(**prompts("llama"), **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-3, atol=1e-3)
    for cache in ({"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(loaded.generate(**prompts("llama"), **options | cache).sequences, found.sequences)
    whole = model.generate(**prompts("llama"), **options)
    assert not torch.allclose(torch.stack(whole.logits)[0], torch.stack(found.logits)[0], atol=1e-2)
    with torch.no_grad():
        for kernel in ("eager", "batched_mm"):
            loaded.set_experts_implementation(kernel)
            logits = loaded(**prompts("llama")).logits[:, -1]
            torch.testing.assert_close(logits, found.logits[0], rtol=1e-3, atol=1e-3)


def test_a_uniform_layout_is_one_that_transformers_makes(tmp_path):
    samples = [{"input_ids": row.tolist()} for each in token_batches(8) for row in each["input_ids"]]
    config = OptinConfig(flops=0.85, batch_size=4, layout="uniform", include=["expert_neurons"])
    pruned = OptinPruner(expert_model("mixtral")).prune(samples, config)
    pruned.save_pretrained(tmp_path)
    loaded = tr.MixtralForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.intermediate_size == 16 and not hasattr(loaded.config, "quantization_config")
    with torch.no_grad():
        found, expected = (real(each(**prompts("llama")).logits, prompts("llama")) for each in (loaded, pruned))
        torch.testing.assert_close(found, expected)
