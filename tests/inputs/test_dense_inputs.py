"""Calibration images of segmenters and detectors: their processors, padding, labels beside the images, maps."""

import numpy as np
import pytest
import torch
import transformers as tr
from datasets import Dataset
from dense import LABELS, QUERIES, dense_model, images
from PIL import Image
from torch.utils.data import DataLoader

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens, probe_batch
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.media.padding import real_image_tokens
from optimum_optin.media.vision import image_tokens, tokens_of_stacks
from optimum_optin.passes.hooks import observed


def _photo(height, width, seed=0):
    """An image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _map(height=40, width=50):
    """A map of labels: two areas and a strip without a label."""
    ids = np.zeros((height, width), dtype=np.uint8)
    ids[:, 20:], ids[:3] = 2, 255
    return Image.fromarray(ids)


def _detr_processor(**settings):
    return tr.DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, **settings)


@pytest.fixture(scope="module")
def detr():
    return dense_model("detr")


@pytest.fixture(scope="module")
def segformer():
    return dense_model("segformer")


def test_processor_of_segformer(segformer):
    processor = tr.SegformerImageProcessor(size={"height": 32, "width": 32})
    photos = [_photo(40, 50), _photo(30, 20, seed=1), _photo(64, 64, seed=2)]
    (batch,) = calibration_batches(photos, segformer, processor)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"pixel_values": (3, 3, 32, 32)}


def test_images_of_different_sizes_are_padded_for_a_detector(detr):
    photos = [_photo(40, 60), _photo(60, 40, seed=1), _photo(50, 50, seed=2), _photo(40, 60, seed=3)]
    batches = calibration_batches(photos, detr, _detr_processor(), batch_size=3)
    shapes = [tuple(batch["pixel_values"].shape) for batch in batches]
    assert sorted(shapes) == [(1, 3, 48, 32), (3, 3, 32, 48)]
    batch = next(batch for batch in batches if len(batch["pixel_values"]) == 3)
    sums = batch["pixel_mask"].flatten(1).sum(1).tolist()
    assert sorted(sums) == [32 * 32, 32 * 48, 32 * 48]
    narrow = sums.index(32 * 32)
    assert (batch["pixel_mask"][narrow, :, :32] == 1).all() and (batch["pixel_mask"][narrow, :, 32:] == 0).all()
    assert (batch["pixel_values"][narrow, :, :, 32:] == 0).all()


def test_images_of_different_sizes_share_no_batch_where_padding_cannot_be_said():
    model = dense_model("yolos")
    processor = tr.YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, do_pad=True)
    photos = [_photo(40, 60), _photo(40, 40, seed=1), _photo(40, 60, seed=2)]
    batches = calibration_batches(photos, model, processor)
    assert sorted(tuple(batch["pixel_values"].shape) for batch in batches) == [(1, 3, 32, 32), (2, 3, 32, 48)]
    assert all(set(batch) == {"pixel_values"} for batch in batches)


def test_processor_that_pads_to_a_multiple_tells_so():
    model = dense_model("mask2former")
    processor = tr.Mask2FormerImageProcessor(size={"shortest_edge": 40, "longest_edge": 64}, size_divisor=32)
    from optimum_optin.media.images import image_batches

    (batch,) = image_batches({0: _photo(40, 50)}, model, processor, batch_size=2)
    assert batch["pixel_mask"].shape == batch["pixel_values"].shape[:1] + batch["pixel_values"].shape[2:]


def test_tokens_of_every_stack(detr):
    """Brute force: what the first layer of each stack is called with."""
    seen = {}
    for stack, path in (("encoder", "model.encoder.layers.0"), ("decoder", "model.decoder.layers.0")):
        with observed(detr, [path], stop_after=path) as passed, torch.no_grad():
            detr(pixel_values=images(1, 48, 64))
        seen[stack] = passed[path].input.shape[1]
    counted = tokens_of_stacks(detr, {"pixel_values": images(2, 48, 64)})
    assert seen == {"encoder": 6 * 8, "decoder": QUERIES}
    assert {stack: counted[stack] for stack in seen} == seen
    assert counted["backbone"] == 12 * 16  # the first stage, at a quarter of the size


def test_padded_tokens_of_an_encoder_are_those_that_attention_leaves_out(detr):
    mask = torch.ones(3, 48, 64, dtype=torch.long)
    mask[1, :, 40:], mask[2, 24:] = 0, 0
    batch = {"pixel_values": images(3, 48, 64), "pixel_mask": mask}
    seen = []
    layer = detr.model.encoder.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("attention_mask", *args[1:2])), with_kwargs=True
    )
    with torch.no_grad():
        detr(**batch)
    handle.remove()
    (given,) = seen
    masked = given[:, 0, 0] == 0 if given.is_floating_point() else given[:, 0, 0]
    found = real_image_tokens(detr, batch, "encoder")
    assert torch.equal(found, masked)
    assert 0 < int(found[1].sum()) < found.shape[1]
    masks = token_masks(detr, batch)
    assert masks["decoder"].all() and masks["decoder"].shape == (3, QUERIES)
    assert masks["backbone"].all() and masks["backbone"].shape == (3, 12 * 16)
    assert torch.equal(masks["encoder"], found)


def test_a_mask_that_a_model_does_not_use_hides_no_tokens():
    model = dense_model("mask2former")
    from optimum_optin.media import padding

    mask = torch.ones(1, 32, 32, dtype=torch.long)
    mask[:, 16:] = 0
    assert padding._find_masked(model, {"pixel_values": images(1), "pixel_mask": mask}) == frozenset()


def test_labels_in_batches_are_left_out_and_masks_are_kept(detr):
    def collate(rows):
        labels = [{"class_labels": torch.tensor([1]), "boxes": torch.rand(1, 4)} for _ in rows]
        mask = torch.ones(len(rows), 32, 32, dtype=torch.long)
        return {"pixel_values": images(len(rows)), "pixel_mask": mask, "labels": labels}

    (batch,) = calibration_batches(DataLoader(range(3), batch_size=3, collate_fn=collate), detr)
    assert set(batch) == {"pixel_values", "pixel_mask"}
    model = dense_model("mask2former")

    def collate_masks(rows):
        masks = [torch.zeros(2, 32, 32) for _ in rows]
        return {"pixel_values": images(len(rows)), "mask_labels": masks, "class_labels": [torch.tensor([0, 1])] * 2}

    from optimum_optin.inputs.encoding import model_inputs

    assert set(model_inputs(collate_masks(range(2)), model)) == {"pixel_values"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda mask: mask[:, :16], "must have the shape of pixel_values without channels, .*got"),
        (lambda mask: mask * 0, "all padding by its pixel_mask"),
    ],
    ids=["shape", "all padding"],
)
def test_masks_that_do_not_fit_are_named(detr, change, problem):
    batch = {"pixel_values": images(2), "pixel_mask": change(torch.ones(2, 32, 32, dtype=torch.long))}
    with pytest.raises(ValueError, match=problem):
        calibration_batches(DataLoader([batch], batch_size=None), detr)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 50)], ids=str)
def test_images_that_a_pyramid_does_not_divide(segformer, size):
    (batch,) = calibration_batches([{"pixel_values": image} for image in images(2, *size)], segformer)
    tokens = -(-size[0] // 4) * -(-size[1] // 4)
    assert image_tokens(segformer, batch) == mean_tokens([batch], segformer) == tokens
    assert image_tokens(segformer, probe_batch(segformer, tokens)) == tokens


def test_mean_tokens_are_those_of_an_image(detr):
    batches = [{"pixel_values": images(count, *size)} for count, size in ((3, (32, 48)), (1, (64, 64)))]
    assert mean_tokens(batches, detr) == 8 * 12  # the mean of 96, 96, 96 and 256 is 136
    assert image_tokens(detr, probe_batch(detr, 96)) == 96


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_a_map_of_labels_is_no_image(segformer, tmp_path, mode):
    processor = tr.SegformerImageProcessor(size={"height": 32, "width": 32})
    path = tmp_path / "scene.png"
    _map().convert(mode).save(path) if mode != "P" else _palette(path)
    with pytest.raises(ValueError, match="scene.png is a map of labels .*give the images themselves"):
        calibration_batches([str(path)], segformer, processor)


def _palette(path):
    indexed = Image.frombytes("P", _map().size, _map().tobytes())
    indexed.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    indexed.save(path)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.random.default_rng(0).integers(0, LABELS, (40, 40), dtype=np.uint8)),  # noise, no areas
        Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[:, None] * 6, 40, axis=1)),  # more than ids
        Image.fromarray(np.where(np.arange(40) < 9, 0, 255).astype(np.uint8)[:, None].repeat(40, 1)),  # a scan
        Image.new("L", (40, 40), 3),
    ],
    ids=["dark noise", "gradient", "black and white", "one colour"],
)
def test_grey_images_are_images(segformer, image):
    processor = tr.SegformerImageProcessor(size={"height": 32, "width": 32})
    assert calibration_batches([image], segformer, processor)


def test_a_classifier_takes_maps_as_images():
    from tiny import tiny_model

    processor = tr.ViTImageProcessor(size={"height": 16, "width": 16})
    assert calibration_batches([_map()], tiny_model("vit"), processor)


def test_columns_of_maps_beside_images(segformer):
    processor = tr.SegformerImageProcessor(size={"height": 32, "width": 32})
    pairs = Dataset.from_dict({"scene": [_photo(40, 50)], "annotation": [_map()]})
    (batch,) = calibration_batches(pairs, segformer, processor)
    assert batch["pixel_values"].std() > 0.5
    with pytest.raises(ValueError, match="no images but those of 'annotation', which are maps of labels"):
        calibration_batches(pairs.select_columns("annotation"), segformer, processor)


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton", "exact"])
def test_a_segmenter_is_pruned_by_its_pixels(segformer, scorer):
    pruner = OptinPruner(segformer)
    config = OptinConfig(flops=0.6, probes=8, rows=8, scorer=scorer)
    scores = pruner.score([{"pixel_values": image} for image in images(8)], config)
    assert set(scores.terms) == {"trajectory", "output"}
    pruned = pruner.prune(scores=scores, config=config, calibration=[{"pixel_values": image} for image in images(8)])
    assert pruner.report.divergence["agreement"] > 0.3
    assert pruned(images(1)).logits.shape == (1, LABELS, 8, 8)
