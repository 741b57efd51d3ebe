"""Images as people have them: kinds told by content, EXIF in every form, damaged files, folders of odd names."""

import io
import json
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from pictures import ARRAYS, IMAGES, pixels_in
from tiny import tiny_model
from transformers import ViTImageProcessorPil
from words import TEXTS, word_tokenizer

from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.reading.kinds import kind_of
from optimum_optin.reading.sources import read_calibration

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

FORMATS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}


def _content(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _exif(*entries):
    """An EXIF block of entries (tag, type, count, four bytes)."""
    packed = [struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(packed)) + b"".join(packed) + b"\0\0\0\0"


def _turned(orientation):
    return (0x0112, 3, 1, struct.pack("<HH", orientation, 0))


# A resolution that is a word: Pillow reads it, and fails to write it.
DAMAGED = (0x011A, 2, 4, b"abc\0")


# EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_form_of_an_image_is_turned_upright(model, processor, tmp_path, orientation):
    image = IMAGES[0]
    content = _content(image, exif=_exif(_turned(orientation)))
    (tmp_path / "lying.png").write_bytes(content)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (upright.size == image.size) == (orientation < 5)
    (expected,) = calibration_batches([np.asarray(upright)], model, processor)
    given = Image.open(tmp_path / "lying.png")
    before = given.getexif()[0x0112]
    features = Features({"image": datasets.Image()})
    dataset = Dataset.from_dict({"image": [str(tmp_path / "lying.png")]}, features=features)
    for data in (
        [tmp_path / "lying.png"],
        [given],
        [(given, 1)],
        [{"image": given}],
        [content],
        [{"bytes": content, "path": None}],
        [{"image": {"bytes": content, "path": "lying.png"}}],
        dataset,
        dataset.cast_column("image", datasets.Image(decode=False)),
        dataset["image"],
        list(dataset),
    ):
        (batch,) = calibration_batches(data, model, processor)
        torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=0, rtol=0)
    assert (given.size, given.getexif()[0x0112]) == (image.size, before)


def test_arrays_are_taken_as_they_are(model, processor):
    (batch,) = calibration_batches([ARRAYS[0]], model, processor)
    (expected,) = calibration_batches([IMAGES[0]], model, processor)
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_tag_beside_the_orientation_does_not_matter(model, processor, tmp_path, kind):
    options = {} if kind == "PNG" else {"quality": 90}
    (tmp_path / "a").write_bytes(_content(IMAGES[0], kind, exif=_exif(_turned(6), DAMAGED), **options))
    (tmp_path / "b").write_bytes(_content(IMAGES[0], kind, exif=_exif(_turned(6)), **options))
    with pytest.raises(TypeError):
        ImageOps.exif_transpose(Image.open(tmp_path / "a"))
    (expected,) = calibration_batches([tmp_path / "b"], model, processor, unreadable="stop")
    for data in ([tmp_path / "a"], [Image.open(tmp_path / "a")], [(tmp_path / "a").read_bytes()]):
        (batch,) = calibration_batches(data, model, processor, unreadable="stop")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("error", [TypeError, struct.error, ValueError, SyntaxError, KeyError, zlib.error, EOFError])
def test_whatever_pillow_raises_the_image_is_named(processor, tmp_path, monkeypatch, caplog, error):
    model = tiny_model("vit")
    (tmp_path / "a.png").write_bytes(_content(IMAGES[0]))
    (tmp_path / "b.png").write_bytes(_content(IMAGES[1]))
    plain = Image.Image.getexif

    def getexif(self):
        if self.getpixel((0, 0)) == tuple(ARRAYS[1, 0, 0]):
            raise error("damaged")
        return plain(self)

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    data = [tmp_path / "a.png", tmp_path / "b.png"]
    (batch,) = calibration_batches(data, model, processor)
    assert len(batch["pixel_values"]) == 1
    assert "b.png" in caplog.text and "damaged" in caplog.text
    assert len(pixels_in(calibration_batches(list(map(Image.open, data)), model, processor))) == 1
    with pytest.raises(ValueError, match=r"a calibration image cannot be read: .*b\.png \(.*damaged"):
        calibration_batches(data, model, processor, unreadable="stop")


def test_an_image_whose_file_was_closed_is_named(model, processor, tmp_path, caplog):
    IMAGES[0].save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    (batch,) = calibration_batches([closed, IMAGES[1]], model, processor)
    assert len(batch["pixel_values"]) == 1
    assert "a.png" in caplog.text


@pytest.mark.parametrize("name", ["wide", "five channels", "not finite"])
def test_one_odd_image_does_not_end_the_run(model, processor, name, caplog):
    pixels = processor(images=IMAGES[:3], return_tensors="pt")["pixel_values"]
    odd, others = {
        "wide": (IMAGES[3].convert("F"), IMAGES[:3]),
        "five channels": (np.zeros((9, 9, 5), np.uint8), IMAGES[:3]),
        "not finite": (torch.full((3, 16, 16), float("nan")), list(pixels)),
    }[name]
    batches = calibration_batches([*others, odd], model, processor)
    assert torch.equal(pixels_in(batches), pixels_in([{"pixel_values": pixels}]))
    assert "3 of 4 calibration images are left" in caplog.text
    with pytest.raises(ValueError, match="a calibration image cannot be read"):
        calibration_batches([*others, odd], model, processor, unreadable="stop")


# Kinds


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["{}.jfif", "{}", "{}.txt", "{}.csv", "{}.parquet", "{}.JPG", "{}.dat", "[{}]*.png"])
def test_kinds_are_told_by_content(model, processor, tmp_path, kind, name):
    content = [_content(image, kind) for image in IMAGES[:3]]
    files = [tmp_path / "photos" / name.format(number) for number in range(3)]
    (tmp_path / "photos").mkdir()
    for file, each in zip(files, content, strict=True):
        file.write_bytes(each)
        assert kind_of(file) == "image"
    expected = pixels_in(calibration_batches([Image.open(io.BytesIO(each)) for each in content], model, processor))
    for data in (
        files,
        list(map(str, files)),
        content,
        read_calibration(tmp_path / "photos"),
        [{"image": str(file), "label": 1} for file in files],
    ):
        assert torch.equal(pixels_in(calibration_batches(data, model, processor)), expected)
    assert len(read_calibration(files[0])) == 1


def test_what_is_called_an_image_and_is_none_is_named(model, processor, tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "photos" / "cat.txt").write_bytes(_content(IMAGES[0]))
    for data in (sorted((tmp_path / "photos").iterdir()), read_calibration(tmp_path / "photos")):
        caplog.clear()
        assert len(pixels_in(calibration_batches(data, model, processor))) == 1
        assert "page.jpg" in caplog.text
    missing = [str(tmp_path / "photos" / "cat.txt"), str(tmp_path / "gone.jpg")]
    assert len(pixels_in(calibration_batches(missing, model, processor))) == 1


def test_text_is_no_image(model, processor):
    with pytest.raises(ValueError, match="the calibration data hold text, 'the "):
        calibration_batches(TEXTS, model, processor)
    with pytest.raises(ValueError, match=r"text_columns=\['image'\] does not apply: 'vit' is a model of images"):
        calibration_batches(IMAGES, model, processor, text_columns=["image"])


def test_images_for_a_model_of_text(tmp_path):
    """Refused by what they are; a caption beside them is text."""
    IMAGES[0].save(tmp_path / "a.png")
    model, tokenizer = tiny_model(), word_tokenizer()
    with pytest.raises(ValueError, match="hold images, but this is a model of text"):
        calibration_batches(read_calibration(tmp_path / "a.png"), model, tokenizer)
    for data in (
        Dataset.from_dict({"image": IMAGES, "caption": TEXTS[:12]}),
        list(zip(IMAGES, TEXTS, strict=False)),
        [{"image": image, "caption": text} for image, text in zip(IMAGES, TEXTS, strict=False)],
    ):
        (batch, *_) = calibration_batches(data, model, tokenizer, batch_size=12)
        assert sorted(map(tuple, batch["input_ids"].tolist())) == sorted(map(tuple, tokenizer(TEXTS[:12])["input_ids"]))


def test_images_in_what_pandas_holds(model, processor, tmp_path, caplog):
    pandas = pytest.importorskip("pandas")
    files = [str(tmp_path / f"{number}") for number in range(4)]
    for file, image in zip(files, IMAGES, strict=False):
        image.save(file, "PNG")
    expected = pixels_in(calibration_batches(IMAGES[1:4], model, processor))
    frame = pandas.DataFrame({"photo": [*files, None], "label": ["cat", "dog", "cat", "dog", "cat"]})
    frame = frame[frame.index > 0]
    for data in (frame["photo"], frame, frame["photo"].astype(object), {"photo": frame["photo"]}):
        caplog.clear()
        assert torch.equal(pixels_in(calibration_batches(data, model, processor)), expected)
        assert "row 3 (there is none)" in caplog.text


def test_a_folder_whose_name_is_a_pattern(model, processor, tmp_path):
    for name, images in (("photos[1]", IMAGES[:3]), ("photos1", IMAGES[3:])):
        for number, image in enumerate(images):
            (tmp_path / name / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / name / f"class {number % 2}" / f"a?{number}.png")
    dataset = read_calibration(tmp_path / "photos[1]")
    assert dataset.features["label"].names == ["class 0", "class 1"]
    expected = pixels_in(calibration_batches(IMAGES[:3], model, processor))
    assert torch.equal(pixels_in(calibration_batches(dataset, model, processor)), expected)


def test_classes_are_the_same_in_all_splits(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("test", "b"), ("test", "c")):
        (tmp_path / split / name).mkdir(parents=True)
        IMAGES[0].save(tmp_path / split / name / "0.png")
    for split, labels in (("train", [0, 1]), ("test", [1, 2])):
        dataset = read_calibration(tmp_path, split=split)
        assert dataset.features["label"].names == ["a", "b", "c"]
        assert dataset["label"][:] == labels


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_metadata_are_joined_by_the_names_of_files(tmp_path, suffix):
    for number, image in enumerate(IMAGES[:3]):
        image.save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "caption": TEXTS[number]} for number in (2, 0)]
    lines = {
        ".csv": ["file_name,caption", *(",".join(row.values()) for row in rows)],
        ".jsonl": list(map(json.dumps, rows)),
    }
    (tmp_path / f"metadata{suffix}").write_text("\n".join(lines[suffix]))
    dataset = read_calibration(tmp_path)
    assert dataset["caption"][:] == [TEXTS[0], None, TEXTS[2]]
    assert dataset.column_names == ["image", "caption"]
    (tmp_path / f"metadata{suffix}").write_text("\n".join(lines[suffix]).replace("file_name", "name"))
    with pytest.raises(ValueError, match="must have a column file_name that names the images; it has name, caption"):
        read_calibration(tmp_path)


# Pairs


def test_the_text_of_a_pair_is_the_caption(tmp_path, caplog):
    model, both = tiny_model("clip"), _Both()
    expected = _ids(calibration_batches(list(zip(IMAGES, TEXTS, strict=False)), model, both))
    others = {
        "label": ["cat", "dog"] * 6,
        "file_name": [f"{number}.jpg" for number in range(12)],
        "url": [f"https://example.org/{number}" for number in range(12)],
        "kind": ["a pet", "no pet"] * 6,
    }
    for name in ("caption", "text", "seen in it"):
        for other, values in others.items():
            rows = zip(IMAGES, values, TEXTS, strict=False)
            data = [{"image": image, other: value, name: text} for image, value, text in rows]
            assert _ids(calibration_batches(data, model, both)) == expected
    tuples = list(zip(IMAGES, ["cat", "dog"] * 6, TEXTS, strict=False))
    assert _ids(calibration_batches(tuples, model, both)) == expected
    two = [{"image": image, "one": text, "other": text} for image, text in zip(IMAGES, TEXTS, strict=False)]
    with pytest.raises(ValueError, match="cannot tell the text columns among one, other"):
        calibration_batches(two, model, both)
    assert _ids(calibration_batches(two, model, both, text_columns=["one"])) == expected
    with pytest.raises(ValueError, match="cannot tell the text columns among label"):
        calibration_batches([{"image": IMAGES[0], "label": "cat"}], model, both)


def test_one_text_for_all_images_is_a_text():
    batches = calibration_batches([(image, "the cat") for image in IMAGES], tiny_model("clip"), _Both())
    assert len(_ids(batches)) == 12


@pytest.mark.parametrize("missing", [None, "", float("nan")])
@pytest.mark.parametrize("make", [lambda *pair: pair, lambda image, text: {"image": image, "text": text}])
def test_a_missing_caption_takes_its_image_along(make, missing, caplog):
    model, both = tiny_model("clip"), _Both()
    data = [make(*pair) for pair in zip(IMAGES, TEXTS, strict=False)]
    expected = _ids(calibration_batches(data, model, both))
    data.insert(4, make(IMAGES[0], missing))
    assert _ids(calibration_batches(data, model, both)) == expected
    assert "row 4 (" in caplog.text
    with pytest.raises(ValueError, match="a calibration text cannot be read: row 4"):
        calibration_batches(data, model, both, unreadable="stop")


def test_captions_of_a_folder(tmp_path):
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
    rows = "".join(f"{number}.png;{TEXTS[number]};cat\n" for number in range(12))
    (tmp_path / "metadata.csv").write_text(f"file_name;caption;label\n{rows}")
    model, both = tiny_model("clip"), _Both()
    expected = _ids(calibration_batches(list(zip(IMAGES, TEXTS, strict=False)), model, both))
    assert _ids(calibration_batches(read_calibration(tmp_path), model, both)) == expected
    chosen = read_calibration(tmp_path, text_columns=["caption"])
    assert _ids(calibration_batches(chosen, model, both)) == expected


class _Both:
    """As CLIP's processor, of which both are parts."""

    tokenizer = word_tokenizer()
    image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})


def _ids(batches):
    """Each image with its text, in an order of their own."""
    found = []
    for batch in batches:
        for pixels, ids, mask in zip(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], strict=True):
            found.append((round(float(pixels.double().sum()), 2), ids[mask.bool()].tolist()))
    return sorted(found)
