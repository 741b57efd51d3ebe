"""Folders from strangers: nothing in them becomes code, markup or gigabytes, and every damage is named."""

import argparse
import ast
import json
import re
import shutil
import tracemalloc

import huggingface_hub
import pytest
import torch
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores
from optimum_optin.commands import info
from optimum_optin.commands.run import run
from optimum_optin.editing.stand_ins import StandIn
from optimum_optin.publishing.card import END, _union
from optimum_optin.publishing.hub import files_in
from optimum_optin.publishing.pruned_folders import push_folder, read_config, write_report
from optimum_optin.quoting import code_span, literal, markdown, printable
from optimum_optin.storage.entry import OptinStructureConfig
from optimum_optin.storage.loading import load_model
from optimum_optin.storage.rebuild import rebuild
from optimum_optin.storage.structure import Ranges, structure_from_json

EVIL = 'x"); __import__("os").system("true"); ("'
MARKUP = f"a`b|c <script>alert(1)</script>\n# Heading\n```\n{END} [x](http://y) \x1b[2J"
DEEP = '{"a":' * 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers") / "small"
    pruner = OptinPruner(tiny_model(num_labels=2), word_tokenizer())
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=8))
    pruner.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "small")


def _change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _peak(make):
    tracemalloc.start()
    try:
        made = make()
        return made, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_structure_takes_no_more_than_its_text(folder):
    many = {f"layers.{index}.heads": {"units": 10**6, "kept": "0-999999"} for index in range(50)}
    structure, peak = _peak(lambda: structure_from_json(many))
    assert peak < 2**20 and [len(each.kept) for each in structure.values()] == [10**6] * 50
    _, peak = _peak(lambda: OptinStructureConfig({}, selectors={f"m{i}": {"bias": "0-999999"} for i in range(50)}))
    assert peak < 2**20


def test_ranges_are_a_sequence():
    ranges = Ranges([range(2, 5), range(5, 6), range(9, 11)])
    indices = (2, 3, 4, 5, 9, 10)
    assert tuple(ranges) == indices and (len(ranges), ranges.last, Ranges([]).last) == (6, 10, -1)
    assert ranges == indices and ranges == Ranges(range(each, each + 1) for each in indices) != indices[1:]
    assert not any(ranges == other for other in ("234567", 6, indices[:-1], (*indices[:-1], 11))) and not Ranges([])


@pytest.mark.parametrize(
    "count", [{"width": 10**6}, {"cache_layer": 10**6}, "0-999999"], ids=["width", "cache", "heads"]
)
def test_no_number_is_larger_than_the_model(count):
    path, form = "bert.encoder.layer.0", {"argument": "", "position": 0, "returns": 1, "width": 0, "cache": ""}
    selected = {"selectors": {path: {"hidden_states": count}}}
    entry = (
        selected if count == "0-999999" else {"stand_ins": {path: {**form, "cache_layer": 0, "reader": "", **count}}}
    )
    with pytest.raises(
        ValueError, match="counts 1000000 heads, channels or layers, and no weight of the dense model has"
    ):
        rebuild(tiny_model(), {"structure": {}, "format_version": 2, **entry})


def test_a_stand_in_that_is_given_no_tokens_says_so():
    form = {"position": 7, "returns": 0, "width": 4, "cache": "", "cache_layer": 0, "reader": "", "linear": None}
    tokens, left = torch.ones(2, 3, 4), StandIn(argument="hidden_states", **form)
    assert left(hidden_states=tokens).shape == left(*[None] * 7, tokens).shape == (2, 3, 4)
    for given in ({"args": (tokens,)}, {"hidden_states": None}, {"others": tokens}):
        with pytest.raises(ValueError, match="given no hidden_states, nor anything at place 7"):
            left(*given.pop("args", ()), **given)


def test_no_table_is_larger_than_any_model_has(folder):
    layers = {f"l{index}": {} for index in range(3000)}
    layers["l0"] = {f"{'x' * 200}{index}": {"kept": 1, "units": 1} for index in range(300)}
    _change(folder / "optin_report.json", layers=layers)
    with pytest.raises(ValueError, match="optin_report.json.*3000 layers with 300 roles are more than any model has"):
        PruningReport.load(folder)
    (folder / "optin_report.json").unlink()
    structure = {f"{layer}.{role}": {"units": 1, "kept": "0"} for layer in layers for role in ["r"]}
    structure |= {f"l0.{role}": {"units": 1, "kept": "0"} for role in layers["l0"]}
    entry = json.loads((folder / "config.json").read_text())["quantization_config"]
    _change(folder / "config.json", quantization_config=entry | {"structure": structure})
    with pytest.raises(ValueError, match="3000 layers with 301 roles"):
        info.run(argparse.Namespace(folder=str(folder), verify=False))


REPORTS = {
    "text for a count": {"tokens": "a"},
    "text for a share": {"flops_achieved": "x"},
    "no number": {"flops_achieved": float("nan")},
    "below zero": {"macs_dense": -1},
    "nothing to divide by": {"params_dense": 0},
    "of 400 digits": {"macs_dense": 10**400},
    "a list of layers": {"layers": []},
    "no counts": {"layers": {"a": {"heads": {}}}},
    "more than there are": {"layers": {"a": {"heads": {"kept": 5, "units": 2}}}},
    "a bar of gigabytes": {"layers": {"a": {"heads": {"kept": 60_000_000, "units": 60_000_000}}}},
    "merges by no number": {"merges": {"a": "b"}},
    "a reason by number": {"left_whole": {"a": 1}},
    "seconds in words": {"seconds": {"a": "b"}},
    "code for a field": {"config": {"a=1); import os; (b": 1}},
    "code for a value": {"config": {"flops": "__import__('os')"}},
    "a refit by number": {"refit": {"a": 1}},
    "evaluations of text": {"evaluations": [3]},
    "a divergence in words": {"divergence": {"distance": "x", "agreement": 1, "samples": 1, "held_out": True}},
    "code for a base": {"base": {"repo_id": EVIL, "commit": None}},
    "code for a commit": {"base": {"repo_id": "user/name", "commit": EVIL}},
    "markup for a count": {"calibration": {"samples": "<script>"}},
    "a long text": {"calibration": {"samples": 1, "dataset": "x" * 20_000}},
}


@pytest.mark.parametrize("fields", REPORTS.values(), ids=REPORTS)
def test_a_report_of_other_types_or_ranges_is_refused(fields, folder):
    _change(folder / "optin_report.json", **fields)
    with pytest.raises(
        ValueError, match=f"optin_report.json is damaged.*({next(iter(fields))}|unknown field|flops=|must be a mapping)"
    ):
        PruningReport.load(folder)


FILES = {
    "report": ("optin_report.json", PruningReport.load),
    "config": ("config.json", read_config),
    "configuration": ("optin_config.json", OptinConfig.from_pretrained),
    "scores": ("optin_scores.json", Scores.from_pretrained),
    "structure": ("optin_structure.json", read_config),
    "model": ("config.json", lambda folder: load_model(folder, None)),
}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", DEEP, "\xff", '{"a": ' + "9" * 5000 + "}"],
    ids=["cut off", "list", "null", "deep", "no UTF-8", "long number"],
)
@pytest.mark.parametrize(("name", "read"), FILES.values(), ids=FILES)
def test_damaged_json_is_named(name, read, text, folder):
    (folder / "optin_scores.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        read(folder)


def test_a_configuration_names_its_file(tmp_path):
    (tmp_path / "optin_config.json").write_text('{"flops": 7}')
    with pytest.raises(ValueError, match=r"optin_config.json: flops=7 must be a share"):
        OptinConfig.from_pretrained(tmp_path)
    with (tmp_path / "optin_config.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ValueError, match="optin_config.json is damaged: it has 33,554,432 bytes, more than"):
        OptinConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("entry", [[1], {"quant_method": ["optin"]}], ids=str)
def test_a_quantization_without_a_name_is_refused_before_transformers_reads_it(entry, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    with pytest.raises(ValueError, match=r"config.json is damaged: quantization_config must be an object whose"):
        load_model(folder, None)


def test_damaged_weights_are_named(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"the weights in .*small/model.safetensors are damaged"):
        load_model(folder, None)
    (folder / "optin_scores.json").write_text("{}")
    (folder / "optin_scores.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match="optin_scores.safetensors"):
        Scores.from_pretrained(folder)


@pytest.mark.parametrize(
    "names",
    [["Trainer"], ["pipeline"], ["PreTrainedModel"], ["BertConfig"], ["AutoTokenizer"], ["__name__"], ["logging"]],
)
def test_only_models_are_loaded(names, folder):
    _change(folder / "config.json", architectures=names)
    with pytest.raises(
        ValueError, match=f"was saved from a {names[0]}, which is no model but something else of transf"
    ):
        load_model(folder, None)


@pytest.mark.parametrize("names", [[3], [{"a": 1}], "BertModel", [EVIL]], ids=["number", "dict", "text", "code"])
def test_a_class_has_a_name(names, folder):
    _change(folder / "config.json", architectures=names)
    with pytest.raises(ValueError, match="architectures in config.json must be a list of names of classes"):
        load_model(folder, None)
    before = (folder / "README.md").read_bytes()
    write_report(folder, PruningReport.load(folder))
    assert (folder / "README.md").read_bytes() == before, "no code of the name"


VALUES = [
    EVIL,
    MARKUP,
    "'",
    '"""',
    "\\",
    "\u2028\u202e\ud800",
    1,
    -0.5,
    float("inf"),
    None,
    True,
    ["a", [EVIL]],
    (1,),
    (2, "b"),
    {"a": [EVIL]},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_literal_is_its_value_and_nothing_else(value):
    code = literal(value)
    assert "<" not in code and "\n" not in code and code.isprintable()
    assert value == (float("inf") if code == 'float("inf")' else ast.literal_eval(code))


def test_other_values_are_no_literals():
    with pytest.raises(ValueError, match="a Tensor cannot be written as code"):
        literal([torch.ones(1)])


def test_texts_are_quoted():
    assert markdown("a*b_c _d_ [x] <i>\n# y & z\x1b") == r"a\*b_c \_d\_ \[x\] &lt;i&gt; # y &amp; z\\x1b"
    assert (code_span("a.b[0]"), code_span("a`b"), code_span("<i>")) == ("`a.b[0]`", r"a\`b", "&lt;i&gt;")
    assert printable("a\n\tb\x1b[2J\u202e") == "a\n\tb\\x1b[2J\\u202e"


def test_a_card_holds_no_code_or_markup_of_others(folder, capsys):
    value = {"dense": 0.5, "pruned": 0.25}
    evaluation = {
        "task": MARKUP,
        "dataset": MARKUP,
        "config": MARKUP,
        "split": MARKUP,
        "samples": 3,
        "protocol": MARKUP,
    }
    evaluation |= {"metrics": {MARKUP: value}, "classes": {MARKUP: value}}
    latency = {"device": MARKUP, "hardware": MARKUP, "threads": 1, "dtype": MARKUP, "batch_size": 1, "tokens": 1}
    latency |= {"repeats": 1, "dense_ms": 1.0, "pruned_ms": 1.0, "speedup": 1.0}
    drawn = {"samples": 3, "dataset": EVIL, "config": MARKUP, "split": MARKUP, "text_columns": [EVIL], "num_samples": 3}
    layers = {MARKUP: {MARKUP: {"kept": 1, "units": 2}, "heads": {"kept": 1, "units": 2}}}
    fields = {"evaluations": [evaluation], "latency": latency, "calibration": drawn, "layers": layers}
    _change(folder / "optin_report.json", **fields, left_whole={MARKUP: MARKUP}, merges={MARKUP: 1})
    sizes = []
    for _ in range(2):
        write_report(folder, PruningReport.load(folder))
        sizes.append((folder / "README.md").stat().st_size)
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert sizes[0] == sizes[1], "an END in a name makes it no longer"
    assert card.text.count(END) == 1 and card.text.rstrip().endswith(END)
    assert "alert(1)" in card.text and not re.search(r"<script|^# Heading|\x1b", card.text, re.MULTILINE)
    blocks = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2 and card.text.count("\n```") == 6, "of loading, of making, and the citation"
    for block in blocks:
        calls = [each.func for each in ast.walk(ast.parse(block)) if isinstance(each, ast.Call)]
        names = {each.attr if isinstance(each, ast.Attribute) else each.id for each in calls}
        assert names <= {"from_pretrained", "get_calibration_dataset", "OptinConfig", "prune"}
    made = next(
        each for each in ast.walk(ast.parse(blocks[1])) if isinstance(each, ast.keyword) and each.arg == "split"
    )
    assert ast.literal_eval(made.value) == MARKUP and EVIL in ast.dump(ast.parse(blocks[1]))
    assert run("info", [str(folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["tags:\n" + "".join(f"- v{index}\n" for index in range(20_000)), "a: x\n" * 20_000])
def test_long_metadata_take_no_time(folder, text):
    (folder / "README.md").write_text(f"---\n{text}---\n# Mine\n\nBy hand.\n")
    write_report(folder, PruningReport.load(folder))
    content = (folder / "README.md").read_text()
    assert "# Mine\n\nBy hand." in content and text[:20] in content, "kept, as a comment"


def test_items_are_united_in_order():
    assert _union(["b", "a"], ["a", "c"], ["b"]) == ["b", "a", "c"]


def test_links_that_leave_a_folder_are_not_read_or_uploaded(folder, hub, tmp_path, caplog):
    secret = tmp_path / "id_rsa"
    secret.write_text("SECRET")
    for name in ("notes.txt", "README.md"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
    (folder / "inside.txt").symlink_to(folder / "config.json")
    assert {"config.json", "inside.txt"} <= set(files_in(folder)) and "notes.txt" not in files_in(folder)
    push_folder(folder, "me/small")
    assert "id_rsa" not in str(hub.files("me/small")) and b"SECRET" not in b"".join(hub.files("me/small").values())
    assert "links that lead out of" in caplog.text
    write_report(folder, PruningReport.load(folder))
    assert (folder / "README.md").is_symlink(), "stays as it is"
    (folder / "optin_report.json").rename(tmp_path / "report.json")
    (folder / "optin_report.json").symlink_to(tmp_path / "report.json")
    with pytest.raises(ValueError, match="optin_report.json is a link to .*, outside of its folder"):
        PruningReport.load(folder)


@pytest.mark.parametrize("private", [True, False])
def test_only_public_cards_are_inherited_from(folder, hub, private):
    api = huggingface_hub.HfApi()
    api.create_repo("me/base", private=private)
    content = b"---\nlicense: mit\ntags: [secret-project]\n---\n# Base\n"
    api.upload_file(path_or_fileobj=content, path_in_repo="README.md", repo_id="me/base")
    _change(folder / "optin_report.json", base={"repo_id": "me/base", "commit": None})
    write_report(folder, PruningReport.load(folder))
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.base_model == "me/base"
    assert ("secret-project" in card.data.tags, card.data.license) == ((False, None) if private else (True, "mit"))


def test_pixels_of_any_type_are_pixels():
    from optimum_optin.media.values import tensor_of

    values = torch.arange(4.0).reshape(2, 2).requires_grad_()
    given = [
        values,
        values * 1,
        values.bfloat16(),
        values.to(torch.float8_e4m3fn),
        list(values.bfloat16()),
        [list(row) for row in values],
        values.detach().numpy(),
        values.tolist(),
    ]
    for each in given:
        found = tensor_of(each)
        assert found.float().tolist() == values.tolist() and not found.requires_grad
        assert found.isfinite().all()
