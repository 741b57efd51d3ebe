"""What must hold of a plain module and of its example inputs, and what is said where it does not."""

import collections

import pytest
import torch
from torch import nn
from toys import Pictures, Transformer

from optimum_optin.models.examples import example_of, forget_example, note_example
from optimum_optin.models.identity import device_of, dtype_of, in_words, main_input_of, type_of
from optimum_optin.models.plain import check_module, named_inputs


class Two(nn.Module):
    """Reads two inputs, and has an option."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, first, second, scale=1.0, *, more=None, **others):
        return scale * self.mix(first + second)


class Nameless(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, *inputs):
        return self.mix(inputs[0])


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_inputs_are_named_as_the_forward_names_them():
    one, two = numbers(3, 4), numbers(3, 5)
    assert named_inputs(Two(), (one, two)) == {"first": one, "second": two}
    assert list(named_inputs(Two(), {"second": two, "first": one})) == ["first", "second"]
    assert list(named_inputs(Two(), {"extra": two, "more": one, "first": one})) == ["first", "more", "extra"]
    assert named_inputs(Two(), one) == {"first": one}
    assert named_inputs(nn.Sequential(nn.Linear(4, 4)), one) == {"input": one}


@pytest.mark.parametrize(
    ("module", "inputs", "said"),
    [
        (Transformer(), {"ids": torch.arange(6)[None]}, "hold 'ids', which Transformer does not take: .* token_ids"),
        (Transformer(), (torch.arange(6)[None], torch.ones(1)), "are 2, which Transformer has no names for"),
        (Nameless(), numbers(1, 4), "are 1, which Nameless has no names for.*a module whose forward names"),
        (Two(), (numbers(1, 4), 0.5), "'second' is float 0.5: what is no tensor of samples belongs into the module"),
        (Two(), (numbers(1, 4), torch.tensor(2.0)), "'second' is a tensor of no dimensions"),
        (Two(), (numbers(2, 4), numbers(1, 4)), r"same number of samples.*first \(2, 4\), second \(1, 4\)"),
        (Two(), {}, "at least one, as first dimension, got none"),
        (Two(), numbers(0, 4), r"at least one, as first dimension, got first \(0, 4\)"),
        (Pictures(), torch.zeros(1, 3, 8, 8), r"constant \(pixels\).*torch\.randn"),
        (Transformer(), torch.ones(1, 7, dtype=torch.long), r"constant \(token_ids\)"),
    ],
)
def test_example_inputs_that_do_not_fit_are_refused(module, inputs, said):
    with pytest.raises(ValueError, match=said):
        named_inputs(module, inputs)


def test_an_input_may_be_constant_beside_one_that_is_not():
    mask = torch.ones(1, 4)
    assert named_inputs(Two(), (numbers(1, 4), mask))["second"] is mask


def test_what_is_no_module_is_refused_with_what_to_give():
    toy = Transformer()
    wrong = {
        "give its .module": nn.DataParallel(toy),
        "give its ._orig_mod": torch.compile(toy),
        r"e\.g\. Transformer\(\)": Transformer,
        "use from_pretrained for a Hub id": "org/name",
        "got list: give the module itself": [toy],
    }
    for said, given in wrong.items():
        with pytest.raises(TypeError, match=said):
            check_module(given)


def test_modules_without_weights_or_values_are_refused():
    with pytest.raises(ValueError, match="ReLU has no weights"):
        check_module(nn.ReLU())
    toy = Transformer()
    toy.blocks[1].up.to("meta")
    with pytest.raises(ValueError, match=r"Transformer\.blocks\.1\.up\.weight is on the meta device"):
        check_module(toy)
    with torch.device("meta"):
        pictures = Pictures()
    with pytest.raises(ValueError, match=r"Pictures\.first\.weight is on the meta device"):
        check_module(pictures)


def test_batch_norms_without_statistics_are_refused_by_name():
    pictures = Pictures()
    pictures.norm2 = nn.BatchNorm2d(12, track_running_stats=False)
    with pytest.raises(ValueError, match=r"norm2 is a BatchNorm2d without running statistics.*others in its batch"):
        check_module(pictures)
    check_module(Pictures())
    pictures.norm2 = nn.InstanceNorm2d(12)  # of each sample by itself
    check_module(pictures)


def test_what_is_asked_of_a_module():
    toy = Transformer().to(torch.bfloat16)
    toy.config = collections.UserDict(model_type="mine")  # nanoGPT's is a dataclass
    note_example(toy, {"token_ids": torch.arange(5)[None]})
    assert (type_of(toy), in_words(toy), main_input_of(toy)) == ("Transformer", "Transformer", "token_ids")
    assert dtype_of(toy) == torch.bfloat16 and device_of(toy).type == "cpu"
    forget_example(toy)
    assert example_of(toy) is None
