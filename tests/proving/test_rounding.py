"""Rounding that adds up over many layers is no fault of the groups; as small a fault of a single layer is one."""

import torch
import transformers as tr
from decoders import SHAPE

from optimum_optin import find_groups
from optimum_optin.proving import cuts
from optimum_optin.proving.architecture import prove


def deep(layers):
    """A decoder whose layers make small differences larger."""
    torch.manual_seed(0)
    config = tr.LlamaConfig(**SHAPE | {"num_hidden_layers": layers, "num_key_value_heads": 2})
    model = tr.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 3 * parameter[0].numel() ** -0.5)
    return model


def test_rounding_adds_up_over_layers(monkeypatch):
    model = deep(12)
    groups = find_groups(model)
    proof = prove(model, groups)
    assert proof.proved and proof.largest < proof.rounding
    monkeypatch.setattr(cuts, "_ADDED_UP", 0)
    proof = prove(model, groups)
    problem = next(each.cut for each in proof.groups if each.cut)
    assert "e-05 of its size off" in problem


def test_a_small_fault_of_one_layer_is_still_found():
    model = deep(2)
    groups = find_groups(model)

    def spoil(module, args, output):
        return (
            output * (1 + 5e-5 * (module.o_proj.in_features < 32))
            if torch.is_tensor(output)
            else (
                output[0] * (1 + 5e-5 * (module.o_proj.in_features < 32)),
                *output[1:],
            )
        )

    model.model.layers[1].self_attn.register_forward_hook(spoil)
    proof = prove(model, groups)
    found = {each.group.key for each in proof.groups if each.cut}
    assert "layers.1.heads" in found and "layers.1.neurons" not in found
