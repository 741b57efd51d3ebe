"""Models of a class of one's own: what is loaded is that class, or it is refused."""

import json

import pytest
import torch
import transformers
from tiny import SHAPE, output_of, tiny_batch, tiny_model, tiny_samples
from torch import nn
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.commands.run import run
from optimum_optin.publishing.pruned_folders import write_report
from optimum_optin.publishing.remote_code import write_remote_code
from optimum_optin.storage.loading import model_class

FAST = OptinConfig(flops=0.5, probes=4)

CODE = """
from torch import nn
from transformers import BertForSequenceClassification as Base


class {name}(Base):
    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(config.hidden_size, 8), nn.Tanh(), nn.Linear(8, config.num_labels))
"""


class MyBert(BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.classifier = nn.Sequential(nn.Linear(config.hidden_size, 8), nn.Tanh(), nn.Linear(8, config.num_labels))


OfTheSameName = type("BertForSequenceClassification", (MyBert,), {"__module__": __name__})


class Plain(BertForSequenceClassification):
    """Nothing of its own but the name."""


@pytest.mark.parametrize("model_class", [MyBert, OfTheSameName, Plain])
def test_remote_code_of_it_is_refused_before_scoring_and_at_save(model_class, tmp_path, monkeypatch):
    message = rf"test_own_classes.{model_class.__name__} is one of your own, whose code we cannot bring along"
    pruner = OptinPruner(tiny_model(model_class=model_class))
    pruner.prune(tiny_samples(), FAST)
    with pytest.raises(ValueError, match=message):
        pruner.save_pretrained(tmp_path / "saved", remote_code=True)
    assert not (tmp_path / "saved").exists()
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        pruner.prune(tiny_samples(), OptinConfig(flops=0.5, remote_code=True))


def test_remote_code_for_a_folder_of_it_is_refused(tmp_path):
    OptinPruner(tiny_model(model_class=MyBert)).prune(tiny_samples(), FAST, save_dir=tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="this folder's MyBert is not: save without it"):
        write_remote_code(tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_it_is_saved_and_loaded_by_its_class(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("optimum_optin.publishing.writing.logger.warning", said.append)
    pruner = OptinPruner(tiny_model(model_class=MyBert))
    pruned = pruner.prune(tiny_samples(), FAST, save_dir=tmp_path)
    assert "a MyBert, a class of your own: load it with MyBert.from_pretrained" in said[0]
    batch = tiny_batch(pruned)
    assert torch.equal(output_of(MyBert.from_pretrained(tmp_path), batch), output_of(pruned, batch))
    for card in (str(pruner.create_model_card()), (tmp_path / "README.md").read_text()):
        assert "...  # import MyBert, the model's own class\n" in card
        assert "model = MyBert.from_pretrained(" in card
        assert "from transformers import MyBert" not in card
    pruner.report.save(tmp_path)
    write_report(tmp_path, pruner.report)  # which knows of the class no more than its name
    assert "model = MyBert.from_pretrained(" in (tmp_path / "README.md").read_text()


@pytest.fixture(params=["OwnBert", "BertForSequenceClassification"])
def coded(request, tmp_path, monkeypatch):
    """A folder with code of its own, the model in it, and the name of its class."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "coded"
    model = tiny_model(model_class=MyBert)
    model.save_pretrained(folder)
    (folder / "modeling_own.py").write_text(CODE.format(name=request.param))
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [request.param]
    config["auto_map"] = {"AutoModelForSequenceClassification": f"modeling_own.{request.param}"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model, request.param


def test_a_folder_with_code_of_its_own(coded, tmp_path, capsys):
    folder, model, name = coded
    batch = tiny_batch(model)
    with pytest.raises(ValueError, match=rf"brings code of its own for {name} .modeling_own.*trust_remote_code=True"):
        OptinPruner.from_pretrained(folder)
    assert run("prune", [str(folder), "--calibration", "x.txt", "--output", str(tmp_path / "out")]) == 2
    assert "trust-remote-code" in capsys.readouterr().err

    pruner = OptinPruner.from_pretrained(folder, trust_remote_code=True)
    assert type(pruner.model).__name__ == name
    assert torch.equal(output_of(pruner.model, batch), output_of(model, batch))
    pruned = pruner.prune(tiny_samples(), FAST, save_dir=tmp_path / "pruned")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned", trust_remote_code=True)
    assert torch.equal(output_of(loaded, batch), output_of(pruned, batch))
    with pytest.raises(ValueError, match=f"{name} is one of your own"):
        pruner.save_pretrained(tmp_path / "pruned", remote_code=True)
    with pytest.raises(ValueError, match=f"this folder's {name} is in modeling_own.{name}"):
        write_remote_code(tmp_path / "pruned")


def test_a_folder_of_a_class_that_is_not_there_is_refused(tmp_path):
    tiny_model(model_class=MyBert).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="was saved from a MyBert, which is no class of transformers: load it with tha"
    ):
        OptinPruner.from_pretrained(tmp_path)
    encoder = OptinPruner.from_pretrained(tmp_path, "feature-extraction")
    assert type(encoder.model) is transformers.BertModel


@pytest.mark.parametrize(
    ("architectures", "auto_map", "trust", "expected"),
    [
        (["BertModel"], {}, False, transformers.BertModel),
        (["BertModel"], {"AutoModelForMaskedLM": "code.Other"}, False, transformers.BertModel),
        (["BertModel"], {"AutoModel": "modeling_optin.BertModel"}, False, transformers.BertModel),
        (
            ["Mine"],
            {"AutoModel": "code.Other", "AutoModelForMaskedLM": "code.Mine"},
            True,
            transformers.AutoModelForMaskedLM,
        ),
        (["Mine"], {"AutoModel": "me/code--code.Mine"}, True, transformers.AutoModel),
        (["Mine"], {"AutoModel": "code.Mine"}, False, "brings code of its own for Mine"),
        (["Mine"], {"AutoModel": "code.Other"}, True, "was saved from a Mine, which is no class of transformers"),
        (None, {"AutoModel": "code.Mine"}, True, transformers.AutoModel),
        (None, {"AutoModel": "code.Mine"}, False, "brings code of its own for its model"),
        (None, {"AutoModel": "a.A", "AutoModelForMaskedLM": "a.B"}, True, "names none of them: give task="),
        (None, {}, False, transformers.AutoModel),
    ],
)
def test_the_class_to_load_a_folder_with(architectures, auto_map, trust, expected, tmp_path):
    config = {"model_type": "bert", "architectures": architectures, "auto_map": auto_map, **SHAPE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            model_class(tmp_path, None, trust_remote_code=trust)
    else:
        assert model_class(tmp_path, None, trust_remote_code=trust) is expected
