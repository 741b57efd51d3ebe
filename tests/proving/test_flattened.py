"""Networks that read all tokens as rows, as OPT's do: proved, scored and refitted as others, if these are in order."""

import copy

import pytest
import torch
import torch.nn.functional as F
from decoders import generator
from toys import Block, Transformer, perturbed

from optimum_optin import OptinConfig, check_architecture, find_groups
from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.surgery import rewrite
from optimum_optin.models.examples import note_example
from optimum_optin.passes.calibration import calibrate
from optimum_optin.readiness import proved_groups
from optimum_optin.scoring.scores import score


class Flat(Block):
    """Its feed-forward network reads rows: those of a sample after another's, or of a token after another's."""

    turned = False

    def forward(self, x):
        between = (lambda rows: rows.transpose(0, 1)) if self.turned else (lambda rows: rows)
        batch, tokens, _ = x.shape
        written = (part(self.norm1(x)) for part in (self.q, self.k, self.v))
        q, k, v = (each.view(batch, tokens, self.heads, -1).transpose(1, 2) for each in written)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1))
        rows = between(self.norm2(x))
        shape, rows = rows.shape, rows.reshape(-1, rows.shape[-1])
        return x + between(self.down(F.gelu(self.up(rows))).view(shape))


class Turned(Flat):
    """The same, token by token."""

    turned = True


def model_of(block):
    torch.manual_seed(0)
    model = perturbed(Transformer()).eval()
    for each in model.blocks:
        each.__class__ = block
    return model


def batches(count):
    drawn = torch.Generator().manual_seed(1)
    return [{"token_ids": torch.randint(50, (4, 9), generator=drawn)} for _ in range(count)]


def pruned(model):
    """Scores of a model, and a copy without half of its neurons, refitted."""
    sample = {name: value[:1] for name, value in batches(1)[0].items()}
    note_example(model, sample)
    proof = check_architecture(model, sample)
    assert proof.proved, str(proof)
    groups, calibration = find_groups(model, sample), calibrate(model, batches(10))
    terms = score(model, groups, calibration, OptinConfig()).terms
    neurons = groups.of_role("neurons")
    copied = copy.deepcopy(model)
    masks = {group.key: group.every_other() for group in neurons}
    rewrite(copied, neurons, masks)
    compensate(model, copied, neurons, calibration, masks=masks)
    return terms, copied


def test_rows_of_samples_are_tokens():
    found, expected = pruned(model_of(Flat)), pruned(model_of(Block))
    for term, by_group in expected[0].items():
        for key, scores in by_group.items():
            torch.testing.assert_close(found[0][term][key], scores, rtol=1e-3, atol=1e-9)
    for name, weight in expected[1].state_dict().items():
        torch.testing.assert_close(found[1].state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_rows_in_another_order_are_refused():
    """With one sample, both orders are one."""
    proof = check_architecture(model_of(Turned), {name: value[:1] for name, value in batches(1)[0].items()})
    reasons = proof.reasons(refits=True)
    assert set(reasons) == {"layers.0.neurons", "layers.1.neurons"}
    assert "sample by sample" in reasons["layers.0.neurons"]


@pytest.mark.parametrize("name", ["opt", "mpt"])
def test_neurons_of_every_layer_are_proved(name):
    keys = {group.key for group in proved_groups(generator(name), OptinConfig())}
    assert {f"layers.{layer}.{role}" for layer in range(3) for role in ("heads", "neurons")} <= keys
