"""Joins: where outputs are added to the residual stream is found for many ways to add, or said not to be."""

from types import SimpleNamespace

import pytest
import torch
import transformers as tr
from tiny import CASES, SHAPE, tiny_batch, tiny_model
from torch import nn

from optimum_optin import find_groups
from optimum_optin.architectures.group import Consumer, Producer, attribute
from optimum_optin.passes.course import find_course

ALONE = {"swin": {"heads"}, "swinv2": {"heads", "neurons"}}  # windows; outputs are normalised


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_joins_where_it_should(case):
    model = tiny_model(case)
    groups = find_groups(model)
    course = find_course(model, list(groups)[::-1], tiny_batch(model))
    alone = next((roles for name, roles in ALONE.items() if case.split()[0] == name), set())
    assert {group.role for group in groups if group.consumer not in course.joins} == alone
    assert [stop.group.key for stop in course.stops if not stop.producers] == [group.key for group in groups]
    assert all(len(join.terms) == 1 for join in course.joins.values())
    for stop in course.stops:
        if stop.producers:
            assert stop.producers == tuple(each.path for each in stop.group.producers)


@pytest.mark.parametrize(
    ("case", "factors"),
    [("beit", ("lambda_1", "lambda_2")), ("dinov2", ("layer_scale1.lambda1", "layer_scale2.lambda1"))],
)
def test_layer_scale_is_measured(case, factors):
    model = tiny_model(case)
    groups = find_groups(model)
    joins = find_course(model, groups, tiny_batch(model)).joins
    for group in groups:
        path = factors[0] if group.role == "heads" else factors[1]
        expected = attribute(model, f"{groups.layers[group.layer]}.{path}")
        torch.testing.assert_close(joins[group.consumer].scale, expected.detach(), atol=1e-6, rtol=1e-6)


class Layer(nn.Module):
    """A sublayer of 6 neurons, between tokens of 8 channels, joined to the stream in some way."""

    def __init__(self, join):
        super().__init__()
        self.read, self.write, self.beside = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm, self.last, self.drop = nn.LayerNorm(8), nn.LayerNorm(8), nn.Dropout(0.5)
        self.join = join

    def forward(self, x):
        self.shared = self.beside(x)
        return self.last(self.join(self, x, self.write(self.read(self.norm(x)).relu())))


JOINS = {  # how an output joins -> modules that return the other terms (the stream is only read), and the factor
    "plain": (lambda self, x, out: x + self.drop(out), [set()], 1),
    "in place": (lambda self, x, out: out.clone().add_(x), [set()], 1),
    "in place of the stream": (lambda self, x, out: x.clone().add_(out), None, 1),
    "a factor": (lambda self, x, out: x + out * 0.3, [set()], 0.3),
    "alpha": (lambda self, x, out: torch.add(x, out, alpha=0.5), [set()], 0.5),
    "flattened": (lambda self, x, out: (out.view(-1, 8) + x.view(-1, 8)).view_as(x), [set()], 1),
    "divided": (lambda self, x, out: (out / 4).double().float() + x, [set()], 0.25),
    "another sublayer beside, that ran before": (lambda self, x, out: out + self.shared + x, [{"beside"}, set()], 1),
    "another sublayer beside, that runs later": (lambda self, x, out: out + self.beside(x) + x, [set()], 1),
    "the stream and another sublayer first": (lambda self, x, out: (self.shared + x) + out, [{"beside"}, set()], 1),
    "normalised": (lambda self, x, out: x + self.norm(out), None, None),
    "a factor for each token": (lambda self, x, out: x + out * x.mean(-1, keepdim=True), None, None),
    "tokens in another order": (lambda self, x, out: x + out.roll(1, 1), None, None),
    "a stream that is scaled": (lambda self, x, out: 0.5 * x + out, None, None),
    "no sum": (lambda self, x, out: torch.cat([x[..., :4], out[..., :4]], -1), None, None),
}


@pytest.mark.parametrize("case", JOINS)
@torch.no_grad()
def test_sums_of_all_kinds(case):
    join, paths, factor = JOINS[case]
    layer = Layer(join)
    x = torch.randn(2, 5, 8)
    residual = SimpleNamespace(windowed=False)
    group = SimpleNamespace(
        key="layer.neurons", consumers=[Consumer("write")], producers=[Producer("read")], residual=residual
    )
    joins = find_course(layer.eval(), [group], {"x": x}).joins
    if paths is None:
        assert not joins
        return
    found = joins["write"]
    assert [{place.path for place in places if place.argument is None} for places in found.terms] == paths
    if factor == 1:
        assert found.scale is None
    else:
        torch.testing.assert_close(found.scale.expand(8), torch.full((8,), factor))
    written = layer.write(torch.randn(2, 5, 6))
    terms = [torch.randn(2, 5, 8) for _ in paths]
    torch.testing.assert_close(found.stream(terms, written), factor * written + sum(terms))


def test_an_output_that_is_the_same_for_all_tokens_tells_no_factor():
    layer = Layer(lambda self, x, out: x + self.norm(out)).eval()
    nn.init.zeros_(layer.write.weight)
    residual = SimpleNamespace(windowed=False)
    group = SimpleNamespace(key="a", consumers=[Consumer("write")], producers=[Producer("read")], residual=residual)
    assert not find_course(layer, [group], {"x": torch.randn(2, 5, 8)}).joins


def test_parallel_sublayers_add_to_one_stream():
    """GPT-NeoX adds its attention and its MLP to the stream at once: each is refitted to what is known by then."""
    sizes = {name: size for name, size in SHAPE.items() if name != "num_labels"}
    model = tr.GPTNeoXModel(tr.GPTNeoXConfig(use_parallel_residual=True, **sizes)).eval()
    consumers = {"heads": "layers.1.attention.dense", "neurons": "layers.1.mlp.dense_4h_to_h"}
    producers = {"heads": "layers.1.attention.query_key_value", "neurons": "layers.1.mlp.dense_h_to_4h"}
    residual = SimpleNamespace(windowed=False)
    groups = [
        SimpleNamespace(
            key=role,
            consumers=[Consumer(path)],
            producers=[Producer(producers[role])],
            residual=residual,
            role=role,
        )
        for role, path in consumers.items()
    ]
    joins = find_course(model, groups, tiny_batch(tiny_model())).joins
    assert [len(joins[path].terms) for path in consumers.values()] == [1, 2]
    attention = {place.path for places in joins[consumers["neurons"]].terms for place in places}
    assert "layers.1.attention.dense" in attention
