"""What an output is added to, where that is made after it, against what the forward computes."""

import pytest
import torch
import transformers as tr
from torch import nn
from toys import Stage, perturbed

from optimum_optin import OptinPruner, find_groups
from optimum_optin.passes.course import find_course
from optimum_optin.passes.hooks import observed
from optimum_optin.passes.lookahead import late_term


@torch.no_grad()
def test_a_shortcut_that_no_module_computes():
    model = OptinPruner.from_model(perturbed(Stage(4, 8, 2)), {"x": torch.randn(2, 4, 6, 6)}).model
    groups = find_groups(model)
    (group,) = groups
    batch = {"x": torch.randn(3, 4, 6, 6)}
    join = find_course(model, groups, batch).joins["conv2"]
    assert join.is_late
    term = late_term(model, batch, group.consumers[0], join)
    expected = nn.functional.pad(batch["x"][:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
    torch.testing.assert_close(term, expected)
    written = torch.randn(3, 9, 8)  # a map of 3 x 3 places
    torch.testing.assert_close(join.stream([term], written), written + expected.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_a_projection_that_runs_later():
    config = tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
    model = perturbed(tr.ResNetForImageClassification(config))
    groups, batch = find_groups(model), {"pixel_values": torch.randn(2, 3, 32, 32)}
    joins = find_course(model, groups, batch).joins
    late = {path for path, join in joins.items() if join.is_late}
    block = "resnet.encoder.stages.1.layers.0"
    assert late == {f"{block}.layer.1.convolution"}
    (consumer,) = (each for group in groups for each in group.consumers if each.path in late)
    with observed(model, [f"{block}.shortcut"]) as seen:
        model(**batch)
    term = late_term(model, batch, consumer, joins[consumer.path])
    torch.testing.assert_close(term, seen[f"{block}.shortcut"].output)


LATE = {  # what a block makes of its input, and of what its last convolution writes
    "a stream that is scaled": (lambda x, written: 0.5 * x + written, True),
    "in place": (lambda x, written: (0.5 * x).add_(written), True),
    "an output that is scaled as well": (lambda x, written: 0.5 * x + 2 * written, False),
    "a share of the output": (lambda x, written: torch.add(0.5 * x, written, alpha=0.5), False),
    "something that is made of the output": (lambda x, written: written.square() + written, False),
    "an output that is read before": (lambda x, written: x * written.mean() + written, False),
    "two sums": (lambda x, written: 0.5 * x + written + x.flip(1), False),
}


@pytest.mark.parametrize("case", LATE)
@torch.no_grad()
def test_what_is_late_is_read_by_its_sum_alone(case):
    end, late = LATE[case]

    class Ended(Stage):
        def forward(self, x):
            return end(x, self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).tanh()

    model = OptinPruner.from_model(perturbed(Ended(8, 8, 1)), {"x": torch.randn(2, 8, 6, 6)}).model
    joins = find_course(model, find_groups(model), {"x": torch.randn(2, 8, 6, 6)}).joins
    assert ("conv2" in joins and joins["conv2"].is_late) == late


class Fickle(Stage):
    """Adds its shortcut to small images alone."""

    def forward(self, x):
        written = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (written if x.shape[-1] > 6 else 0.5 * x + written).relu()


@torch.no_grad()
def test_a_sum_that_does_not_come_is_named():
    model = OptinPruner.from_model(perturbed(Fickle(8, 8, 1)), {"x": torch.randn(2, 8, 6, 6)}).model
    groups = find_groups(model)
    join = find_course(model, groups, {"x": torch.randn(2, 8, 6, 6)}).joins["conv2"]
    with pytest.raises(ValueError, match="its output is not added to what"):
        late_term(model, {"x": torch.randn(2, 8, 8, 8)}, groups[0].consumers[0], join)
