"""Calibration images in all accepted forms, and what is refused."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from pictures import ARRAYS, IMAGES, pixels_in
from tiny import load, output_of, tiny_batch, tiny_model, tiny_samples
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, ViTImageProcessorPil
from walks import walked_to
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.latency import latency_entry
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens, probe_batch
from optimum_optin.media.vision import image_tokens
from optimum_optin.passes.trajectory import layer_rows
from optimum_optin.reading.sources import read_calibration
from optimum_optin.running.batch import token_mask

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """Images in folders by class."""
    for index, image in enumerate(IMAGES):
        (tmp_path / "data" / f"class {index % 2}").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "data" / f"class {index % 2}" / f"{index}.png")
    return tmp_path / "data"


def _dataset(**columns):
    return Dataset.from_dict({"image": IMAGES, **columns}, features=Features({"image": datasets.Image(), **FEATURES}))


FEATURES = {"label": ClassLabel(names=["a", "b"])}
LABELS = {"label": [0, 1] * 6}


@pytest.mark.parametrize(
    "make",
    [
        lambda processor, folder: IMAGES,
        lambda processor, folder: list(ARRAYS),
        lambda processor, folder: ARRAYS,
        lambda processor, folder: torch.from_numpy(ARRAYS).permute(0, 3, 1, 2),
        lambda processor, folder: [(image, 0) for image in IMAGES],
        lambda processor, folder: (image for image in IMAGES),
        lambda processor, folder: [{"img": image, "label": 0} for image in IMAGES],
        lambda processor, folder: _dataset(**LABELS),
        lambda processor, folder: _dataset(**LABELS).with_format("torch"),
        lambda processor, folder: _dataset(**LABELS).with_format("numpy").rename_column("image", "photo"),
        lambda processor, folder: list(_dataset(**LABELS)),
        lambda processor, folder: processor(images=IMAGES, return_tensors="pt"),
        lambda processor, folder: processor(images=IMAGES, return_tensors="pt")["pixel_values"],
        lambda processor, folder: processor(images=IMAGES)["pixel_values"],
        lambda processor, folder: [processor(images=image, return_tensors="pt") for image in IMAGES],
        lambda processor, folder: Dataset.from_dict({**processor(images=IMAGES), **LABELS}),
        lambda processor, folder: DataLoader(_processed(processor), 5),
        lambda processor, folder: sorted(folder.rglob("*.png")),
        lambda processor, folder: [str(file) for file in folder.rglob("*.png")],
        lambda processor, folder: read_calibration(folder),
    ],
    ids=[
        "images",
        "arrays",
        "one array",
        "one tensor of bytes",
        "pairs with labels",
        "generator",
        "dicts",
        "dataset",
        "torch",
        "numpy, odd column",
        "decoded rows",
        "batch of the processor",
        "pixel tensor",
        "pixel arrays",
        "batches of one",
        "pixel dataset",
        "loader",
        "paths",
        "names of files",
        "image folder",
    ],
)
def test_every_form_gives_the_same_pixels(model, processor, folder, make):
    batches = calibration_batches(make(processor, folder), model, processor, batch_size=5)
    assert all(set(batch) == {"pixel_values"} and len(batch["pixel_values"]) <= 5 for batch in batches)
    expected = pixels_in([processor(images=IMAGES, return_tensors="pt")])
    torch.testing.assert_close(pixels_in(batches), expected, atol=1e-6, rtol=0)


def test_a_transform_of_the_users_own_is_kept(model, processor):
    def flipped(rows):
        images = [image.rotate(180) for image in rows["image"]]
        return {"pixel_values": processor(images=images, return_tensors="pt")["pixel_values"]}

    expected = pixels_in([processor(images=[image.rotate(180) for image in IMAGES], return_tensors="pt")])
    data = _dataset(**LABELS)
    assert torch.equal(pixels_in(calibration_batches(data.with_transform(flipped), model)), expected)
    data.set_transform(flipped)
    assert torch.equal(pixels_in(calibration_batches(data, model)), expected)


def _processed(processor):
    pixels = processor(images=IMAGES, return_tensors="pt")["pixel_values"]
    return [{"pixel_values": image, "labels": 0} for image in pixels]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "CMYK", "1"])
def test_images_of_all_modes_are_converted(model, processor, mode):
    (batch,) = calibration_batches([image.convert(mode) for image in IMAGES[:3]], model, processor)
    (expected,) = calibration_batches([image.convert(mode).convert("RGB") for image in IMAGES[:3]], model, processor)
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "file"])
def test_images_of_16_bits_keep_their_shades(model, processor, tmp_path, mode, on_disk):
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.frombytes(mode, (16, 16), (257 * shades.astype(">u2" if mode == "I;16B" else "<u2")).tobytes())
    if on_disk:
        image.save(tmp_path / "deep.tif")
    (batch,) = calibration_batches([tmp_path / "deep.tif" if on_disk else image], model, processor)
    (expected,) = calibration_batches([Image.fromarray(shades)], model, processor)
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_of_unknown_range_are_refused(model, processor, tmp_path, mode):
    IMAGES[0].convert(mode).save(tmp_path / "wide.tif")
    for data in ([IMAGES[0].convert(mode)], [tmp_path / "wide.tif"]):
        with pytest.raises(ValueError, match=f"got mode '{mode}' of unknown range, .*: scale it to 0 to 255"):
            calibration_batches(data, model, processor)


def test_images_of_channels_that_no_file_has(processor):
    model = tiny_model("vit", num_channels=6)
    with pytest.raises(ValueError, match="takes images of 6 channels, which files do not have: give pixel values"):
        calibration_batches(IMAGES, model, processor)
    assert calibration_batches([torch.rand(6, 16, 16)], model)[0]["pixel_values"].shape == (1, 6, 16, 16)


def test_a_processor_for_other_channels_is_refused(processor):
    with pytest.raises(ValueError, match="ViTImageProcessorPil cannot take an image of the model's 1 channels"):
        calibration_batches(IMAGES, tiny_model("vit", num_channels=1), processor)


def test_images_of_different_sizes_and_forms(model, processor):
    mixed = [IMAGES[0], ARRAYS[1], IMAGES[2].resize((50, 9)), ARRAYS[3, :, :, 0], ARRAYS[4, :, :, :1]]
    (batch,) = calibration_batches(mixed, model, processor)
    assert batch["pixel_values"].shape == (5, 3, 16, 16)


def test_a_model_of_grayscale_images():
    model = tiny_model("vit", num_channels=1)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    (batch,) = calibration_batches(IMAGES[:3], model, processor)
    assert batch["pixel_values"].shape == (3, 1, 16, 16)
    assert probe_batch(model, 17)["pixel_values"].shape == (1, 1, 16, 16)


def test_the_draw_is_seeded_and_limited(model, processor):
    def draw(seed):
        return pixels_in(calibration_batches(IMAGES, model, processor, num_samples=4, seed=seed))

    assert len(draw(0)) == 4
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_pixels_have_the_models_precision(processor):
    model = tiny_model("beit").bfloat16()  # one that does not convert them itself
    pruner = OptinPruner(model, processor)
    pruned = pruner.prune(IMAGES, OptinConfig(flops=0.6, probes=4))
    assert output_of(pruned, {"pixel_values": tiny_batch(model)["pixel_values"].bfloat16()}).isfinite().all()


def test_samples_of_bfloat16_pixels_are_read():
    model = tiny_model("vit").bfloat16()
    pixels = torch.randn(3, 16, 16).bfloat16()
    (batch,) = calibration_batches([{"pixel_values": pixels}], model)
    assert torch.equal(batch["pixel_values"], pixels[None])


@pytest.mark.parametrize("model_type", ["beit", "swin", "swinv2"])
@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_pixels_of_a_loader_have_the_models_precision(model_type, given, dtype):
    model = tiny_model(model_type).to(dtype)
    loader = DataLoader([{"pixel_values": torch.randn(3, 16, 16).to(given)} for _ in range(4)], 2)
    assert {batch["pixel_values"].dtype for batch in calibration_batches(loader, model)} == {dtype}


def test_a_failure_on_images_of_the_models_size_is_not_put_down_to_it(model, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.classifier, "forward", fail)
    with pytest.raises(ValueError, match="'vit' model cannot run on the calibration data: out of memory"):
        calibration_batches([torch.rand(3, 16, 16)], model)


@pytest.mark.parametrize("damage", [b"", b"no image at all", None], ids=["empty", "text", "cut off"])
def test_files_that_cannot_be_read_are_named_and_left_out(model, processor, folder, caplog, damage):
    file = folder / "class 0" / "4.png"
    file.write_bytes(file.read_bytes()[:300] if damage is None else damage)
    for data in (read_calibration(folder), list(folder.rglob("*.png"))):
        caplog.clear()
        assert len(pixels_in(calibration_batches(data, model, processor))) == 11
        assert "left out of the calibration data, as it cannot be read" in caplog.text
        assert str(file) in caplog.text
        assert "11 of 12 calibration images are left" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 1 calibration images can be read; the first: .*4\.png"):
        calibration_batches([file], model, processor)
    with pytest.raises(ValueError, match=r"a calibration image cannot be read: .*4\.png .*or take unreadable='skip'"):
        OptinPruner(model, processor).score(read_calibration(folder), OptinConfig(unreadable="stop"))


def test_an_image_that_claims_to_be_huge_cannot_be_read(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    IMAGES[0].resize((40, 40)).save(tmp_path / "bomb.png")
    IMAGES[0].resize((20, 20)).save(tmp_path / "fits.png")
    for data in (sorted(tmp_path.glob("*.png")), read_calibration(tmp_path)):
        assert len(pixels_in(calibration_batches(data, model, processor))) == 1
        with pytest.raises(ValueError, match=r"a calibration image cannot be read: .*bomb\.png \(.*1600 pixels"):
            calibration_batches(data, model, processor, unreadable="stop")


@pytest.mark.parametrize(
    "data",
    [
        [*IMAGES[:3], None],
        [(image, 0) for image in [*IMAGES[:3], None]],
        [{"image": image, "mask": IMAGES[0]} for image in [*IMAGES[:3], None]],
        Dataset.from_dict({"photo": [*IMAGES[:3], None], "label": [0] * 4}),
        [torch.rand(3, 16, 16), torch.rand(3, 16, 16), torch.rand(3, 16, 16), None],
    ],
    ids=["list", "pairs with labels", "dicts", "dataset", "pixels"],
)
def test_a_missing_image_is_named_by_its_row(model, processor, caplog, data):
    assert len(pixels_in(calibration_batches(data, model, processor))) == 3
    assert "cannot be read: row 3 (there is none)" in caplog.text
    with pytest.raises(ValueError, match=r"a calibration image cannot be read: row 3 \(there is none\)"):
        calibration_batches(data, model, processor, unreadable="stop")


def test_files_of_a_stream_that_cannot_be_read_are_named(model, processor, folder, caplog):
    file = folder / "class 0" / "4.png"
    file.write_bytes(b"no image")
    pruner = OptinPruner(model, processor)
    drawn = pruner.get_calibration_dataset("imagefolder", data_dir=str(folder), streaming=True)
    assert len(pixels_in(calibration_batches(drawn, model, processor))) == 11
    assert str(file) in caplog.text


def test_a_single_class_is_as_good_as_several(model, processor):
    """Labels are not read: data of one class give what the same images give with other labels, or none."""
    sets = [_dataset(label=[0] * 12), _dataset(**LABELS), IMAGES]
    one, other, bare = (OptinPruner(model, processor).score(data, OptinConfig(probes=4)).terms for data in sets)
    for term, by_group in one.items():
        assert all(torch.equal(score, other[term][key]) for key, score in by_group.items())
        assert all(torch.equal(score, bare[term][key]) for key, score in by_group.items())


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        ("beit", {"use_mean_pooling": True}),
        ("beit", {"use_mean_pooling": False}),
        ("clip, a classifier of images", {}),  # by the mean
        ("siglip_vision_model", {}),  # by a map, and no class token
        ("swin", {}),  # by the mean, and no class token
    ],
    ids=["BEiT's mean", "BEiT's class token", "CLIP's mean", "SigLIP's map", "Swin's mean"],
)
def test_however_a_model_pools_the_refit_helps(model_type, pooling):
    model = tiny_model(model_type, **pooling)
    fresh = tiny_batch(model, seed=5, samples=32)
    left = {}
    for compensation in ("ridge", "none"):
        config = OptinConfig(flops=0.6, probes=8, search="ranked", compensation=compensation)
        pruned = OptinPruner(model).prune(tiny_samples(64, model=model), config)
        left[compensation] = float((output_of(pruned, fresh) - output_of(model, fresh)).square().sum())
    assert left["ridge"] < 0.7 * left["none"]


def test_files_are_read_upright(tmp_path, model, processor):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    IMAGES[0].save(tmp_path / "lying.png", exif=exif)
    (lying,) = calibration_batches([tmp_path / "lying.png"], model, processor)
    (turned,) = calibration_batches([IMAGES[0].rotate(-90, expand=True)], model, processor)
    torch.testing.assert_close(lying["pixel_values"], turned["pixel_values"], atol=0, rtol=0)


def test_a_folder_with_splits_and_metadata(tmp_path, model, processor):
    tmp_path = tmp_path / "data"
    for split, part in (("train", IMAGES[:8]), ("test", IMAGES[8:])):
        (tmp_path / split).mkdir(parents=True)
        for index, image in enumerate(part):
            image.save(tmp_path / split / f"{index}.JPG")
        rows = [json.dumps({"file_name": f"{index}.JPG", "note": "x"}) for index in range(len(part))]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    assert len(pixels_in(calibration_batches(read_calibration(tmp_path), model, processor))) == 8
    assert len(read_calibration(tmp_path, split="test")) == 4
    assert len(read_calibration(tmp_path / "train" / "0.JPG")) == 1


def test_images_smaller_than_a_window_leave_the_model_as_it_was():
    model = tiny_model("swin").train()
    batch = tiny_batch(model)
    expected = output_of(model, batch)
    with pytest.raises(ValueError, match="'swin' model cannot take images of 4 x 4 pixels"):
        calibration_batches([torch.rand(3, 4, 4)], model)
    assert model.training
    assert torch.equal(output_of(model, batch), expected)


def test_images_that_fit_a_single_window_leave_the_model_as_it_was():
    # Its second layer's windows are shifted, of larger images.
    model = tiny_model("swin", depths=[2], num_heads=[2], out_features=None, out_indices=None)
    expected = output_of(model, tiny_batch(model))
    OptinPruner(model).prune([torch.rand(3, 8, 8) for _ in range(16)], OptinConfig(probes=4))
    assert torch.equal(output_of(model, tiny_batch(model)), expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "calibration data is empty"),
        (TEXTS, "'vit' is a model of images, but the calibration data hold text, 'the "),
        (Dataset.from_dict({"text": TEXTS}), "cannot tell the column of images among text"),
        ([{"one": IMAGES[0], "other": IMAGES[1]}], "cannot tell the column of images among one, other"),
        ([{"input_ids": [5, 6]}], "cannot tell the column of images among input_ids"),
        ([3.5], "the calibration data hold float, 3.5"),
        (IMAGES[0], "must be a Dataset, a list or a DataLoader, got Image"),
        (list(ARRAYS.astype(np.int64)), r"numbers from 0 to 255 \(uint8\), got int64"),
        ([IMAGES[0], torch.rand(3, 16, 16)], "floating-point arrays only if all of them are pixel values"),
        ([torch.rand(3, 20, 20)], "'vit' model cannot take images of 20 x 20 pixels, it was made for 16 x 16"),
        ([torch.rand(3, 16, 16), torch.rand(3, 20, 20)], "differ in size once processed"),
        ([torch.rand(1, 16, 16)], r"shape \(batch, 3, height, width\), got torch.float32 of shape \(1, 1, 16, 16\)"),
        ([torch.rand(3, 16, 16) / 0], "empty, or NaN or infinite"),
        (DataLoader([{"image": torch.ones(3, 16, 16)}]), "it has image, the model needs 'pixel_values'"),
        (DataLoader([{"pixel_values": torch.ones(3, 16, 16, dtype=torch.uint8)}]), "must be floating-point"),
    ],
    ids=[
        "nothing",
        "text",
        "text column",
        "two images",
        "token ids",
        "a number",
        "one image",
        "long numbers",
        "mixed",
        "another size",
        "two sizes",
        "grayscale pixels",
        "not finite",
        "loader without pixels",
        "bytes in a loader",
    ],
)
def test_unusable_data_is_refused(model, processor, data, message):
    with pytest.raises(ValueError, match=message):
        calibration_batches(data, model, processor)


def test_a_processor_of_another_kind_is_refused(model):
    with pytest.raises(ValueError, match="images need an image processor, got none"):
        calibration_batches(IMAGES, model)
    with pytest.raises(ValueError, match="images need an image processor, got .*Tokenizer"):
        calibration_batches(IMAGES, model, word_tokenizer())


@pytest.mark.parametrize("data", [IMAGES, [{"text": IMAGES[0]}], [{"a": 1, "b": IMAGES[0]}]], ids=["list", "a", "b"])
def test_images_for_a_model_of_text_are_refused(data):
    with pytest.raises(ValueError, match="hold images, but this is a model of text"):
        calibration_batches(data, tiny_model(), word_tokenizer())


def test_text_models_need_no_pillow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    calibration_batches(TEXTS, tiny_model(), word_tokenizer())
    with pytest.raises(ImportError, match="needs Pillow: pip install pillow"):
        calibration_batches([io.BytesIO().getvalue() or "a.png"], tiny_model("vit"), ViTImageProcessorPil())


@pytest.mark.parametrize(
    ("model_type", "special"),
    [
        ("vit", 1),
        ("deit", 2),
        ("beit", 1),
        ("dinov2_with_registers", 3),
        ("dinov3_vit", 3),
        ("siglip_vision_model", 0),
        ("swin", 48),
    ],
)
def test_tokens_are_those_of_the_first_layer(model_type, special):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    assert image_tokens(model, batch) == 16 + special
    assert token_mask(batch, 16 + special).shape == (3, 16 + special)
    assert mean_tokens([batch], model) == 16 + special
    assert image_tokens(tiny_model(), tiny_batch(tiny_model())) is None


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_a_model_that_interpolates_takes_other_sizes(model_type, tmp_path):
    model = tiny_model(model_type)
    special = image_tokens(model, tiny_batch(model)) - 16
    samples = [torch.randn(3, 24, 32) for _ in range(16)]
    pruner = OptinPruner(model)
    pruner.prune(samples, OptinConfig(flops=0.6, probes=4), save_dir=tmp_path / "pruned")
    assert pruner.report.tokens == 48 + special
    assert image_tokens(model, probe_batch(model, 48 + special)) == 48 + special
    assert pruner.benchmark(batch_size=2, repeats=1)["tokens"] == 48 + special


@pytest.mark.parametrize("model_type", ["vit", "deit", "clip_vision_model", "siglip_vision_model"])
@pytest.mark.parametrize("tokens", ["none", [4, 2, 0]], ids=["whole", "merging"])
def test_a_pruned_model_interpolates_as_the_dense_one(model_type, tokens, tmp_path):
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True is pruned at its own size"):
        calibration_batches([torch.rand(3, 24, 32)], model)
    pruner = OptinPruner(model)
    pruned = pruner.prune(tiny_samples(model=model), OptinConfig(flops=0.8, probes=4, merging=tokens))
    pruner.save_pretrained(tmp_path)
    larger = {"pixel_values": torch.randn(3, 3, 24, 32), "interpolate_pos_encoding": True}
    expected = output_of(model, larger)
    assert output_of(pruned, larger).shape == expected.shape
    assert torch.cosine_similarity(output_of(pruned, larger), expected).mean() > 0.8
    torch.testing.assert_close(output_of(load(pruned, tmp_path), larger), output_of(pruned, larger))


def _interpolated(**inputs):
    return {"pixel_values": torch.rand(2, 3, 24, 32), "interpolate_pos_encoding": True, **inputs}


@pytest.mark.parametrize(
    ("model_type", "data"),
    [
        ("vit", _interpolated()),
        ("vit", [{"pixel_values": torch.rand(3, 24, 32), "interpolate_pos_encoding": True}]),
        ("vit", DataLoader([0], collate_fn=lambda rows: _interpolated())),
        ("clip", _interpolated(input_ids=torch.ones(2, 5).long())),
    ],
    ids=["dict", "dicts", "loader", "pairs"],
)
def test_interpolation_is_not_asked_for_in_the_data(model_type, data):
    with pytest.raises(ValueError, match="cannot hold interpolate_pos_encoding: leave it out"):
        calibration_batches(data, tiny_model(model_type))


def test_tokens_that_no_image_has_are_refused():
    model = tiny_model("vit")
    for tokens in (1, 16, 30):
        with pytest.raises(ValueError, match=f"tokens={tokens} is not what this model makes of an image: 17"):
            latency_entry(model, model, tokens=tokens)
    with pytest.raises(ValueError, match="makes of an image: 17"):
        probe_batch(tiny_model("dinov2"), 1)


def test_rows_of_a_later_stage_hold_those_of_the_first():
    rows = torch.tensor([0, 15, 16, 17, 47])  # of 3 images of 16 tokens
    assert layer_rows(rows, torch.empty(3, 16, 5), 16).tolist() == rows.tolist()
    assert layer_rows(rows, torch.empty(3, 4, 5), 16).tolist() == [0, 3, 4, 11]
    assert layer_rows(torch.arange(48), torch.empty(3, 4, 5), 16).tolist() == list(range(12))


@torch.no_grad()
def test_windows_filled_up_with_zeros_have_no_weight():
    model = tiny_model("swin with padded windows")
    batch = tiny_batch(model)
    with walked_to(model, model, batch, "layers.0.heads") as (stop, walk):
        inputs, errors, weights = walk.output_errors(stop)
    assert len(inputs) == len(errors) == len(weights) == 3 * 9 * 9
    assert int((weights > 0).sum()) == 3 * 8 * 8  # the grid is of 8 x 8 patches, in windows of 3
    assert not errors.any()


def test_masked_images_and_distilled_heads_are_compared_by_their_logits():
    import transformers as tr

    for model in (tiny_model("beit", model_class=tr.BeitForMaskedImageModeling), tiny_model("deit with a teacher")):
        scores = OptinPruner(model).score(tiny_samples(model=model), OptinConfig(probes=8))
        assert set(scores.terms) == {"trajectory", "output"}


def test_from_a_folder_to_a_folder(model, processor, folder, tmp_path):
    model.save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    pruner = OptinPruner.from_pretrained(tmp_path / "dense", task="image-classification")
    pruner.prune(read_calibration(folder), OptinConfig(flops=0.6, probes=4), save_dir=tmp_path / "pruned")
    assert pruner.report.tokens == 17
    assert pruner.report.calibration == {"samples": 12}
    card = (tmp_path / "pruned" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForImageClassification" in card
    assert 'AutoImageProcessor.from_pretrained("pruned")' in card
    AutoImageProcessor.from_pretrained(tmp_path / "pruned")
    assert pruner.benchmark(batch_size=2, repeats=1)["tokens"] == 17


def test_a_folder_without_an_image_processor_says_so(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    assert OptinPruner.from_pretrained(tmp_path).processor is None
    assert "has no image processor: pass processor=, or calibration data that are pixel values" in caplog.text
