"""What is compared of segmenters, detectors and estimators of depth: against maps that are read pixel by pixel."""

import pytest
import torch
from dense import LABELS, QUERIES, SIZE, dense_model, images

from optimum_optin.comparing.losses import BINARY, CATEGORICAL, REAL
from optimum_optin.comparing.pixels import _MOST, at_pixels, drawn_pixels
from optimum_optin.comparing.queries import BOXES, MASKS
from optimum_optin.passes.outputs import compared_output

ROWS = torch.tensor([3, 5, 21])


def _all_real(samples):
    return {"pixel_values": torch.zeros(samples, 3, 4, 4)}


def test_all_pixels_of_a_small_map_are_compared_once():
    assert torch.equal(drawn_pixels(_all_real(2), ROWS, (3, 5)), torch.arange(15).expand(2, -1))


def test_of_a_large_map_one_pixel_of_each_run_is():
    height, width = 80, 61
    pixels = drawn_pixels(_all_real(3), ROWS, (height, width))
    assert pixels.shape == (3, _MOST)
    run = height * width / _MOST
    for sample in pixels.tolist():
        assert all(int(run * place) <= pixel <= run * (place + 1) for place, pixel in enumerate(sample))
    assert not torch.equal(pixels[0], pixels[1]), "drawn for each sample"


def test_the_same_pixels_are_drawn_again_and_others_for_other_tokens():
    draws = [drawn_pixels(_all_real(2), rows, (64, 64)) for rows in (ROWS, ROWS.clone(), ROWS + 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("size", [(6, 8), (96, 64)], ids=["few", "many"])
def test_padding_is_never_drawn(size):
    mask = torch.zeros(3, *size, dtype=torch.long)
    mask[0], mask[1, : size[0] // 2, :5], mask[2, :1, :1] = 1, 1, 1
    pixels = drawn_pixels({"pixel_values": torch.zeros(3, 3, *size), "pixel_mask": mask}, ROWS, size)
    for sample, real in zip(pixels, mask.flatten(1), strict=True):
        assert (real[sample] == 1).all()
        drawn, there = set(sample.tolist()), set(real.nonzero().flatten().tolist())
        assert drawn == there or len(there) > _MOST


def test_padding_of_an_image_is_that_of_its_maps():
    mask = torch.ones(2, 16, 16, dtype=torch.long)
    mask[1, :, 8:] = 0
    pixels = drawn_pixels({"pixel_values": torch.zeros(2, 3, 16, 16), "pixel_mask": mask}, ROWS, (4, 4))
    assert set(pixels[1].tolist()) == {0, 1, 4, 5, 8, 9, 12, 13}


@torch.no_grad()
def _compared(name, samples=2):
    model = dense_model(name)
    batch = {"pixel_values": images(samples)}
    return model, batch, model(**batch), compared_output(model, batch, {"layers": ROWS})


@pytest.mark.parametrize(
    ("name", "kind"), [("segformer", CATEGORICAL), ("dinov2", CATEGORICAL), ("beit", CATEGORICAL), ("depth", REAL)]
)
def test_rows_of_maps_are_pixels(name, kind):
    _, batch, outputs, compared = _compared(name)
    maps = outputs.predicted_depth[:, None] if name == "depth" else outputs.logits
    height, width = maps.shape[-2:]
    pixels = drawn_pixels(batch, ROWS, (height, width))
    expected = [
        maps[sample, :, pixel // width, pixel % width] for sample in range(2) for pixel in pixels[sample].tolist()
    ]
    assert torch.equal(compared.values, torch.stack(expected))
    assert compared.kind is kind
    assert compared.of_head
    assert compared.values.shape[1] == (1 if name == "depth" else LABELS)


def test_a_single_class_of_pixels_is_a_sigmoid():
    model = dense_model("segformer")
    model.decode_head.classifier = torch.nn.Conv2d(32, 1, 1)
    with torch.no_grad():
        compared = compared_output(model, {"pixel_values": images(1)}, {"layers": ROWS})
    assert compared.kind is BINARY


@pytest.mark.parametrize("name", ["mask2former", "eomt"])
def test_rows_of_mask_classifiers_are_queries(name):
    _, batch, outputs, compared = _compared(name)
    masks = outputs.masks_queries_logits
    pixels = drawn_pixels(batch, ROWS, masks.shape[-2:])
    assert compared.values.shape == (2 * QUERIES, LABELS + 1 + pixels.shape[1])
    width = masks.shape[-1]
    for sample in range(2):
        for query in range(QUERIES):
            row = compared.values[sample * QUERIES + query]
            assert torch.equal(row[: LABELS + 1], outputs.class_queries_logits[sample, query])
            expected = [masks[sample, query, pixel // width, pixel % width] for pixel in pixels[sample].tolist()]
            assert torch.equal(row[LABELS + 1 :], torch.stack(expected))
    kind = compared.kind
    assert (kind.queries, kind.classes, kind.exclusive, kind.place) == (QUERIES, LABELS + 1, True, MASKS)


@pytest.mark.parametrize(("name", "exclusive"), [("detr", True), ("yolos", True), ("conditional_detr", False)])
def test_rows_of_detectors_are_queries(name, exclusive):
    _, _, outputs, compared = _compared(name)
    expected = torch.cat([outputs.logits, outputs.pred_boxes], dim=-1).flatten(0, 1)
    assert torch.equal(compared.values, expected)
    kind = compared.kind
    classes = LABELS + exclusive
    assert (kind.queries, kind.classes, kind.exclusive, kind.place) == (QUERIES, classes, exclusive, BOXES)


def test_numbers_at_pixels():
    maps = torch.arange(2 * 3 * SIZE).view(2, 3, 4, SIZE // 4)
    pixels = torch.tensor([[0, 9], [31, 2]])
    found = at_pixels(maps, pixels)
    for sample in range(2):
        for channel in range(3):
            for place in range(2):
                assert found[sample, channel, place] == maps[sample, channel].flatten()[pixels[sample, place]]
