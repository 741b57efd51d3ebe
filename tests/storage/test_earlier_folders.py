"""What earlier versions saved (`fixtures/`): models, reports, scores and configurations load, and give the same."""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores
from optimum_optin.commands import info
from optimum_optin.publishing.card import BEGIN
from optimum_optin.publishing.pruned_folders import write_report
from optimum_optin.storage.loading import load_model

FORMAT_1 = Path(__file__).parents[1] / "fixtures/format_1"
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


def test_a_report_loads_prints_and_is_saved_in_that_form(folder, tmp_path):
    report = PruningReport.load(folder)
    assert f"achieved {report.flops_achieved:.1%}" in str(report)
    assert ("glue/sst2" in str(report)) == ("A processor" in str(report)) == (folder.name == "bert")
    report.save(tmp_path)
    earlier, now = (json.loads((each / "optin_report.json").read_text()) for each in (folder, tmp_path))
    earlier["config"]["merging"] = earlier["config"].pop("tokens")  # the name that it has now
    assert now | earlier == now, "fields may be added, and keep their form"


def test_info_reads_a_folder(folder):
    data, text = info.run(argparse.Namespace(folder=folder))
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
