"""Which index reaches which channels, against known arrangements; views of tensors, against what lies in them."""

import pytest
import torch

from optimum_optin.tainting.readers import Reader
from optimum_optin.tainting.tensors import Tensors
from optimum_optin.tracing.relations import confirm, explore

READER = Reader("consumer.weight", 1)


def _head_of(rows):
    """Matrix of rows and channels, from the head of every row; 8 channels a head."""
    return torch.tensor([[channel // 8 == head for channel in range(32)] for head in rows])


EYE = torch.eye(256, dtype=torch.bool)
ARRANGEMENTS = {
    "neurons": EYE,
    "gate and up, one after the other": torch.cat([EYE, EYE]),
    "gate and up in turns": EYE.repeat_interleave(2, 0),
    "three in turns": EYE.repeat_interleave(3, 0),
    "heads": _head_of(row // 8 for row in range(32)),
    "packed heads": _head_of(row // 8 % 4 for row in range(96)),
    "heads of queries, keys and values": _head_of(row // 24 for row in range(96)),
    "heads in turns": _head_of(row % 4 for row in range(32)),
    "no order at all": _head_of((row * row // 3) % 4 for row in range(97)),
}


def _asked(asking, truth, reader=READER):
    """The answer of a generator that asks about an arrangement, and how many passes it took."""
    reached, passes = None, 0
    while True:
        try:
            index = asking.send(reached)
        except StopIteration as stop:
            return stop.value, passes
        mask, passes = truth[index].any(0), passes + 1
        reached = {reader: mask} if mask.any() else {}


def _matrix(found, truth, reader=READER):
    got = torch.zeros_like(truth)
    for run, channel in zip(*found.links.edges[reader], strict=True):
        got[found.runs[run], channel] = True
    return got


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_relations_are_those_of_the_arrangement(name):
    truth = ARRANGEMENTS[name]
    found, passes = _asked(explore("producer.weight", 0, len(truth), []), truth)
    assert torch.equal(_matrix(found, truth), truth)
    assert passes < (110 if len(truth) != 97 else 220)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_known_arrangement_is_confirmed_of_a_like_tensor_and_of_no_other(name):
    known, _ = _asked(explore("layers.0.weight", 0, len(ARRANGEMENTS[name]), []), ARRANGEMENTS[name])
    for other, truth in ARRANGEMENTS.items():
        if len(truth) != len(ARRANGEMENTS[name]):
            continue
        reader = Reader("layers.1.consumer.weight", 1)
        found, passes = _asked(confirm(known, "layers.1.weight", 0), truth, reader)
        if torch.equal(truth, ARRANGEMENTS[name]):
            assert passes == 4 and torch.equal(_matrix(found, truth, reader), truth)
        else:
            assert found is None, other


def test_parts_that_the_model_cuts_are_taken_by_themselves():
    """Gates, inputs, two rows for all channels, and a row for each of 4 heads of 300, as in a state space."""
    heads, each = torch.eye(4, dtype=torch.bool), torch.eye(1200, dtype=torch.bool)
    truth = torch.cat([each, each, torch.ones(2, 1200, dtype=torch.bool), heads.repeat_interleave(300, 1)])
    found, passes = _asked(explore("in.weight", 0, len(truth), [], [0, 1200, 2400, 2402, 2406]), truth)
    got = _matrix(found, truth)
    got[found.links.whole[READER]] = True
    assert torch.equal(got, truth) and passes < 70
    assert _asked(explore("in.weight", 0, len(truth), []), truth)[0] is None  # without the cuts


def test_halves_of_heads_that_are_mixed_with_each_other_are_told_apart():
    """Four heads of 64 rows; row i and row i + 32 of a head reach the same two channels, as rotary values do."""
    truth = torch.zeros(256, 256, dtype=torch.bool)
    for row in range(256):
        other = row + 32 if row % 64 < 32 else row - 32
        truth[row, [row, other]] = True
    found, passes = _asked(explore("value.weight", 0, 256, [64]), truth)
    assert torch.equal(_matrix(found, truth), truth) and passes < 70


def test_what_follows_no_order_is_given_up():
    torch.manual_seed(0)
    assert _asked(explore("producer.weight", 0, 1100, []), torch.rand(1100, 64) < 0.5)[0] is None


@pytest.mark.parametrize(
    ("view", "axis"),
    [
        (lambda t: t.transpose(0, 2), 0),
        (lambda t: t[:, 2:5], 1),
        (lambda t: t[3], 1),
        (lambda t: t.view(6, 40), 1),
        (lambda t: t.view(30, 8), 0),
        (lambda t: t.unsqueeze(0).expand(2, -1, -1, -1), 2),
    ],
    ids=["transposed", "a part", "one of a list", "two in one", "the first two in one", "expanded"],
)
def test_axes_of_views(view, axis):
    model = torch.nn.Module()
    model.register_parameter("weight", torch.nn.Parameter(torch.arange(240.0).view(6, 5, 8)))
    seen = view(model.weight.detach())
    found = Tensors(model).axis(seen, axis)
    assert found.tensor == "weight" and found.count == seen.shape[axis]
    for dim in found.dims:
        chosen = torch.tensor([0, 2])
        spoilt = model.weight.detach().clone().index_fill_(dim, chosen, torch.nan)
        expected = view(spoilt).isnan().movedim(axis, 0).flatten(1).any(1)
        assert torch.equal(found.touched(dim, chosen), expected)


def test_a_copy_is_no_view():
    model = torch.nn.Linear(4, 4)
    tensors = Tensors(model)
    assert tensors.name_of(model.weight.t()) == "weight"
    assert tensors.name_of(model.weight.clone()) is None
    assert tensors.axis(model.weight.detach().t().reshape(-1), 0) is None
