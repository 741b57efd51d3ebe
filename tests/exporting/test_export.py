"""Exports to a folder: checked on other samples than they were traced on, whole or not there at all."""

import json
import zipfile

import pytest
import torch
from tiny import load, tiny_batch, tiny_model
from torch import nn
from toys import Pictures, TorchEncoder, perturbed
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, find_groups
from optimum_optin.commands.run import run
from optimum_optin.editing.masking import masked
from optimum_optin.editing.surgery import rewrite
from optimum_optin.exporting import OnnxSession, export_model, quantize_int8, to_onnx
from optimum_optin.exporting.samples import made_up_batches, to_check_on, traced
from optimum_optin.programs.agreement import agreement, real_part
from optimum_optin.programs.empty import empty_values
from optimum_optin.programs.exported import exported
from optimum_optin.programs.formats import FORMATS
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
ONNX = FORMATS["onnx"].needs


def needs(*packages):
    for package in packages:
        pytest.importorskip(package)


@pytest.fixture
def folder(tmp_path):
    """A pruned classifier whose second layer lost all heads and all neurons, with its tokenizer and a card."""
    model = tiny_model("bert", num_hidden_layers=2)
    groups = proved_groups(model, OptinConfig(min_heads=0))
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    for group in groups:
        masks[group.key][: group.units if group.layer == "layers.1" else 1] = False
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(tmp_path / "pruned")
    word_tokenizer().save_pretrained(tmp_path / "pruned")
    (tmp_path / "pruned" / "README.md").write_text("# A model\n\nWhat a person wrote.\n")
    (tmp_path / "pruned" / "LICENSE").write_text("terms")
    return tmp_path / "pruned"


def test_onnx_in_int8_from_the_command_line(folder, tmp_path, capsys):
    needs(*ONNX)
    out = tmp_path / "out"
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = [
        str(folder),
        "--to",
        "onnx",
        str(out),
        "--quantize",
        "int8",
        "--data",
        str(tmp_path / "texts.txt"),
        "--json",
    ]
    assert run("export", words) == 0
    told = json.loads(capsys.readouterr().out)
    note = json.loads((out / "optin_export.json").read_text())
    assert {**note, "model": str(folder), "output": str(out)} == told | {"model": str(folder)}
    assert note["check"]["distance"] < 1e-5 < note["quantized"]["distance"] < 0.1
    assert 16 <= note["quantized"]["samples"] < note["check"]["samples"]  # not of samples that were cut
    assert len({tuple(shape) for shape in note["check"]["batches"]}) >= 3
    assert note["files"]["model.onnx.data"] < note["model_bytes"]
    kept = {"LICENSE", "README.md", "config.json", "export.json", "model.onnx", "model.onnx.data", "optin_export.json"}
    assert {"tokenizer.json", "tokenizer_config.json", *kept} == {file.name for file in out.iterdir()}
    assert "What a person wrote." in (out / "README.md").read_text()
    assert b"modeling_bert.py" not in (out / "model.onnx").read_bytes()  # nor any other file of this machine

    model, session = load(tiny_model("bert"), folder).eval(), OnnxSession(out / "model.onnx", threads=1)
    found = agreement(model, session, [tiny_batch(model, seed=3, samples=7, tokens=19)])
    assert found.distance < 0.1
    import onnx_ir

    program = onnx_ir.load(out / "model.onnx")
    assert not empty_values(program)
    products = [node for node in program.graph if node.op_type == "MatMulInteger"]
    weights = [node.inputs[1].const_value.numpy() for node in products if node.inputs[1].const_value is not None]
    # Pairs of products with 255 are added in 16 bits, where 7 bits of weights cannot overflow.
    assert weights and all(abs(each.astype(int)).max() <= 64 for each in weights)


def test_in_int8_a_large_output_costs_the_others_no_digits(tmp_path):
    needs(*ONNX)
    draws = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(8, 64, generator=draws)).mul_(torch.tensor([1000.0] + [1.0] * 7)[:, None])
    batch = {"input": torch.randn(32, 64, generator=draws)}
    path = quantize_int8(to_onnx(linear, batch, tmp_path / "model.onnx"), tmp_path / "int8.onnx")
    (found,) = OnnxSession(path, threads=1)(batch).values()
    expected = linear(**batch).detach()
    assert ((found - expected).norm(dim=0) / expected.norm(dim=0)).max() < 0.03


def test_a_plain_module_as_torch_export(tmp_path):
    module = perturbed(Pictures())
    pixels = {"pixels": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    made = export_model(module, tmp_path / "out", "torch-export", data=pixels)
    assert made.check.batches == ((4, 3, 16, 16), (1, 3, 16, 16)) and made.check.labels == 1.0
    with zipfile.ZipFile(tmp_path / "out" / "model.pt2") as archive:
        assert not any(b"toys.py" in archive.read(name) for name in archive.namelist())
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    many = torch.randn(6, 3, 16, 16)
    torch.testing.assert_close(program(pixels=many), module(many))
    export_model(module, tmp_path / "out", "torch-export", data=pixels)  # again, over the first
    (tmp_path / "out" / "optin_export.json").unlink()
    with pytest.raises(FileExistsError, match="give a new folder"):
        export_model(module, tmp_path / "out", "torch-export", data=pixels)


def test_openvino_computes_in_float32_when_it_is_checked(tmp_path):
    needs("openvino")
    pixels = {"pixels": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    made = export_model(perturbed(Pictures()), tmp_path / "out", "openvino", data=pixels)
    assert made.check.distance < 1e-5 and set(made.files) == {"openvino_model.bin", "openvino_model.xml"}


class Different(nn.Module):
    """Does something else when it is exported."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(x) * (1.25 if torch.compiler.is_exporting() else 1.0)


class Narrow(Different):
    """Does something else with more samples than it is traced on."""

    def forward(self, x):
        return self.head(x) if x.shape[0] < 4 else -self.head(x)


def test_what_differs_is_not_saved(tmp_path):
    x = {"x": torch.randn(6, 8, generator=torch.Generator().manual_seed(0))}
    with pytest.raises(ValueError, match=r"relative distance of their outputs is 2\.5e-01"):
        export_model(Different(), tmp_path / "out", "torch-export", data=x)
    with pytest.raises(ValueError, match=r"does not run on inputs of shape \(6, 8\)"):
        export_model(Narrow(), tmp_path / "out", "torch-export", data=x)
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused_before_the_model_runs(tmp_path, monkeypatch):
    class Unused(nn.Module):
        def forward(self, x):
            raise AssertionError

    with pytest.raises(ValueError, match="to='tflite' must be one of onnx, torch-export, openvino"):
        export_model(Unused(), tmp_path / "out", "tflite")
    with pytest.raises(ValueError, match="quantize='int8' with to='torch-export'"):
        export_model(Unused(), tmp_path / "out", "torch-export", quantize="int8")
    with pytest.raises(ValueError, match="give data="):
        export_model(Unused(), tmp_path / "out", "torch-export")
    monkeypatch.setattr("optimum_optin.programs.formats.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"openvino, which is not installed: pip install 'optimum-optin\[openvino\]'"):
        export_model(Unused(), tmp_path / "out", "openvino")
    assert not (tmp_path / "out").exists()


def test_samples_to_check_on_have_other_lengths_and_padding():
    model = tiny_model("bert")
    (batch,) = made_up_batches(model, None)
    batches = to_check_on([batch])
    assert [each["input_ids"].shape for each in batches] == [(5, 16), (1, 16), (3, 10)]
    assert batches[-1]["attention_mask"].sum(1).tolist() == [10, 9, 8]
    assert traced([batches[1]])["input_ids"].shape == (2, 16)
    left = {
        "input_ids": torch.arange(24).view(3, 8),
        "attention_mask": torch.ones(3, 8, dtype=torch.long).triu(2).flip(0),
    }
    alone, cut = to_check_on([left])[1:]
    assert alone["attention_mask"].tolist() == [[1] * 4] and cut["attention_mask"].any(1).all()


def test_agreement_is_of_real_tokens_and_the_worst_output():
    class Two(nn.Module):
        def forward(self, input_ids, attention_mask):
            hidden = input_ids[..., None] * torch.tensor([1.0, 2.0])
            return {"last_hidden_state": hidden, "logits": hidden.sum(1)}

    batch = {"input_ids": torch.tensor([[3, 4, 0], [5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}

    def run(given):
        wanted = Two()(**given)
        hidden = wanted["last_hidden_state"].clone()
        hidden[0, 2] = 99.0  # padding
        return {"last_hidden_state": hidden, "logits": wanted["logits"] * torch.tensor([[1.0, 1.0], [1.0, 0.25]])}

    found = agreement(Two(), run, [batch])
    logits = Two()(**batch)["logits"]
    assert found.distance == pytest.approx(float(0.75 * logits[1, 1] / logits.norm()))
    assert (found.labels, found.compared, found.samples) == (0.5, 2, 2)
    assert real_part("last_hidden_state", torch.zeros(2, 3, 4), batch).shape == (5, 4)
    with pytest.raises(ValueError, match="the export returns only logits"):
        agreement(Two(), lambda given: {"logits": Two()(**given)["logits"]}, [batch])


class Nothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 0), nn.Linear(0, 4)

    def forward(self, x):
        return x + self.down(self.up(x))


def test_values_without_elements_are_found():
    with torch.no_grad():
        program = torch.export.export(Nothing(), (torch.ones(2, 4),))
    assert any("linear" in each for each in empty_values(program))


@torch.no_grad()
def test_pytorchs_attention_without_heads_leaves_nothing_empty():
    """A slice of no channels went into its graph, of which ONNX Runtime then made one that did not run."""
    model, batch = perturbed(TorchEncoder()), {"token_ids": torch.arange(12).view(2, 6)}
    groups = find_groups(model, {"token_ids": batch["token_ids"][:1]})
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["layers.1.heads"][:] = False
    with masked(model, groups, masks):
        expected = model(**batch)
    rewrite(model, groups, masks)
    torch.testing.assert_close(model(**batch), expected, rtol=1e-5, atol=1e-5)
    assert not empty_values(exported(model, batch, "torch-export").program)
