"""Calibration data of plain modules: tensors, tuples, dicts, batches, images through a callable; what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import Pictures, Transformer, perturbed

from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.modules import check_example, module_tokens
from optimum_optin.models.examples import note_example


class Masked(Transformer):
    """A second input, that need not be given."""

    def forward(self, token_ids, attention_mask=None):
        x = self.embed(token_ids)
        for block in self.blocks:
            x = block(x)
        weights = torch.ones_like(token_ids) if attention_mask is None else attention_mask
        return self.head((self.norm(x) * weights[..., None]).sum(1) / weights.sum(1, keepdim=True))


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pictures():
    module = perturbed(Pictures())
    note_example(module, {"pixels": numbers(2, 3, 8, 8)})
    return module


@pytest.fixture(scope="module")
def texts():
    module = perturbed(Masked())
    note_example(module, {"token_ids": torch.arange(9)[None]})
    return module


def rows(batches):
    """All samples of all batches, in one order."""
    found = [{name: each[place] for name, each in batch.items()} for batch in batches for place in _places(batch)]
    return sorted(({name: each.tolist() for name, each in sample.items()} for sample in found), key=str)


def _places(batch):
    return range(len(next(iter(batch.values()))))


IMAGES = numbers(10, 3, 8, 8)
FORMS = {
    "a tensor": IMAGES,
    "an array": IMAGES.numpy(),
    "a list of tensors": list(IMAGES),
    "a list of arrays": [each.numpy() for each in IMAGES],
    "dicts": [{"pixels": each} for each in IMAGES],
    "dicts with labels": [{"pixels": each, "label": 3, "name": "cat"} for each in IMAGES],
    "a dict of columns": {"pixels": IMAGES, "labels": torch.arange(10)},
    "tuples with labels": [(each, number) for number, each in enumerate(IMAGES)],
    "a data set with labels": TensorDataset(IMAGES, torch.arange(10)),
    "tuples with maps of labels": [(each, torch.zeros(8, 8, dtype=torch.long)) for each in IMAGES],
    "batches": [IMAGES[:4], IMAGES[4:]],
    "batches in dicts": [{"pixels": IMAGES[:4]}, {"pixels": IMAGES[4:]}],
    "a loader of tensors": DataLoader(IMAGES, batch_size=4),
    "a loader with labels": DataLoader(TensorDataset(IMAGES, torch.arange(10)), batch_size=4),
    "a loader of dicts": DataLoader([{"pixels": each} for each in IMAGES], batch_size=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_the_inputs_gives_the_same_samples(form, pictures):
    batches = calibration_batches(FORMS[form], pictures, batch_size=4)
    assert all(list(batch) == ["pixels"] and batch["pixels"].dtype == torch.float32 for batch in batches)
    assert rows(batches) == rows([{"pixels": IMAGES}])


@pytest.mark.parametrize("form", ["a tensor", "batches", "a loader with labels"])
def test_no_more_samples_are_taken_than_were_asked_for(form, pictures):
    batches = calibration_batches(FORMS[form], pictures, batch_size=4, num_samples=5)
    assert sum(len(batch["pixels"]) for batch in batches) == 5


def test_inputs_have_the_types_of_the_example(pictures):
    (batch,) = calibration_batches(IMAGES.double(), pictures, batch_size=16)
    assert batch["pixels"].dtype == torch.float32


def test_samples_of_one_shape_are_put_together_and_none_is_padded(texts):
    samples = [torch.arange(1, length + 1) for length in (5, 7, 5, 7, 7)]
    batches = calibration_batches(samples, texts, batch_size=2)
    assert sorted(tuple(batch["token_ids"].shape) for batch in batches) == [(1, 7), (2, 5), (2, 7)]
    lists = calibration_batches([each.tolist() for each in samples], texts, batch_size=2)
    assert rows(lists) == rows(batches) and lists[0]["token_ids"].dtype == torch.long


def test_several_inputs_come_as_tuples_or_dicts():
    module = perturbed(Masked())
    note_example(module, {"token_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6)})
    ids, masks = torch.arange(24).view(4, 6), torch.ones(4, 6).tril(3)
    tuples = calibration_batches(list(zip(ids, masks, range(4), strict=True)), module, batch_size=4)
    assert rows(tuples) == rows([{"token_ids": ids, "attention_mask": masks}])
    assert rows(calibration_batches({"attention_mask": masks, "token_ids": ids}, module)) == rows(tuples)
    real = module_tokens(module, {"token_ids": ids, "attention_mask": masks})
    assert torch.equal(real["layers"], masks.bool())


def test_tokens_are_what_the_first_layer_gets(texts):
    assert module_tokens(texts, {"token_ids": torch.arange(14).view(2, 7)})["layers"].shape == (2, 7)


def test_places_of_maps_are_tokens(pictures):
    assert module_tokens(pictures, {"pixels": IMAGES})["model"].shape == (10, 64)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"images": IMAGES[0]}], "lack 'pixels', which Pictures reads by its example inputs: they have images"),
        (
            [(IMAGES[0, 0], 1)],
            r"like the example inputs, pixels \(2, 3, 8, 8\), got pixels \(8, 8\)",
        ),
        ([IMAGES[0].long()], "hold int64 for 'pixels'.*reads float32 there"),
        (["a cat"], "hold str for 'pixels', 'a cat', and Pictures reads float32.*processor="),
        ([numbers(4, 8, 8)], r"do not fit: on pixels \(1, 4, 8, 8\), Pictures does not run on pixels"),
        ([IMAGES[0] * float("nan")], "pixels of calibration batch 0 is empty, or NaN or infinite"),
        (DataLoader(IMAGES[0], batch_size=1), r"got pixels \(1, 8, 8\): the first dimension is that of the samples"),
        ([], "calibration data is empty"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, said, pictures):
    with pytest.raises(ValueError, match=said):
        calibration_batches(data, pictures)


def test_nothing_is_guessed_of_what_may_be_an_input(texts):
    ids = torch.arange(9)
    with pytest.raises(ValueError, match=r"takes 'attention_mask' after token_ids.*an input or a label\? Give dicts"):
        calibration_batches([(ids, torch.ones(9))], texts)
    with pytest.raises(ValueError, match="hold 'attention_mask', which Masked takes, but the example inputs do not"):
        calibration_batches([{"token_ids": ids, "attention_mask": torch.ones(9)}], texts)
    assert len(calibration_batches([(ids, 1)], texts)) == 1  # no input of a module is a number


def test_too_few_values_for_several_inputs_are_refused():
    module = perturbed(Masked())
    note_example(module, {"token_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6)})
    with pytest.raises(ValueError, match="reads token_ids, attention_mask.*hold a single value for each sample"):
        calibration_batches([torch.arange(6)], module)


def test_the_largest_index_is_tried_before_work_begins(texts):
    samples = [torch.arange(9) for _ in range(20)]
    samples[13] = samples[13] + 60  # the embedding holds 50
    with pytest.raises(ValueError, match="do not fit: on token_ids .*IndexError"):
        calibration_batches(samples, texts)


def scaled(image):
    """What a transform of torchvision does with an image of Pillow's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def test_a_callable_makes_tensors_of_images(pictures, tmp_path, caplog):
    pillow = pytest.importorskip("PIL.Image")
    arrays = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    images = [pillow.fromarray(each) for each in arrays]
    expected = rows([{"pixels": torch.stack([scaled(each) for each in images])}])
    forms = [
        images,
        [(each, 1) for each in images],
        [{"image": each, "label": 1} for each in images],
        list(arrays),
        [(scaled(each), 1) for each in images],
    ]
    for form in forms:
        assert rows(calibration_batches(form, pictures, scaled)) == expected
    for number, each in enumerate(images):
        each.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    assert rows(calibration_batches(paths, pictures, scaled)) == expected
    (tmp_path / "0.png").write_bytes(b"nothing")
    assert len(rows(calibration_batches(paths, pictures, scaled))) == 3
    with pytest.raises(ValueError, match="cannot be read: .*0.png"):
        calibration_batches(paths, pictures, scaled, unreadable="stop")
    with pytest.raises(ValueError, match="processor="):
        calibration_batches(images, pictures)


def test_a_module_that_does_not_run_or_returns_nothing_is_refused():
    class Silent(Pictures):
        returned = None

        def forward(self, pixels):
            super().forward(pixels)
            return self.returned

    module = Silent()
    note_example(module, {"pixels": numbers(1, 3, 8, 8)})
    for returned in (None, "a cat", {"name": "cat", "count": 3}, torch.tensor(1), torch.tensor(0.5)):
        module.returned = returned
        with pytest.raises(ValueError, match=f"Silent returns {type(returned).__name__} .*without a tensor of"):
            check_example(module)
    for returned in (torch.ones(2), [None, {"logits": torch.ones(2)}]):
        module.returned = returned
        check_example(module)
    note_example(module, {"pixels": numbers(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="Silent does not run on pixels .RuntimeError"):
        check_example(module)


def test_a_forward_that_needs_more_is_named():
    class Needy(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x, weights, bias=None):
            return self.mix(x) * weights

    module = Needy()
    note_example(module, {"x": numbers(2, 4)})
    with pytest.raises(ValueError, match="takes also weights, bias, and cannot do without weights"):
        check_example(module)
