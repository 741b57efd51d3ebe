"""What a ReLU reads alone is told from what something else reads as well."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optimum_optin.architectures.group import Consumer, Producer
from optimum_optin.passes.course import find_course


class Block(nn.Module):
    """Two convolutions, the first with a batch norm behind it, and something that is made of what they write."""

    def __init__(self, end):
        super().__init__()
        self.read, self.norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.write, self.beside, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.end = end

    def forward(self, x):
        return self.last(self.end(self, x, self.write(F.gelu(self.norm(self.read(x))))))


ENDS = {
    "a ReLU": (lambda self, x, out: F.relu(out), True),
    "a ReLU in place": (lambda self, x, out: F.relu_(out), True),
    "a ReLU6": (lambda self, x, out: F.relu6(out), True),
    "a ReLU behind the sum": (lambda self, x, out: F.relu(x + out), True),
    "a ReLU in place behind the sum": (lambda self, x, out: out.add_(x).relu_(), True),
    "a ReLU behind a sum whose other term comes later": (lambda self, x, out: F.relu(out + self.beside(x)), True),
    "a ReLU behind several sums": (lambda self, x, out: F.relu(x + out + x.clone()), False),
    "a ReLU, and the sum is the stream": (lambda self, x, out: x + out + self.beside(F.relu(x + out)), False),
    "a ReLU, and another reader": (lambda self, x, out: F.relu(out) * out, False),
    "another reader, and a ReLU": (lambda self, x, out: out.square() + F.relu(out), False),
    "a sum behind the ReLU": (lambda self, x, out: x + F.relu(out), True),
    "a ReLU behind a factor": (lambda self, x, out: F.relu(0.5 * out), False),
    "limits on both sides": (lambda self, x, out: F.hardtanh(out), False),
    "another activation": (lambda self, x, out: F.silu(x + out), False),
    "none": (lambda self, x, out: x + out, False),
}


def group_of(**paths):
    residual = SimpleNamespace(windowed=False)
    return SimpleNamespace(key="layer.channels", residual=residual, **paths)


@pytest.mark.parametrize("case", ENDS)
@torch.no_grad()
def test_what_a_consumer_writes(case):
    end, expected = ENDS[case]
    group = group_of(consumers=[Consumer("write")], producers=[Producer("read", norm="norm")])
    course = find_course(Block(end).eval(), [group], {"x": torch.randn(2, 4, 5, 5)})
    assert course.rectified == ({"write"} if expected else set())


@torch.no_grad()
def test_what_a_producer_writes_behind_its_norm():
    class Rectified(Block):
        def forward(self, x):
            return self.write(F.relu(self.norm(self.read(x))))

    group = group_of(consumers=[Consumer("write")], producers=[Producer("read", norm="norm")])
    course = find_course(Rectified(None).eval(), [group], {"x": torch.randn(2, 4, 5, 5)})
    assert course.rectified == {"read"}


@torch.no_grad()
def test_what_runs_twice_is_not_told():
    class Twice(Block):
        def forward(self, x):
            return F.relu(self.write(F.relu(self.write(x.repeat(1, 2, 1, 1)[:, :6])).repeat(1, 2, 1, 1)[:, :6]))

    group = group_of(consumers=[Consumer("write")], producers=[])
    assert not find_course(Twice(None).eval(), [group], {"x": torch.randn(2, 4, 5, 5)}).rectified
