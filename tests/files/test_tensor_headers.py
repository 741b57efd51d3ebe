"""Headers of safetensors files: what safetensors itself reads, damage that is named, metadata in one order."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from optimum_optin.files.tensor_headers import (
    DTYPE_NAMES,
    forms_in,
    read_header,
    read_headers,
    tensors_digest,
    write_notes,
)

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3),
    "c": torch.ones(4, dtype=torch.bfloat16),
    "ä": torch.ones(0, 2),
}
NOTES = {"format": "pt", "one": "x" * 64, "two": "é"}


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata=NOTES)
    return tmp_path / "model.safetensors"


def test_it_is_what_safetensors_reads(file):
    header = read_header(file)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == header.notes == NOTES
        assert set(opened.keys()) == set(header.forms)
        for name, (dtype, shape) in header.forms.items():
            assert (opened.get_slice(name).get_dtype(), tuple(opened.get_slice(name).get_shape())) == (dtype, shape)
    content = file.read_bytes()
    for name, (start, stop) in header.places.items():
        assert content[start:stop] == TENSORS[name].reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)
def test_types_have_the_names_that_safetensors_writes(dtype, tmp_path):
    save_file({"a": torch.ones(2, dtype=dtype)}, tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors").forms["a"].dtype == DTYPE_NAMES[dtype]


def test_metadata_are_written_in_one_order(file):
    """Of many files with the same metadata, safetensors writes some that are not the same byte for byte."""
    contents = set()
    for _ in range(8):
        save_file(TENSORS, file, metadata=NOTES)
        write_notes(file, NOTES | {"one": "y" * 64})
        contents.add(file.read_bytes())
    assert len(contents) == 1
    assert read_header(file).notes == NOTES | {"one": "y" * 64}
    assert all(torch.equal(value, TENSORS[name]) for name, value in load_file(file).items())
    for notes in (NOTES, {**NOTES, "one": "y"}, {}):
        if notes != NOTES:
            with pytest.raises(RuntimeError, match=r"model\.safetensors has no room for metadata of"):
                write_notes(file, notes)
    save_file(TENSORS, file)
    with pytest.raises(RuntimeError, match="has no room"):
        write_notes(file, NOTES)


def test_the_digest_is_that_of_all_shards_in_any_order(file, tmp_path):
    whole = tensors_digest(read_header(file).forms)
    save_file({name: TENSORS[name] for name in "cb"}, tmp_path / "1.safetensors")
    save_file({name: TENSORS[name] for name in "äa"}, tmp_path / "2.safetensors")
    headers = read_headers([tmp_path / "2.safetensors", tmp_path / "1.safetensors"])
    assert tensors_digest(forms_in(headers)) == whole
    for name, other in {"a": TENSORS["a"].T.contiguous(), "b": torch.tensor(3.0), "d": torch.ones(1)}.items():
        save_file(TENSORS | {name: other}, file)
        assert tensors_digest(read_header(file).forms) != whole
    save_file(TENSORS | {"a": TENSORS["a"] + 1}, file)
    assert tensors_digest(read_header(file).forms) == whole


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [2]}}',
        '{"a": {"dtype": 3, "shape": [2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80000000]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}',
        '{"__metadata__": 3}',
        '{"__metadata__": {"format": 3}}',
    ],
    ids=range(15),
)
def test_a_damaged_header_is_named(header, tmp_path):
    text = header.encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ValueError, match=r"the weights in .*x\.safetensors are damaged"):
        read_header(tmp_path / "x.safetensors")


def test_a_header_longer_than_its_file_is_not_read(file):
    content = file.read_bytes()
    for length in (2**63, len(content), 0):
        file.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(ValueError, match=f"and a header of {length:,}"):
            read_header(file)
    assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
