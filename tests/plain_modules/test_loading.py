"""Pruned modules on disk: what is loaded is what was saved, and files or factories that do not fit are refused."""

import copy
import json
import shutil
from functools import partial

import pytest
import torch
from folders import change_tensors, without_digest
from safetensors.torch import load_file
from torch import nn
from toys import Block, TorchEncoder, Transformer, perturbed, token_ids

from optimum_optin import OptinConfig, OptinPruner, PruningReport, check_architecture, load_pruned
from optimum_optin.commands.run import run
from optimum_optin.plain_modules import loading
from optimum_optin.publishing.pruned_folders import push_folder, write_report

CONFIG = OptinConfig(flops=0.6, probes=8, min_heads=2)  # the dimensions of a single head would be its units
DATA = torch.randint(0, 50, (16, 9), generator=torch.Generator().manual_seed(1))


class Tied(Transformer):
    """Its two norms share a weight, and a scale of each place is not saved; so is a number beside it."""

    def __init__(self):
        super().__init__()
        self.blocks[1].norm1.weight = self.blocks[0].norm1.weight
        # Not linspace: transformers replaces that while it loads a model, after which a device context may not see it.
        self.register_buffer("places", 0.5 + 0.2 * torch.arange(9), persistent=False)
        self.register_buffer("calls", torch.tensor(3))

    def forward(self, token_ids):
        x = self.embed(token_ids) * self.places[: token_ids.shape[1], None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Looking(Transformer):
    """Looks at what tensors hold while it is made, as timm's rates of dropped paths do."""

    def __init__(self):
        super().__init__()
        self.rates = torch.linspace(0, 0.1, 2).tolist()


KINDS = {kind.__name__: kind for kind in (Transformer, TorchEncoder, Tied, Looking)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> folder and the module that was saved there, made once."""
    made = {}

    def of(name):
        if name not in made:
            pruner = OptinPruner.from_model(perturbed(KINDS[name]()), token_ids(), config=CONFIG)
            folder = tmp_path_factory.mktemp(name)
            pruner.prune(DATA, save_dir=folder)
            made[name] = folder, pruner
        return made[name]

    return of


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of a pruned `Transformer` that a test may change."""
    return shutil.copytree(saved("Transformer")[0], tmp_path / "folder")


def outputs(module):
    with torch.no_grad():
        return module(DATA)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_loaded_is_what_was_saved(name, saved):
    folder, pruner = saved(name)
    assert 0.5 < pruner.report.flops_achieved <= 0.6
    expected = outputs(pruner.pruned_model.eval())
    before = torch.get_rng_state()
    for factory in (KINDS[name], pruner.model, partial(KINDS[name])):
        loaded = load_pruned(factory, folder)
        assert type(loaded) is KINDS[name] and not loaded.training
        assert not any(each.is_meta for each in (*loaded.parameters(), *loaded.buffers()))
        assert torch.allclose(outputs(loaded), expected, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before), "no random number of the user's is drawn"
    assert sorted(each.name for each in folder.iterdir()) == [
        "README.md",
        "model.safetensors",
        "optin_report.json",
        "optin_structure.json",
        "optin_tensors.json",
    ]
    assert PruningReport.load(folder) == pruner.report


def test_the_dense_module_stays_as_it_is(saved):
    folder, pruner = saved("Transformer")
    before = {name: each.clone() for name, each in pruner.model.state_dict().items()}
    load_pruned(pruner.model, folder)
    assert pruner.model.state_dict().keys() == before.keys()
    assert all(torch.equal(each, before[name]) for name, each in pruner.model.state_dict().items())


def test_it_is_made_without_memory_where_that_is_possible(saved):
    made = []

    def factory():
        module = Transformer()
        made.append(module.head.weight.is_meta)
        return module

    load_pruned(factory, saved("Transformer")[0])
    assert made == [True]
    made = [each for each in (Tied, Looking) if not load_pruned(each, saved(each.__name__)[0]).training]
    assert made == [Tied, Looking]


def test_what_no_weights_fill_is_seen_wherever_it_is():
    class Hidden(Transformer):
        def __init__(self):
            super().__init__()
            self.more = {"steps": [(torch.arange(3), 2)]}

    with torch.device("meta"):
        hidden, plain, tied = Hidden(), Transformer(), Tied()
    assert [loading.without_values(each) for each in (hidden, plain, tied)] == ["more", None, "places"]


def test_shared_weights_are_written_once_and_shared_again(saved):
    folder, _ = saved("Tied")
    assert "blocks.1.norm1.weight" not in load_file(folder / "model.safetensors")
    loaded = load_pruned(Tied, folder)
    assert loaded.blocks[1].norm1.weight is loaded.blocks[0].norm1.weight
    assert int(loaded.calls) == 3 and torch.equal(loaded.places, Tied().places)


def test_types_and_trainability_are_kept(tmp_path):
    dense = perturbed(Transformer()).to(torch.bfloat16)
    dense.head.weight.requires_grad_(False)
    pruner = OptinPruner.from_model(dense, token_ids(), config=CONFIG)
    pruner.prune(DATA, save_dir=tmp_path)
    loaded = load_pruned(Transformer, tmp_path)
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert all(each.requires_grad for each in loaded.parameters()), "as what the factory makes"
    assert not load_pruned(dense, tmp_path).head.weight.requires_grad


def test_heads_may_all_be_gone(tmp_path):
    dense = perturbed(Transformer())
    with torch.no_grad():  # heads that do nothing are pruned first
        dense.blocks[0].o.weight.mul_(1e-6)
    pruner = OptinPruner.from_model(dense, token_ids(), config=OptinConfig(flops=0.3, probes=8, min_heads=0))
    pruned = pruner.prune(DATA, save_dir=tmp_path)
    kept = [each["heads"]["kept"] for each in pruner.report.layers.values()]
    assert 0 in kept or min(kept) == 1
    for factory in (Transformer, dense):
        assert torch.allclose(outputs(load_pruned(factory, tmp_path)), outputs(pruned), atol=1e-6)


def test_a_loaded_module_is_pruned_again_and_the_structures_add_up(saved, tmp_path):
    folder, first = saved("Transformer")
    pruner = OptinPruner.from_model(load_pruned(Transformer, folder), token_ids(), config=CONFIG)
    pruned = pruner.prune(DATA, save_dir=tmp_path)
    for layer, roles in pruner.report.layers.items():
        assert roles["neurons"]["units"] == 48 == first.report.layers[layer]["neurons"]["units"]
        assert roles["neurons"]["kept"] <= first.report.layers[layer]["neurons"]["kept"]
    assert torch.allclose(outputs(load_pruned(Transformer, tmp_path)), outputs(pruned), atol=1e-6)
    with pytest.raises(ValueError, match="the Transformer that was given is pruned already: give a dense one"):
        load_pruned(pruner.model, tmp_path)


def test_a_trial_of_saving_tells_whether_a_module_loads():
    proof = check_architecture(perturbed(Transformer()), token_ids(), reload=True)
    assert proof.reloaded and proof.proved
    proof = check_architecture(perturbed(Stateful()), token_ids(), reload=True)
    assert not proof.reloaded and "no tensor (get_extra_state)" in proof.reload_problem


class Stateful(Transformer):
    """Keeps something else than tensors among its weights."""

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


# What does not fit


class Wider(Transformer):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(neurons=64) for _ in range(2))


def renamed(kind):
    return type("Transformer", (kind,), {})


class Other(Transformer):
    def __init__(self):
        super().__init__()
        self.late = nn.Linear(32, 32)


class Narrow(Transformer):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(neurons=4) for _ in range(2))


class MoreClasses(Transformer):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(32, 7)


@pytest.mark.parametrize(
    ("factory", "kind", "said"),
    [
        (TorchEncoder, ValueError, "TorchEncoder makes is a TorchEncoder, and the folder holds a pruned Transformer"),
        (
            TorchEncoder(),
            ValueError,
            "that was given is a TorchEncoder, and the folder holds a pruned Transformer",
        ),
        (renamed(Other), ValueError, r"does not fit what Transformer makes: it lacks late\.bias, late\.weight"),
        (renamed(MoreClasses), ValueError, r"head\.weight has the shape \(5, 32\) there, and \(7, 32\) here"),
        (renamed(Narrow), ValueError, r"optin_structure\.json gives blocks\.0\.\S+ the shape .*a dense model has \(4"),
        (lambda: Transformer(layers=1), ValueError, r"names blocks\.1\.\S+, which this Transformer does not have"),
        (lambda: "a module", TypeError, "what <lambda> makes must be a torch.nn.Module, got str"),
        ("Transformer", TypeError, "factory must make a module when it is called"),
    ],
)
def test_a_factory_that_makes_something_else_is_refused(factory, kind, said, folder):
    with pytest.raises(kind, match=said):
        load_pruned(factory, folder)


def test_what_a_factory_raises_is_seen(folder):
    def factory():
        raise KeyError("no such depth")

    with pytest.raises(KeyError, match="no such depth"):
        load_pruned(factory, folder)


def change(folder, edit):
    file = folder / "optin_structure.json"
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))


def _put(path, value):
    def edit(data):
        *places, last = path
        for place in places:
            data = data[place]
        data[last] = value

    return edit


def _larger(data):
    data["pruned"]["shapes"]["blocks.0.up.weight"][0] = 10**9


def _nowhere(data):
    data["pruned"]["shapes"]["blocks.7.up.weight"] = [1, 1]


TAMPERED = {
    "no class": (lambda data: data.pop("class"), r'must hold \{"class"'),
    "no structure": (lambda data: data.pop("pruned"), "'pruned' must hold structure, format_version"),
    "unknown parts": (_put(("pruned", "code"), "import os"), "alone, got code"),
    "merging": (_put(("pruned", "tokens"), {"merges": {}}), "alone, got tokens"),
    "no format": (lambda data: data["pruned"].pop("format_version"), "lacks format_version"),
    "another format": (_put(("pruned", "format_version"), 1), "format 1 is none of modules"),
    "a newer format": (_put(("pruned", "format_version"), 3), "saved in format 3"),
    "shapes that are none": (_put(("pruned", "shapes"), {"head.weight": ["a"]}), "shapes must be"),
    "negative shapes": (_put(("pruned", "shapes"), {"head.weight": [-1, 2]}), "shapes must be"),
    "larger shapes": (_larger, "of which a pruned one keeps a part"),
    "shapes of nothing": (_nowhere, r"names blocks\.7\.up\.weight"),
    "counters that are none": (_put(("pruned", "counters"), {"blocks.0.heads": "2"}), "counters must be"),
    "larger counters": (
        _put(("pruned", "counters"), {"blocks.0.heads": 5}),
        r"sets \S+ to 5, but it is 4",
    ),
    "counters of nothing": (_put(("pruned", "counters"), {"blocks.0.nothing": 1}), r"names blocks\.0\.nothing"),
    "a path into Python": (_put(("pruned", "counters"), {"__class__.heads": 1}), r"names __class__\.heads"),
    "kept beyond": (_put(("pruned", "structure"), {"a.b": {"units": 2, "kept": "0-7"}}), "stay below its 2 units"),
    "removed nothing": (_put(("pruned", "removed"), {"nothing": "o"}), "names nothing"),
    "a list": (lambda data: data.update({"pruned": []}), "'pruned' must hold"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_structure_that_was_tampered_with_is_refused(name, folder):
    edit, said = TAMPERED[name]
    change(without_digest(folder), edit)
    with pytest.raises(ValueError, match=said):
        load_pruned(Transformer, folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_structure_that_is_no_json_is_refused(text, folder):
    (folder / "optin_structure.json").write_text(text)
    with pytest.raises(ValueError, match=r"optin_structure\.json is damaged"):
        load_pruned(Transformer, folder)


def test_a_structure_of_gigabytes_is_not_read(folder):
    with open(folder / "optin_structure.json", "r+b") as file:
        file.truncate(2**27)
    with pytest.raises(ValueError, match="it has 134,217,728 bytes, more than"):
        load_pruned(Transformer, folder)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda state: state.pop("head.bias"), r"it lacks head\.bias"),
        (lambda state: state.update(more=torch.ones(1)), "it holds more"),
        (
            lambda state: state.update({"head.bias": torch.ones(5).int()}),
            r"head\.bias is torch\.int32 there, torch\.float32",
        ),
        (lambda state: state.update({"head.bias": torch.ones(4)}), r"head\.bias has the shape \(4,\) there"),
        (lambda state: state.clear(), "it lacks .* and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(edit, said, folder):
    change_tensors(without_digest(folder), edit)
    with pytest.raises(ValueError, match=said):
        load_pruned(Transformer, folder)


def test_damaged_or_missing_files_are_named(folder, tmp_path):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"the weights in .*model\.safetensors are damaged"):
        load_pruned(Transformer, folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        load_pruned(Transformer, folder)
    with pytest.raises(FileNotFoundError, match=r"holds no optin_structure\.json"):
        load_pruned(Transformer, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds a model of transformers.*AutoModel"):
        load_pruned(Transformer, tmp_path)


def test_what_cannot_be_saved_leaves_the_folder_as_it_was(saved, folder):
    pruner = copy.copy(saved("Transformer")[1])
    pruner.pruned_model = copy.deepcopy(pruner.pruned_model)
    pruner.pruned_model.head = nn.Linear(32, 6)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(ValueError, match=r"head\.weight has the shape \(6, 32\) there, and \(5, 32\) here"):
        pruner.save_pretrained(folder)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


# What people do with a folder


def test_info_shows_a_folder_without_its_code(folder, capsys):
    assert run("info", [str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Transformer" in shown and "MB of weights, pruned with optimum-optin" in shown and "neurons" in shown
    (folder / "optin_report.json").unlink()
    assert run("info", [str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["architecture"] == "Transformer" and data["model_type"] is None
    assert data["layers"]["layers.0"]["neurons"]["units"] == 48
    (folder / "optin_structure.json").write_text("{")
    assert run("info", [str(folder)]) != 0
    assert "optin_structure.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "prune", "score"])
def test_commands_that_need_the_code_say_what_to_do(command, folder, tmp_path, capsys):
    data = tmp_path / "data.txt"
    data.write_text("a cat\n" * 16)
    more = {"prune": ["--output", str(tmp_path / "out"), "--calibration", str(data)]}
    more["score"] = more["prune"]
    assert run(command, [str(folder), *more.get(command, [])]) != 0
    said = capsys.readouterr().err
    assert "holds a pruned module of plain PyTorch" in said and "load_pruned(factory, " in said


def test_the_card_says_how_to_load_it(saved):
    folder, pruner = saved("Transformer")
    card = (folder / "README.md").read_text()
    assert "library_name: pytorch" in card and "pipeline_tag" not in card
    assert "a `Transformer` of PyTorch with smaller layers" in card
    assert "model = load_pruned(lambda: Transformer(...)," in card
    assert "OptinPruner.from_model(dense, example_inputs)" in card
    assert "AutoModel" not in card and "from_config" not in card
    assert pruner.create_model_card("me/small").text.count('"me/small"') == 1


def test_figures_are_added_to_a_folder_without_its_code(folder, saved):
    report = saved("Transformer")[1].report
    with open(folder / "README.md", "a") as card:
        card.write("\nMy words.\n")
    entry = saved("Transformer")[1].benchmark(repeats=1)
    write_report(folder, PruningReport(**{**report.to_dict(), "latency": entry}))
    written = (folder / "README.md").read_text()
    assert written.endswith("My words.\n") and "latency, batch of 8" in written
    assert "weights on disk" in written and PruningReport.load(folder).latency["repeats"] == 1


def test_a_module_takes_the_place_of_a_model_and_the_other_way_round(saved, tmp_path):
    pruner = saved("Transformer")[1]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    pruner.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "pytorch_model.bin").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_it_is_pushed_and_loaded_from_the_hub(hub, saved, folder):
    pruner = saved("Transformer")[1]
    pruner.push_to_hub("me/module")
    expected = outputs(pruner.pruned_model.eval())
    assert torch.equal(outputs(load_pruned(Transformer, "me/module")), expected)
    push_folder(folder, "me/folder")
    assert torch.equal(outputs(load_pruned(Transformer, "me/folder", revision="main")), expected)
    assert (
        b'load_pruned(lambda: Transformer(...), "me/folder")' in hub.repos["me/folder"].find("main").files["README.md"]
    )
    with pytest.raises(FileNotFoundError, match=r"holds no optin_structure\.json"):
        load_pruned(Transformer, "me/module", subfolder="elsewhere")
