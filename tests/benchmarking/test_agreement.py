"""What a form of a model returns, beside eager mode: garbage is wrong, rounding is not."""

import pytest
import torch

from optimum_optin.benchmarking.agreement import Tolerance, agreement_of

TOLERANCE = Tolerance(distance=0.1, agreement=0.9)
IDS = torch.arange(40).view(20, 2)
LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def compared(expected, found, batch=None, tolerance=TOLERANCE):
    batch = batch or {"input_ids": IDS}
    return agreement_of(lambda _: expected, lambda _: found, [batch], tolerance)


def test_equal_outputs_agree():
    found = compared({"logits": LOGITS}, {"logits": LOGITS.clone()})
    assert (found.distance, found.agreement, found.wrong) == (0.0, 1.0, None)


def test_the_distance_is_a_share_of_what_the_outputs_are():
    noise = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    noise -= noise.mean(1, keepdim=True)
    size = (LOGITS - LOGITS.mean(1, keepdim=True)).norm() / noise.norm()
    found = compared({"logits": LOGITS}, {"logits": LOGITS + 0.02 * size * noise})
    assert found.distance == pytest.approx(0.02, rel=1e-4) and found.wrong is None
    found = compared({"logits": LOGITS}, {"logits": LOGITS + 0.5 * size * noise})
    assert found.wrong == "outputs differ by 0.5 of what they are, more than 0.1"


def test_what_all_classes_have_in_common_does_not_count():
    found = compared({"logits": LOGITS}, {"logits": LOGITS + 100})
    assert found.distance == pytest.approx(0, abs=1e-4) and found.wrong is None


def test_what_all_tokens_have_in_common_hides_nothing():
    states = torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(0))
    shuffled = states[torch.arange(19, -1, -1)]
    found = compared({"last_hidden_state": states + 100}, {"last_hidden_state": shuffled + 100})
    assert found.distance > 1 and found.agreement is None and "outputs differ" in found.wrong


@pytest.mark.parametrize(("flipped", "wrong"), [(2, None), (3, "the same class for 85.0% only, less than 90%")])
def test_flips_are_counted(flipped, wrong):
    logits = torch.zeros(20, 2) + torch.tensor([1.0, 0.0])
    other = logits.clone()
    other[:flipped] = torch.tensor([0.0, 1.0])
    assert compared({"logits": logits}, {"logits": other}, tolerance=Tolerance(10.0, 0.9)).wrong == wrong


def test_one_row_may_be_a_tie():
    logits = torch.tensor([[1.0, 0.999], [1.0, 0.0]])
    other = torch.tensor([[0.999, 1.0], [1.0, 0.0]])
    assert compared({"logits": logits}, {"logits": other}, {"input_ids": IDS[:2]}).wrong is None


def test_padding_does_not_count():
    logits = torch.randn(20, 2, 4, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[3, 1] = 1e6
    mask = torch.ones_like(IDS)
    assert "outputs differ" in compared({"logits": logits}, {"logits": other}, {"input_ids": IDS}).wrong
    mask[3, 1] = 0
    found = compared({"logits": logits}, {"logits": other}, {"input_ids": IDS, "attention_mask": mask})
    assert (found.distance, found.agreement, found.wrong) == (0.0, 1.0, None)


def test_answers_start_at_real_tokens():
    logits = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, -1.0]])
    other = torch.tensor([[1.0, 0.0, 2.0], [1.0, 0.0, 5.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": mask}
    assert compared({"start_logits": logits}, {"start_logits": other}, batch).agreement == 1.0


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"logits": LOGITS * float("nan")}, "logits is not finite"),
        ({"logits": LOGITS[:, :3]}, "logits has another shape"),
        ({"scores": LOGITS}, "it returns nothing that is called logits"),
        ({"logits": torch.zeros_like(LOGITS)}, "outputs differ by 1 of what they are, more than 0.1"),
    ],
)
def test_garbage_is_wrong(found, wrong):
    assert compared({"logits": LOGITS}, found).wrong == wrong
