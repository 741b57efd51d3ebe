"""Dual models: pairs of images and texts as calibration data, and what is particular to two towers."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset, Features, Value
from pictures import IMAGES, image_processor
from tiny import output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from torch.utils.data import DataLoader
from transformers import CLIPModel
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.pricing.macs import cost_tables

COUNT = len(IMAGES)
PAIRS = list(zip(IMAGES, TEXTS[:COUNT], strict=True))
PROCESSOR = SimpleNamespace(  # as CLIP's, of which both are parts
    tokenizer=word_tokenizer(), image_processor=image_processor()
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("clip")


def _processed(padding="longest"):
    texts = PROCESSOR.tokenizer(TEXTS[:COUNT], padding=padding, max_length=16, return_tensors="pt")
    return {**texts, **PROCESSOR.image_processor(images=IMAGES, return_tensors="pt")}


def _rows(encoded=None):
    encoded = encoded or _processed()
    return [{name: value[row] for name, value in encoded.items()} for row in range(COUNT)]


def _dataset():
    features = Features({"image": datasets.Image(), "caption": Value("string")})
    return Dataset.from_dict({"image": IMAGES, "caption": TEXTS[:COUNT]}, features=features)


def _pairs_in(batches):
    """Each image with its text, in an order of their own."""
    found = []
    for batch in batches:
        for pixels, ids, mask in zip(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], strict=True):
            found.append((float(pixels.double().sum()), ids[mask.bool()].tolist()))
    return sorted(found)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PAIRS,
        lambda: iter(PAIRS),
        lambda: [{"image": image, "text": text} for image, text in PAIRS],
        _dataset,
        _processed,
        _rows,
        lambda: Dataset.from_dict({name: value.numpy() for name, value in _processed().items()}),
        lambda: DataLoader(_rows(), 5),
    ],
    ids=["pairs", "generator", "dicts", "dataset", "processed", "processed dicts", "processed dataset", "loader"],
)
def test_every_form_keeps_images_with_their_texts(model, make):
    batches = calibration_batches(make(), model, PROCESSOR, batch_size=5)
    (expected,) = (_pairs_in([_processed()]),)
    got = _pairs_in(batches)
    assert [ids for _, ids in got] == [ids for _, ids in expected]
    assert [total for total, _ in got] == pytest.approx([total for total, _ in expected], rel=1e-5)


def test_an_unreadable_image_takes_its_text_along(model, tmp_path, caplog):
    (tmp_path / "broken.png").write_bytes(b"no image")
    pairs = [*PAIRS[:4], (tmp_path / "broken.png", "the cat"), *PAIRS[4:]]
    assert _pairs_in(calibration_batches(pairs, model, PROCESSOR)) == _pairs_in(
        calibration_batches(PAIRS, model, PROCESSOR)
    )
    assert "broken.png" in caplog.text
    with pytest.raises(ValueError, match=r"cannot be read: .*broken\.png"):
        calibration_batches(pairs, model, PROCESSOR, unreadable="stop")
    pairs[4] = (None, "the cat")
    assert len(_pairs_in(calibration_batches(pairs, model, PROCESSOR))) == COUNT
    assert "row 4 (there is none)" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXTS, "'clip' is a model of images, but the calibration data hold text"),
        (IMAGES, "'clip' is a model of pairs, but the calibration data hold an image alone"),
        (
            [{"image": IMAGES[0], "label": 1}],
            r"an image alone, {'image'.*: give pairs \(image, text\), dicts with both",
        ),
        ([(IMAGES[0], 3)], "a sample must be a string, a pair"),
        (DataLoader([{"input_ids": torch.ones(3).long()}]), "the model needs 'pixel_values'"),
        (DataLoader([{"pixel_values": torch.ones(3, 16, 16)}]), "the model needs 'input_ids'"),
    ],
    ids=["texts", "images", "no text column", "no text", "loader of texts", "loader of images"],
)
def test_half_a_pair_is_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, model, PROCESSOR)


@pytest.mark.parametrize("model_type", ["siglip", "siglip_text_model"])
def test_siglips_texts_are_filled_up_to_the_full_length(model_type):
    """As `padding="max_length"` does: the text tower reads the last token, and was trained so, without a mask."""
    model = tiny_model(model_type)
    data = PAIRS if model_type == "siglip" else TEXTS[:COUNT]
    encoded = _processed("max_length")
    for given in (data, _rows(encoded)):
        batches = calibration_batches(given, model, PROCESSOR, batch_size=5)
        assert all("attention_mask" not in batch for batch in batches)
        got = torch.cat([batch["input_ids"] for batch in batches])
        assert sorted(got.tolist()) == sorted(encoded["input_ids"].tolist())


def test_each_tower_has_tokens_and_costs_of_its_own(model):
    batch = tiny_batch(model)
    real = token_masks(model, batch)
    assert {stack: tuple(mask.shape) for stack, mask in real.items()} == {"vision": (3, 17), "text": (3, 14)}
    assert real["vision"].all()
    assert torch.equal(real["text"], batch["attention_mask"].bool())
    costs = cost_tables(model, find_groups(model), 10)
    assert float(costs["vision.0.neurons"][1]) == 17 * 2 * 32
    assert float(costs["text.0.neurons"][1]) == 10 * 2 * 32


@torch.no_grad()
def test_cutting_one_tower_leaves_the_other_alone(model):
    batch = tiny_batch(model)
    cut = tiny_model("clip")
    groups = find_groups(cut)
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    rewrite(cut, groups, masks | random_masks([group for group in groups if group.layer.startswith("text")]))
    dense, pruned = model(**batch), cut(**batch)
    assert torch.equal(dense.image_embeds, pruned.image_embeds)
    assert (dense.text_embeds - pruned.text_embeds).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["free", "uniform"])
def test_from_pairs_to_a_folder(layout, model, tmp_path):
    pruner = OptinPruner(model, word_tokenizer())
    config = OptinConfig(flops=0.7, probes=8, layout=layout)
    pruned = pruner.prune(tiny_samples(40, model=model), config, save_dir=tmp_path)
    batch = tiny_batch(model)
    torch.testing.assert_close(output_of(CLIPModel.from_pretrained(tmp_path), batch), output_of(pruned, batch))
    assert pruner.report.divergence["agreement"] > 0.5
    assert "CLIPModel" in (tmp_path / "README.md").read_text() or "AutoModel" in (tmp_path / "README.md").read_text()
