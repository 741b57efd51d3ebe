"""What earlier versions saved (`fixtures/`): models, reports, scores and configurations load, and give the same."""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from folders import entry_of
from safetensors.torch import load_file
from tiny import output_of, random_masks, tiny_batch
from toys import Transformer
from transformers import AutoModel, AutoModelForSequenceClassification

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, find_groups, load_pruned
from optimum_optin.commands import info
from optimum_optin.editing.surgery import rewrite
from optimum_optin.publishing.card import BEGIN
from optimum_optin.publishing.pruned_folders import write_report
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.loading import load_model
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

FORMAT_1 = Path(__file__).parents[1] / "fixtures/format_1"
FORMAT_2 = FORMAT_1.with_name("format_2")  # without a digest
REPORTS = sorted(FORMAT_1.glob("*/optin_report.json"))
SCORES = sorted(FORMAT_1.glob("*/optin_scores.json"))


@pytest.fixture(params=REPORTS, ids=[file.parent.name for file in REPORTS])
def folder(request):
    """The folder of a pruned model."""
    return request.param.parent


def _check_outputs(folder, expected):
    """A folder's model, with its head and without, gives the outputs that were kept."""
    stored = load_file(expected)
    outputs = {name: stored.pop(name) for name in ("logits", "hidden")}
    with torch.no_grad():
        logits = load_model(folder, None)(**stored).logits
        hidden = AutoModel.from_pretrained(folder)(**stored).last_hidden_state
    torch.testing.assert_close(logits, outputs["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden, outputs["hidden"], atol=1e-5, rtol=0)


def test_every_kind_is_there():
    assert len(REPORTS) == 8 and len(SCORES) == 2


def test_a_model_loads_and_gives_the_same(folder):
    _check_outputs(folder, folder.with_name(f"{folder.name}.safetensors"))


def test_a_model_is_saved_again(folder, tmp_path):
    load_model(folder, None).save_pretrained(tmp_path)
    _check_outputs(tmp_path, folder.with_name(f"{folder.name}.safetensors"))


@pytest.mark.parametrize("name", ["bert", "bert-bare-layers", "mpnet", "swin"])
def test_a_model_is_pruned_again_and_is_of_the_present_format_from_then_on(name, tmp_path):
    model = load_model(FORMAT_1 / name, None)
    earlier = structure_of_model(model)
    groups = find_groups(model)
    masks = random_masks(groups)
    rewrite(model, groups, masks)
    structure = record_structure(model, structure_of(groups, masks), groups)
    assert all(set(structure[key].kept) <= set(entry.kept) for key, entry in earlier.items())
    model.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (entry["format_version"], entry["transformers"]) == (2, transformers.__version__)
    batch = tiny_batch(model)
    batch = {each: value % 30 if each == "input_ids" else value for each, value in batch.items()}
    assert torch.equal(output_of(load_model(tmp_path, None), batch), output_of(model, batch))


def test_a_model_of_earlier_remote_code_is_pruned_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    model = AutoModelForSequenceClassification.from_pretrained(FORMAT_1 / "bert-remote-code", trust_remote_code=True)
    assert model.config.quantization_config.format_version == 1 and hasattr(model, "optin_convert")
    groups = find_groups(model)
    masks = random_masks(groups)
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    assert "the remote code that this model was loaded with cannot load what is saved from now on" in caplog.text
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "modeling_optin.py").exists()
    loaded, batch = load_model(tmp_path / "again", None), tiny_batch(model)
    assert torch.equal(output_of(loaded, batch), output_of(model, batch))


def test_a_report_loads_prints_and_is_saved_in_that_form(folder, tmp_path):
    report = PruningReport.load(folder)
    assert f"achieved {report.flops_achieved:.1%}" in str(report)
    assert ("glue/sst2" in str(report)) == ("A processor" in str(report)) == (folder.name == "bert")
    report.save(tmp_path)
    earlier, now = (json.loads((each / "optin_report.json").read_text()) for each in (folder, tmp_path))
    earlier["config"]["merging"] = earlier["config"].pop("tokens")  # the name that it has now
    assert now | earlier == now, "fields may be added, and keep their form"


def test_info_reads_a_folder(folder):
    data, text = info.run(argparse.Namespace(folder=folder, verify=False))
    assert data["report"] == PruningReport.load(folder).to_dict() and str(PruningReport.load(folder)) in text


def test_a_card_is_brought_up_to_date(folder, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    earlier = (copy / "README.md").read_text()
    (copy / "README.md").write_text(f"{earlier}\nMine.\n")
    write_report(copy, dataclasses.replace(PruningReport.load(copy), flops_requested=0.123))
    text = (copy / "README.md").read_text()
    assert text.count(BEGIN) == 1 and text.endswith("\nMine.\n")
    assert "asked 12.3%" in text and "asked 12.3%" not in earlier


@pytest.mark.parametrize("file", SCORES, ids=[file.parent.name for file in SCORES])
def test_scores_prune_the_model_that_they_are_of(file):
    scores = Scores.from_pretrained(file.parent)
    pruner = OptinPruner.from_pretrained(str(file.parent).replace("-scores", "-dense"))
    config = dataclasses.replace(scores.config, compensation="none", search="ranked")
    plan = pruner.plan(scores, config=config)
    pruner.prune(scores=scores, config=config)
    assert 0.5 < pruner.report.flops_achieved <= 0.6
    assert (pruner.report.layers, pruner.report.merges) == (plan.layers, plan.merges)
    assert bool(scores.merges) == file.parent.name.startswith("vit")


def test_a_configuration_loads():
    config = OptinConfig.from_pretrained(FORMAT_1 / "config")
    assert (config.flops, config.merging) == (0.5, (4, 3, 0))


EARLIER = sorted(file.stem for file in FORMAT_2.glob("*.safetensors"))


def _check_logits(model, name):
    """A model gives the outputs that were kept of the one in a folder."""
    stored = load_file(FORMAT_2 / f"{name}.safetensors")
    expected = stored.pop("logits")
    with torch.no_grad():
        outputs = model(**stored)
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_every_kind_of_format_2_is_there():
    assert EARLIER == ["beit", "bert-bare-layers", "bert-remote-code", "llama-shards", "module", "mpnet", "vit-merging"]


@pytest.mark.parametrize("name", EARLIER)
def test_a_folder_without_a_digest_loads_and_has_one_when_it_is_saved_again(name, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("optimum_optin.digests.digest.logger.warning", said.append)
    if name == "module":
        _check_logits(load_pruned(Transformer, FORMAT_2 / name), name)
        assert "have no digest" in said[0] and "optin_structure.json" in said[0]
        return
    model = load_model(FORMAT_2 / name, None)
    _check_logits(model, name)
    assert "have no digest" in said[0]
    model.save_pretrained(tmp_path / "again")
    _check_logits(load_model(tmp_path / "again", None), name)
    assert len(said) == 1
    assert entry_of(tmp_path / "again")[0]["digest"].keys() == {"structure", "tensors"}


def test_remote_code_without_digests_stays_as_it_is(tmp_path, monkeypatch):
    """It could not read one."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    folder, auto = FORMAT_2 / "bert-remote-code", AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, trust_remote_code=True)
    _check_logits(model, folder.name)
    model.save_pretrained(tmp_path / "again")
    assert "digest" not in entry_of(tmp_path / "again")[0]
    for options in ({}, {"trust_remote_code": True}):
        _check_logits(auto.from_pretrained(tmp_path / "again", **options), folder.name)
