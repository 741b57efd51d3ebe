"""What ties structure and weights: whatever is changed after saving is refused by name, or changes no output."""

import copy
import json
import shutil

import pytest
import torch
from folders import change_tensors, entry_of, without_digest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import TEXT, load, output_of, perturbed, random_masks, tiny_batch, tiny_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetModel,
)

from optimum_optin import find_groups
from optimum_optin.commands.run import run
from optimum_optin.digests.digest import PENDING, TENSORS, check_digest
from optimum_optin.editing.surgery import rewrite
from optimum_optin.files.tensor_headers import read_header
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.storage.integrity import save_model
from optimum_optin.storage.record import merge_tokens_of, record_structure
from optimum_optin.storage.structure import structure_of

QUERY = "mpnet.encoder.layer.0.attention.attn.q.weight"
SQUARE = "classifier.dense.weight"


def _cut(model, seed=0):
    groups = find_groups(model)
    masks = random_masks(groups, seed)
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    return model


def _merging():
    model = _cut(tiny_model("vit"))
    merge_tokens_of(model, TokenSchedule(1, {"layers.0": 4, "layers.1": 2}))
    return model


def _llama():
    shape = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    return _cut(perturbed(LlamaForCausalLM(LlamaConfig(**shape))))


MODELS = {
    "mpnet": lambda: _cut(tiny_model("mpnet")),
    "beit": lambda: _cut(tiny_model("beit with a shared bias")),
    "vit": _merging,
    "llama": _llama,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> a folder and the model that was saved there, made once."""
    made = {}

    def of(name):
        if name not in made:
            model, folder = MODELS[name](), tmp_path_factory.mktemp(name)
            save_model(model, folder)
            made[name] = folder, model
        return made[name]

    return of


@pytest.fixture
def copied(saved, tmp_path):
    """Name -> a copy of that folder, and the model."""

    def of(name):
        folder, model = saved(name)
        return shutil.copytree(folder, tmp_path / name), model

    return of


@pytest.fixture
def said(monkeypatch):
    """Warnings of loading."""
    found = []
    monkeypatch.setattr("optimum_optin.digests.digest.logger.warning", found.append)
    return found


def _outputs(folder, model, **options):
    return output_of(load(model, folder, **options), tiny_batch(model))


def _other_heads(entry):
    """As many heads as before, but others, wherever the entry names them."""
    for each in entry["structure"].values():
        if each["units"] == 4:
            each["kept"] = _others(each["kept"])
    for each in entry["selectors"].values():
        for argument, text in each.items():
            kept, _, heads = text.partition(" of ")
            each[argument] = f"{_others(kept)} of {heads}"


def _others(kept):
    return {"0-1": "2-3", "2-3": "0-1"}.get(kept, "0-1")


def _fewer_merges(entry):
    entry["tokens"]["merges"]["layers.0"] = 3


def _no_merging(entry):
    entry.update(tokens=None, merging=[])


def _copies(entry):
    entry["tokens"].pop("differences", None)


def _more_protected(entry):
    entry["tokens"]["protected"] = 2


CHANGES = {
    "MPNet, other heads": ("mpnet", _other_heads),
    "BEiT, other heads": ("beit", _other_heads),
    "another schedule": ("vit", _fewer_merges),
    "no schedule": ("vit", _no_merging),
    "tokens that come back as copies": ("vit", _copies),
    "more tokens that stay": ("vit", _more_protected),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_structure_or_schedule_is_refused(name, copied):
    """Without a digest, each would load, and answer something else: that is what it is for."""
    folder, model = copied(CHANGES[name][0])
    for digest in (True, False):  # in the config; the weights have theirs
        entry, write = entry_of(folder)
        CHANGES[name][1](entry)
        if not digest:
            del entry["digest"]
        write()
        words = "config.json was changed since" if digest else "does not say how the model in model.safetensors was pr"
        with pytest.raises(ValueError, match=words):
            load(model, folder)
        assert run("info", [str(folder), "--verify"]) == 2
    other, batch = load(model, without_digest(folder)), tiny_batch(model)
    with torch.no_grad():
        assert not torch.allclose(other.base_model(**batch)[0], model.base_model(**batch)[0], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_changed_in_an_entry_is_refused_or_changes_nothing(name, copied):
    folder, model = copied(name)
    entry, write = entry_of(folder)
    expected, original = output_of(model, tiny_batch(model)), copy.deepcopy(entry)
    for part in [*original, "more"]:
        for value in (None, [], {}, "x", "1", 1, {"a": "b"}):
            if value == original.get(part) or part == "quant_method":
                continue
            entry.clear()
            entry.update(copy.deepcopy(original) | {part: value})
            write()
            try:
                assert torch.equal(_outputs(folder, model), expected)
            except ValueError as error:
                named = (part, "quantization_config", "config.json", "format", "schedule")
                assert any(name in str(error) for name in named)


def test_weights_of_another_pruning_are_refused(copied, tmp_path):
    folder, model = copied("mpnet")
    other = _cut(tiny_model("mpnet"), seed=3)
    save_model(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"how the model in model\.safetensors was pruned: one of .* another pruning"):
        load(model, folder)


def _lost(tensors):
    del tensors[QUERY]


def _renamed(tensors):
    tensors["other"] = tensors.pop(QUERY)


def _turned(tensors):
    tensors[QUERY] = tensors[QUERY].T.contiguous()


def _halved(tensors):
    tensors[QUERY] = tensors[QUERY].half()


def _more(tensors):
    tensors["other"] = torch.ones(2)


TENSORS_CHANGED = {
    _lost: rf"'{QUERY}' is missing\.",
    _renamed: rf"'{QUERY}' is missing; 'other' was not there",
    _turned: rf"'{QUERY}' is F32 of shape \(32, 16\) and was F32 of shape \(16, 32\)",
    _halved: rf"'{QUERY}' is F16 of shape \(16, 32\) and was F32",
    _more: "'other' was not there",
}


@pytest.mark.parametrize("change", TENSORS_CHANGED)
def test_a_tensor_that_is_not_as_it_was_is_refused_by_name(change, copied):
    folder, model = copied("mpnet")
    for notes in (True, False):
        change_tensors(folder, change if notes else lambda tensors: None, notes=notes)
        with pytest.raises(ValueError, match=TENSORS_CHANGED[change]):
            load(model, folder)
        for options in ({"ignore_mismatched_sizes": True}, {"dtype": torch.bfloat16}):
            with pytest.raises(ValueError, match=r"not those that config\.json notes"):
                MPNetModel.from_pretrained(folder, **options)
    (folder / "optin_tensors.json").unlink()
    with pytest.raises(ValueError, match="names, types or shapes of tensors are others"):
        load(model, folder)
    (folder / "optin_tensors.json").write_text('{"tensors": {"a": {"dtype": "F32", "shape": [1]}}}')
    with pytest.raises(ValueError, match="names, types or shapes of tensors are others"):
        load(model, folder)


def _number(tensors):
    tensors[QUERY][3, 5] += 1e-3


def _square(tensors):
    tensors[SQUARE] = tensors[SQUARE].T.contiguous()


def _nan(tensors):
    tensors[SQUARE][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_number, f"'{QUERY}' has other numbers. D"),
        (_square, f"'{SQUARE}' has other numbers. D"),
        (_nan, f"'{SQUARE}' has other numbers, some of them NaN or infinite"),
    ],
)
def test_numbers_are_verified_when_asked_for(change, words, copied, capsys):
    """Loading reads no numbers, so it does not see them."""
    folder, model = copied("mpnet")
    assert run("info", [str(folder), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified_tensors"] == len(load_file(folder / "model.safetensors"))
    change_tensors(folder, change)
    load(model, folder)
    assert run("info", [str(folder), "--verify"]) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_verified_is_an_error_that_says_why(copied, capsys, tmp_path):
    folder, model = copied("mpnet")
    config = json.loads((folder / "config.json").read_text())
    load(model, folder).save_pretrained(tmp_path / "own")
    without_digest(shutil.copytree(folder, tmp_path / "earlier"))
    shutil.copytree(folder, tmp_path / "lost")
    (tmp_path / "lost" / "model.safetensors").unlink()
    for name, words in {"own": "has no optin_tensors.json with hashes", "earlier": "has no digest"}.items():
        assert run("info", [str(tmp_path / name), "--verify"]) == 2
        assert words in capsys.readouterr().err
    assert run("info", [str(tmp_path / "lost"), "--verify"]) == 2
    assert "no model.safetensors" in capsys.readouterr().err
    (folder / "optin_tensors.json").write_text('{"tensors": []}')
    assert run("info", [str(folder), "--verify"]) == 2
    assert "optin_tensors.json is damaged" in capsys.readouterr().err
    assert config["quantization_config"]["digest"].keys() == {"structure", "tensors"}


def test_only_headers_are_read(copied):
    folder, _ = copied("mpnet")
    file = folder / "large.safetensors"
    text = json.dumps({"a": {"dtype": "F32", "shape": [2**33], "data_offsets": [0, 2**35]}}).encode()
    with open(file, "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + 2**35)  # no blocks on the disk
    assert read_header(file).forms["a"].shape == (2**33,)
    assert check_digest({"structure": {}}, [file], "config.json") is False


# What stays possible


@pytest.mark.parametrize("name", MODELS)
def test_saved_again_in_shards_or_half_it_has_its_digest(name, copied, tmp_path, said):
    folder, model = copied(name)
    loaded = load(model, folder)
    assert loaded.config.quantization_config.digest is None and "hf_quantizer" not in vars(loaded)
    loaded.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    digest = entry_of(tmp_path / "shards")[0]["digest"]
    assert len(shards) > 1 and digest == entry_of(folder)[0]["digest"]
    for each in shards:
        assert read_header(each).notes[TENSORS] == digest["tensors"]
    assert torch.equal(_outputs(tmp_path / "shards", model), output_of(model, tiny_batch(model)))
    loaded.half().save_pretrained(tmp_path / "half")
    other = entry_of(tmp_path / "half")[0]["digest"]
    assert other["structure"] == digest["structure"] and other["tensors"] != digest["tensors"]
    assert load(model, tmp_path / "half", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert not said
    shards[0].unlink()
    shutil.copy(shards[1], shards[0])
    with pytest.raises(ValueError, match="model-00002-of-.*safetensors are damaged: .* is in model-00001"):
        load(model, tmp_path / "shards")


def test_another_head_is_made_when_it_is_asked_for(copied):
    folder, model = copied("mpnet")
    assert AutoModelForTokenClassification.from_pretrained(folder, num_labels=5).classifier.out_features == 5
    options = {"num_labels": 7, "ignore_mismatched_sizes": True}
    other = AutoModelForSequenceClassification.from_pretrained(folder, **options)
    assert other.classifier.out_proj.out_features == 7
    assert torch.equal(other.classifier.dense.weight, model.classifier.dense.weight)
    assert MPNetModel.from_pretrained(folder).pooler is not None, "which was not saved, as another class has none"


def test_files_that_were_split_by_hand_load_with_a_warning(copied, said):
    folder, model = copied("mpnet")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{number}-of-00002.safetensors": sorted(tensors)[number - 1 :: 2] for number in (1, 2)}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(_outputs(folder, model), output_of(model, tiny_batch(model)))
    assert "have no digest, as they were resharded or converted by hand" in said[0]
    assert run("info", [str(folder), "--verify"]) == 0


def test_converted_by_hand_and_meant(copied, said):
    folder, model = copied("mpnet")
    change_tensors(folder, _halved, notes=False)
    with pytest.raises(ValueError, match=r"converted by hand and are meant, delete `digest` in config\.json"):
        load(model, folder)
    entry, write = entry_of(folder)
    del entry["digest"]
    write()
    load(model, folder)
    assert "have no digest, as they were saved by an earlier version, or by hand" in said[0]


def test_weights_in_pickles_are_not_those_that_were_saved(copied):
    folder, model = copied("mpnet")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"in safetensors, and pytorch_model\.bin is no such file"):
        load(model, folder)
    entry, write = entry_of(folder)
    del entry["digest"]
    write()
    load(model, folder)


def test_a_variant_stands_beside_the_model(copied, said):
    folder, model = copied("mpnet")
    load(model, folder).half().save_pretrained(folder, variant="fp16")
    assert load(model, folder, variant="fp16").dtype == torch.float16
    change_tensors(folder, lambda tensors: None)
    load(model, folder)
    change_tensors(folder, _lost)
    with pytest.raises(ValueError, match=r"not those that model\.safetensors notes"):
        load(model, folder)
    model.save_pretrained(folder)
    load(model, folder, variant="fp16")
    assert not said


def test_a_config_that_is_saved_alone_leaves_the_digest_to_the_weights(copied, said):
    folder, model = copied("mpnet")
    loaded = load(model, folder)
    loaded.config.save_pretrained(folder)
    assert "digest" not in entry_of(folder)[0]
    load(model, folder)
    config = AutoConfig.from_pretrained(folder)
    config.save_pretrained(folder)
    load(model, folder, config=config)
    assert not said
    change_tensors(folder, _lost)
    with pytest.raises(ValueError, match=r"not those that model\.safetensors notes"):
        load(model, folder)


def test_what_a_state_dict_lacks_is_not_drawn(copied, tmp_path):
    folder, model = copied("mpnet")
    state = model.state_dict()
    part = {name: value for name, value in state.items() if name != QUERY}
    model.save_pretrained(tmp_path / "part", state_dict=part)
    with pytest.raises(ValueError, match=f"{QUERY} of this MPNetForSequenceClassification is not among the weights"):
        load(model, tmp_path / "part")
    config = AutoConfig.from_pretrained(folder)
    loaded = type(model).from_pretrained(None, config=config, state_dict=state)
    assert torch.equal(output_of(loaded, tiny_batch(model)), output_of(model, tiny_batch(model)))


def test_a_save_that_was_cut_off_is_tied_by_its_structure(copied, monkeypatch, tmp_path):
    folder, model = copied("mpnet")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("optimum_optin.storage.plugin.write_digest", _interrupted)
        model.save_pretrained(tmp_path / "cut")
    assert "hf_quantizer" not in vars(model)
    assert read_header(tmp_path / "cut" / "model.safetensors").notes[TENSORS] == PENDING
    load(model, tmp_path / "cut")
    shutil.copy(folder / "config.json", tmp_path / "cut")
    load(model, tmp_path / "cut")
    entry, write = entry_of(tmp_path / "cut")
    del entry["digest"]
    _other_heads(entry)
    write()
    with pytest.raises(ValueError, match="does not say how the model in"):
        load(model, tmp_path / "cut")


def _interrupted(*_):
    raise KeyboardInterrupt


def test_dense_models_and_adapters_have_none(copied, tmp_path):
    folder, _ = copied("mpnet")
    tiny_model("mpnet").save_pretrained(tmp_path / "dense")
    assert not (tmp_path / "dense" / "optin_tensors.json").exists()
    with safe_open(tmp_path / "dense" / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    tiny_model("mpnet").save_pretrained(folder)
    assert not (folder / "optin_tensors.json").exists(), "it told of other weights"


def test_a_listing_stays_where_an_adapter_is_saved_beside_it(copied):
    peft = pytest.importorskip("peft")
    folder, model = copied("mpnet")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    loaded = load(model, folder)
    loaded.add_adapter(peft.LoraConfig(r=2, target_modules=["q"]))
    loaded.save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before
    load(model, folder)


@pytest.mark.parametrize("whole", [True, False], ids=["push_to_hub", "save_pretrained"])
def test_a_pushed_model_has_its_digest(whole, copied, hub, tmp_path, said):
    folder, model = copied("mpnet")
    loaded = load(model, folder)
    if whole:
        loaded.push_to_hub("me/small")
    else:  # which uploads before it returns: the entry alone is tied
        loaded.save_pretrained(tmp_path / "small", push_to_hub=True, repo_id="me/small")
    assert torch.equal(_outputs("me/small", model), output_of(model, tiny_batch(model)))
    files = hub.files("me/small")
    assert ("digest" in json.loads(files["config.json"])["quantization_config"]) == whole
    assert ("optin_tensors.json" in files) == whole and not said


# Folders without a digest


def test_tensors_that_a_folder_without_digest_lacks(copied, said):
    folder, model = copied("mpnet")
    for name in (QUERY, "mpnet.encoder.layer.0.output.LayerNorm.bias", "classifier.dense.bias"):
        lacking = without_digest(shutil.copytree(folder, folder.with_name(name)))
        change_tensors(lacking, lambda tensors, name=name: tensors.pop(name), notes=False)
        with pytest.raises(ValueError, match=f"{name} of this MPNetForSeq.* is not among the weights on disk"):
            load(model, lacking)
        if name == "classifier.dense.bias":  # as of a head that was asked for
            assert AutoModelForTokenClassification.from_pretrained(lacking)
    assert len(said) == 4


def test_a_pooler_that_was_left_out_may_be_missing(tmp_path):
    model = _cut(tiny_model(base=True))
    model.save_pretrained(tmp_path)
    without_digest(tmp_path)
    change_tensors(tmp_path, lambda tensors: [tensors.pop(f"pooler.dense.{each}") for each in ("weight", "bias")])
    type(model).from_pretrained(tmp_path, add_pooling_layer=False)
    type(model).from_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.pop("embeddings.LayerNorm.bias"))
    with pytest.raises(ValueError, match=r"^embeddings\.LayerNorm\.bias of this BertModel"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda entry: entry.update(tokens=None), "names layers that merge tokens, and no schedule"),
        (lambda entry: entry["merging"].pop(), "in the place of the layers from the first that merges to the last"),
        (lambda entry: entry["merging"].reverse(), "in the place of the layers"),
        (lambda entry: entry["merging"].append(entry["merging"][0]), "in the place of the layers"),
        (lambda entry: entry["merging"][0].update(keys="vit.layers.1.attention.k_proj"), "is no part of vit.layers.0"),
        (lambda entry: entry["tokens"]["merges"].update({"layers.0": 0}), r"layers\.0 must merge, as the first"),
        (lambda entry: entry["tokens"]["merges"].update({"layers.2": 1}), r"layers\.2, the last, must not"),
        (lambda entry: entry["tokens"].update(more=1), "token schedule must look like"),
    ],
)
def test_a_schedule_is_checked_without_a_digest_as_well(edit, words, copied):
    folder, model = copied("vit")
    entry, write = entry_of(without_digest(folder))
    edit(entry)
    write()
    with pytest.raises(ValueError, match=words):
        load(model, folder)


def test_tied_weights_are_listed_once(saved):
    folder, model = saved("llama")
    assert "lm_head.weight" not in json.loads((folder / "optin_tensors.json").read_text())["tensors"]
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight and type(loaded) is type(model)
