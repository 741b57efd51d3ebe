"""What tracing leaves as it was, what it refuses, and what it names."""

import copy

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn

from optimum_optin.tracing import trace
from optimum_optin.tracing.cache import forget


class Block(nn.Module):
    """Two linears with something between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.between = nn.Linear(6, 8), nn.Linear(8, 3), between

    def forward(self, features):
        return self.second(self.between(self.first(features)))


def _state(model):
    """Everything of a model and of PyTorch that a trace might leave changed."""
    configs = {name: vars(module.config).copy() for name, module in model.named_modules() if hasattr(module, "config")}
    return {
        "weights": {
            name: (id(value), value._version, value.tolist())
            for name, value in model.state_dict(keep_vars=True).items()
        },
        "training": {name: module.training for name, module in model.named_modules()},
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "configs": copy.deepcopy(configs),
        "random": torch.get_rng_state().tolist(),
        "global": (
            torch.backends.mha.get_fastpath_enabled(),
            torch.is_grad_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_the_same_afterwards(error):
    model = tiny_model("bert").train()
    model.set_attn_implementation("sdpa")
    before, passes = _state(model), []

    def stop(*_):
        passes.append(1)
        if error and len(passes) >= 60:
            raise error("stop")

    handle = model.bert.encoder.layer[1].register_forward_pre_hook(stop)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            trace(model, tiny_batch(model, samples=1))
    else:
        left_out = trace(model, tiny_batch(model, samples=1)).left_out
        assert any("stops when it is spoilt: stop" in each.reason for each in left_out) == (error is not None)
    handle.remove()
    assert _state(model) == before


class Swallow(nn.Module):
    def forward(self, features):
        return features.nan_to_num()


class Check(nn.Module):
    def forward(self, features):
        if features.isnan().any():
            raise ValueError("no NaN here")
        return features.relu()


class Turn(nn.Module):
    """Rearranges a weight before it is used, in a product that is no plain one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2, 4))

    def forward(self, features):
        return torch.einsum("bi,ijk->bkj", features, self.weight).flatten(1) @ self.weight.permute(2, 1, 0).reshape(
            8, 8
        )


SAMPLE = {"features": torch.linspace(-2, 2, 24).view(4, 6)}


@pytest.mark.parametrize(
    ("between", "reads"),
    [
        (Swallow(), {"second.weight[1] x 1"}),
        (Check(), {"second.weight[1] x 1"}),
        (Turn(), {"between.weight[0] x 1", "second.weight[1] x 1"}),
    ],
    ids=["swallows NaN", "checks for NaN", "rearranges its weight"],
)
def test_roads_that_nan_does_not_take(between, reads):
    (group,) = trace(Block(between).eval(), SAMPLE).groups
    assert group.units == 8 and {str(each) for each in group.writes} == {"first.weight[0] x 1", "first.bias[0] x 1"}
    assert {str(each) for each in group.reads} == reads
    assert all(each.indices.tolist() == [[unit] for unit in range(8)] for each in (*group.writes, *group.reads))


def test_weights_that_change_with_all_that_they_read_are_not_cut():
    class Standard(nn.Module):
        """Every row of its weight is brought to mean 0 before it is used."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, features):
            return features @ (self.weight - self.weight.mean(1, keepdim=True)).t()

    found = trace(Block(Standard()).eval(), SAMPLE)
    assert [[str(each) for each in group.reads] for group in found.groups] == [["second.weight[1] x 1"]]
    (left,) = [each for each in found.left_out if "first.weight[0]" in each.tensors]
    assert "none of its indices is one of the channels read" in left.reason


def test_what_is_no_unit_is_in_no_group():
    found = trace(Block(nn.Sequential(nn.ReLU(), nn.LayerNorm(8))).eval(), SAMPLE)
    assert not found.groups  # the first linear's rows reach all channels at once, and nothing writes the norm's
    assert "between.1.weight[0]" in str(found)
    found = trace(Block(nn.GroupNorm(2, 8)).eval(), SAMPLE)
    assert [(group.units, group.reads[0].indices.tolist()) for group in found.groups] == [
        (2, [[0, 1, 2, 3], [4, 5, 6, 7]])
    ]


class Response(nn.Module):
    """A norm over channels, with a scale and a bias of four dimensions."""

    def __init__(self):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.randn(1, 1, 1, 8)), nn.Parameter(torch.randn(1, 1, 1, 8))

    def forward(self, features):
        return (features / features.norm(dim=-1, keepdim=True) * self.scale + self.bias).flatten(0, 2)


def test_scales_alone_write_no_units_whatever_their_shape():
    found = trace(Block(Response()).eval(), SAMPLE)
    assert not found.groups
    assert any("first.weight[0]" in each.tensors and "all channels" in each.reason for each in found.left_out)


class Heads(nn.Module):
    """Mixes tokens in four heads of two channels, and normalises each head by the same scale."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(2)

    def forward(self, features):
        heads = features.view(-1, 4, 2).transpose(0, 1)
        weights = (heads @ heads.transpose(1, 2)).softmax(-1)
        return self.norm(weights @ heads).transpose(0, 1).flatten(1)


def test_a_scale_that_all_heads_share_is_not_cut_with_them():
    (group,) = trace(Block(Heads()).eval(), SAMPLE).groups
    assert {str(each) for each in (*group.writes, *group.reads)} == {
        "first.weight[0] x 2",
        "first.bias[0] x 2",
        "second.weight[1] x 2",
    }
    assert group.units == 4


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(1))

    def forward(self, features):
        self.total += features.sum()
        return features


@pytest.mark.parametrize("is_stopped", [False, True], ids=["to its end", "interrupted"])
def test_a_state_that_passes_write_is_as_before(is_stopped):
    forget()
    model, passes = Block(Counter()).eval(), []
    total, version = model.between.total, model.between.total._version

    def stop(*_):
        passes.append(1)
        if len(passes) == 9:
            raise KeyboardInterrupt

    if is_stopped:
        model.second.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            trace(model, SAMPLE)
    else:
        assert [group.units for group in trace(model, SAMPLE).groups] == [8]
    assert model.between.total is total and total.tolist() == [0.0] and total._version == version


class Experts(nn.Module):
    """Every token goes to the expert of its largest feature."""

    def __init__(self, count=4):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(count))
        self.router = nn.Linear(6, count)

    def forward(self, features):
        chosen = self.router(features).argmax(-1)
        output = torch.zeros_like(features)
        for number in chosen.unique().tolist():
            output[chosen == number] += self.experts[number](features[chosen == number])
        return {"logits": output, "attentions": output}


def test_experts_that_no_token_goes_to_have_the_groups_of_the_others():
    model = Experts().eval()
    sample = torch.linspace(-2, 2, 6)[None]
    with torch.no_grad():
        only = int(model.router(sample).argmax())
    found = trace(model, {"features": sample}).groups
    assert {group.module: group.like for group in found} == {
        f"experts.{number}": None if number == only else f"experts.{only}" for number in range(4)
    }
    for group in found:
        assert [str(each) for each in (*group.writes, *group.reads)] == [
            f"{group.module}.{name} x 1" for name in ("0.weight[0]", "0.bias[0]", "2.weight[1]")
        ]


class Attention(nn.Module):
    """One layer, which returns its map of attention."""

    def __init__(self, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(6, 36), nn.Linear(12, 6)

    def forward(self, features):
        query, key, value = self.qkv(features).view(1, -1, 3, self.heads, 12 // self.heads).transpose(1, 3).unbind(2)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        return {"logits": self.out((weights @ value).transpose(1, 2).flatten(2)), "attentions": weights}


def test_a_trace_serves_like_models_and_no_others():
    forget()
    sample = {"features": SAMPLE["features"][None]}
    first = trace(Attention(4), sample)
    assert first.passes > 0 and [group.units for group in first.groups] == [4]  # the map of attention bars nothing
    again = trace(Attention(4), sample)
    assert again.passes == 0 and str(again) == str(first)
    other = trace(Attention(2), sample)  # the same shapes, but other heads
    assert other.passes > 0 and [group.units for group in other.groups] == [2]
    assert trace(Attention(4), {"features": SAMPLE["features"][None, :3]}).passes > 0
    hooked = Attention(4)
    hooked.out.register_forward_hook(lambda *_: None)
    assert trace(hooked, sample).passes > 0
    own = Attention(4)
    own.forward = lambda features: {"logits": own.out(own.qkv(features)[..., :12])}
    assert [group.units for group in trace(own, sample).groups] == [12]


def test_models_and_samples_that_cannot_be_traced_are_refused():
    with pytest.raises(ValueError, match="first.weight reads NaN in the sample"):
        trace(Block(nn.ReLU()).eval(), {"features": torch.full((4, 6), torch.nan)})
    with pytest.raises(ValueError, match="first.weight is on the meta device"):
        trace(Block(nn.ReLU()).to("meta"), SAMPLE)
