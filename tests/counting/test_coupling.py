"""Layers that hand each other something as large as they are themselves lose the same units, or are not proved."""

from dataclasses import replace

import torch
import transformers as tr
from toys import perturbed

from optimum_optin.counting.coupling import every_second
from optimum_optin.discovery.discover import discover
from optimum_optin.proving.architecture import prove

SHAPE = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
SAMPLE = {"input_ids": torch.arange(5, 15)[None], "decoder_input_ids": torch.arange(20, 27)[None]}


def cross_attention(group):
    return any("EncDecAttention" in part.tensor for part in group.cut.reads)


def test_cross_attentions_that_share_a_bias_of_zeros_are_one_group():
    model = perturbed(tr.T5Model(tr.T5Config(**SHAPE)))
    groups = discover(model, SAMPLE)
    (both,) = filter(cross_attention, groups)
    assert len(both.cut.reads) == 2
    proof = prove(model, groups, SAMPLE)
    assert [each.cut for each in proof.groups] == [None] * len(groups)


def test_layers_that_must_be_alike_are_not_proved_one_by_one():
    model = perturbed(tr.T5Model(tr.T5Config(**SHAPE)))
    groups = discover(model, SAMPLE)
    (both,) = filter(cross_attention, groups)
    pieces = [_layer_of(both, number) for number in (0, 1)]
    others = [group for group in groups if group is not both]
    proof = prove(model, replace(groups, members=(*others, *pieces)), SAMPLE)
    assert [bool(each.cut) for each in proof.groups] == [False] * len(others) + [True, True]


def _layer_of(group, number):
    """A group's part in one layer."""
    own = {
        side: tuple(part for part in getattr(group.cut, side) if f"block.{number}." in part.tensor)
        for side in ("writes", "reads")
    }
    counters = {path: amount for path, amount in group.cut.counters.items() if f"block.{number}." in path}
    consumer = replace(group.consumers[0], path=own["reads"][0].tensor.removesuffix(".weight"))
    cut = replace(group.cut, **own, counters=counters, producers=(), consumers=(consumer,))
    return replace(group, layer=f"decoder.{number}", role="cross_heads", cut=cut)


def test_every_second_group_is_told_by_stack_and_role():
    model = perturbed(tr.T5Model(tr.T5Config(**SHAPE)))
    groups = [group for group in discover(model, SAMPLE) if group.role == "neurons"]
    assert [group.key for group in every_second(groups)] == ["encoder.1.neurons", "decoder.1.neurons"]
