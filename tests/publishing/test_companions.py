"""What stands beside a dense model's weights stands beside the pruned ones, or is named."""

import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.publishing.pruned_folders import push_folder

WHOLE = OptinConfig(flops=1.0, probes=8)


@pytest.fixture
def warnings(monkeypatch):
    """What our loggers warn of; transformers' do not pass messages on."""
    said = []
    for module in (
        "publishing.origin",
        "publishing.companions",
        "files.exchange",
        "publishing.pruned_folders",
        "publishing.card",
    ):
        monkeypatch.setattr(f"optimum_optin.{module}.logger.warning", said.append)
    return said


@pytest.fixture
def embedder(tmp_path):
    """A folder of sentence-transformers: CLS pooling, a dense layer with weights of its own, normalisation."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    tiny_model(base=True).save_pretrained(tmp_path / "encoder")
    word_tokenizer().save_pretrained(tmp_path / "encoder")
    parts = [
        modules.Transformer(str(tmp_path / "encoder"), max_seq_length=6),
        modules.Pooling(32, pooling_mode="cls"),
        modules.Dense(32, 8),
        modules.Normalize(),
    ]
    folder = tmp_path / "embedder"
    st.SentenceTransformer(modules=parts, prompts={"query": "the "}, device="cpu").save_pretrained(str(folder))
    (folder / "LICENSE").write_text("mine")
    return folder


def embeddings(folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:6], convert_to_tensor=True)


def same(folder, other):
    torch.testing.assert_close(embeddings(folder), embeddings(other), atol=1e-6, rtol=1e-6)


def prune(source, out, **options):
    pruner = OptinPruner.from_pretrained(source, **options)
    pruner.prune(TEXTS, WHOLE, save_dir=out)
    return pruner


def test_an_embedder_embeds_as_before(embedder, tmp_path):
    prune(embedder, tmp_path / "out")
    same(tmp_path / "out", embedder)
    assert (tmp_path / "out/LICENSE").read_text() == "mine"
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_a_model_object_whose_folder_is_known(embedder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = AutoModel.from_pretrained("embedder")  # a relative path, and then another working directory
    pruner = OptinPruner(model, AutoTokenizer.from_pretrained("embedder"))
    monkeypatch.chdir("/")
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    same(tmp_path / "out", embedder)


def test_the_part_of_an_embedder_that_is_in_memory(embedder, tmp_path):
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(embedder), device="cpu")
    OptinPruner(loaded[0].auto_model, loaded.tokenizer).prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    same(tmp_path / "out", embedder)


def _first_in_a_folder(embedder):
    """As older versions saved it."""
    first = embedder / "0_Transformer"
    first.mkdir()
    for file in embedder.iterdir():
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "LICENSE"):
            file.rename(first / file.name)
    modules = json.loads((embedder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (embedder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("way", ["subfolder", "path"])
def test_a_first_module_in_a_folder_of_its_own(embedder, tmp_path, way):
    _first_in_a_folder(embedder)
    options = {"subfolder": "0_Transformer"} if way == "subfolder" else {}
    prune(embedder if options else embedder / "0_Transformer", tmp_path / "out", **options)
    assert not (tmp_path / "out/0_Transformer").exists()
    same(tmp_path / "out", embedder)
    assert (tmp_path / "out/LICENSE").read_text() == "mine"


def test_a_road_of_a_router_is_not_put_back_which_is_said(embedder, tmp_path, warnings):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    roads = [[modules.Transformer(str(tmp_path / "encoder")), modules.Pooling(32, pooling_mode="cls")] for _ in "ab"]
    router = modules.Router(dict(zip(("query", "document"), roads, strict=True)), default_route="query")
    SentenceTransformer(modules=[router], device="cpu").save_pretrained(str(tmp_path / "router"))
    prune(tmp_path / "router/query_0_Transformer", tmp_path / "out")
    assert "../query_1_Pooling" in warnings[0] and "are not saved along" in warnings[0]
    AutoModel.from_pretrained(tmp_path / "out")


def test_pickled_weights_of_a_module_become_safetensors(embedder, tmp_path):
    tensors = load_file(embedder / "2_Dense/model.safetensors")
    torch.save(tensors, embedder / "2_Dense/pytorch_model.bin")
    (embedder / "2_Dense/model.safetensors").unlink()
    prune(embedder, tmp_path / "out")
    same(tmp_path / "out", embedder)
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_saving_where_it_came_from_touches_no_companion(embedder):
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in embedder.glob("*_*/*")}
    expected = embeddings(embedder)
    prune(embedder, embedder)
    torch.testing.assert_close(embeddings(embedder), expected, atol=1e-6, rtol=1e-6)
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in embedder.glob("*_*/*")} == before


def test_from_the_hub_and_to_it(embedder, hub, tmp_path):
    api = huggingface_hub.HfApi()
    api.create_repo("me/embedder")
    api.upload_folder(repo_id="me/embedder", folder_path=embedder)
    api.upload_file(repo_id="me/embedder", path_in_repo="onnx/model.onnx", path_or_fileobj=b"x")
    pruner = prune("me/embedder", tmp_path / "out")
    same(tmp_path / "out", embedder)
    pruner.push_to_hub("me/pushed")
    push_folder(tmp_path / "out", "me/folder")
    for repo_id in ("me/pushed", "me/folder"):
        files = hub.files(repo_id)
        assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors", "LICENSE"} <= set(files)
        assert "onnx/model.onnx" not in files
        for name in files:
            (tmp_path / repo_id / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / repo_id / name).write_bytes(files[name])
        same(tmp_path / repo_id, embedder)


def test_a_first_module_in_a_folder_of_its_own_on_the_hub(embedder, hub, tmp_path):
    _first_in_a_folder(embedder)
    api = huggingface_hub.HfApi()
    api.create_repo("me/embedder")
    api.upload_folder(repo_id="me/embedder", folder_path=embedder)
    prune("me/embedder", tmp_path / "out", subfolder="0_Transformer")
    same(tmp_path / "out", embedder)


def test_a_repository_in_the_cache_without_network(embedder, hub, tmp_path, monkeypatch, warnings):
    api = huggingface_hub.HfApi()
    api.create_repo("me/embedder")
    api.upload_folder(repo_id="me/embedder", folder_path=embedder)
    model = AutoModel.from_pretrained("me/embedder")
    huggingface_hub.snapshot_download("me/embedder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    OptinPruner(model, AutoTokenizer.from_pretrained("me/embedder")).prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    same(tmp_path / "out", embedder)
    assert warnings == []


def test_what_the_cache_may_lack_is_said(embedder, hub, tmp_path, monkeypatch, warnings):
    api = huggingface_hub.HfApi()
    api.create_repo("me/embedder")
    api.upload_folder(repo_id="me/embedder", folder_path=embedder)
    model = AutoModel.from_pretrained("me/embedder")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    OptinPruner(model, word_tokenizer()).prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert "me/embedder" in warnings[0] and "modules of sentence-transformers" in warnings[0]


def test_a_module_that_lacks_its_folder_is_named_but_for_a_normalisation(embedder, tmp_path, warnings):
    shutil.rmtree(embedder / "3_Normalize")
    prune(embedder, tmp_path / "out")
    same(tmp_path / "out", embedder)
    assert warnings == []
    shutil.rmtree(embedder / "2_Dense")
    prune(embedder, tmp_path / "again")
    assert warnings[0].startswith("2_Dense/ beside the dense model in")


def test_a_source_that_is_gone_is_said(embedder, tmp_path, warnings):
    model = AutoModel.from_pretrained(embedder)
    shutil.rmtree(embedder)
    pruner = OptinPruner(model, word_tokenizer())
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert len(warnings) == 1 and "modules of sentence-transformers" in warnings[0] and str(embedder) in warnings[0]
    AutoModel.from_pretrained(tmp_path / "out")


def test_a_folder_without_a_model_is_not_taken_for_its_source(tmp_path, warnings):
    model = tiny_model()
    model.config._name_or_path = str(tmp_path)
    (tmp_path / "LICENSE").write_text("of something else")
    OptinPruner(model, word_tokenizer()).prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert not (tmp_path / "out/LICENSE").exists() and "holds no model" in warnings[0]


WEIGHTS = """pytorch_model.bin pytorch_model-00001-of-00002.bin pytorch_model.bin.index.json model.fp16.safetensors
tf_model.h5 flax_model.msgpack model.onnx onnx/model.onnx openvino/openvino_model.bin model.gguf original/params.json
consolidated.00.pth consolidated.safetensors adapter_model.safetensors rust_model.ot optimizer.pt
scheduler.pt rng_state.pth trainer_state.json training_args.bin checkpoint-5/config.json runs/a/events.out.tfevents.1
.gitattributes .cache/x README.md"""
TAKEN = """LICENSE NOTICE.txt vocab.txt special_tokens_map.json merges.txt spiece.model generation_config.json
chat_template.jinja added_tokens.json preprocessor_config.json"""
NAMED = "notes.md train.csv data/ train.py weights.pkl"


def test_weights_stay_and_what_is_not_known_is_named(tmp_path, warnings):
    folder = tmp_path / "dense"
    tiny_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    names = f"{WEIGHTS} {TAKEN} {NAMED}".replace("data/", "data/a.csv").split()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (folder / "LICENSE.out").symlink_to(tmp_path / "secret")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "tokenizer_config.json").unlink()  # stands for what the processor does not save again
    pruner = OptinPruner(model, tokenizer)
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    ours = {
        "config.json",
        "model.safetensors",
        "optin_report.json",
        "optin_tensors.json",
        "README.md",
        "tokenizer.json",
    }
    saved = {file.name for file in (tmp_path / "out").iterdir()}
    assert saved == ours | {"tokenizer.json", "tokenizer_config.json", *TAKEN.split()}
    (said,) = warnings
    listed = said.split(" beside the dense model")[0].split(", ")
    assert sorted(listed) == sorted([*NAMED.split(), "LICENSE.out"])


def test_vocabularies_of_another_tokenizer_are_not_mixed_in(tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "another"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "dense")
    shutil.copy(tmp_path / "vocab.txt", tmp_path / "dense")
    pruner = OptinPruner.from_pretrained(tmp_path / "dense", processor=word_tokenizer())
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert not (tmp_path / "out/vocab.txt").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS) == word_tokenizer()(TEXTS)


@pytest.mark.parametrize("path", ["../secret", "/etc", "..", "a/../../secret", 7, None])
def test_modules_that_point_outside_are_not_followed(tmp_path, path):
    folder = tmp_path / "dense"
    tiny_model(base=True).save_pretrained(folder)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.json").write_text("secret")
    (folder / "modules.json").write_text(json.dumps([{"idx": 1, "name": "1", "path": path, "type": "x.Pooling"}]))
    pruner = OptinPruner.from_pretrained(folder, processor=word_tokenizer())
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("key.json")) and not list((tmp_path / "out").rglob("passwd"))


def test_code_of_the_models_own_goes_along(tmp_path):
    tiny_model(base=True).save_pretrained(tmp_path / "dense")
    for name in ("modules.json", "custom_pooling.py", "helper.py"):
        content = json.dumps([{"idx": 1, "name": "1", "path": "1_Own", "type": "custom_pooling.Own"}])
        (tmp_path / "dense" / name).write_text(content if name.endswith("json") else "x = 1\n")
    pruner = OptinPruner.from_pretrained(tmp_path / "dense", processor=word_tokenizer())
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path / "out")
    assert (tmp_path / "out/custom_pooling.py").read_text() == (tmp_path / "out/helper.py").read_text() == "x = 1\n"


def test_a_file_in_the_way_of_a_companion_is_named_before_the_work(embedder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/1_Pooling").write_text("a file")
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(FileExistsError, match="1_Pooling is to be a folder, and is a file"):
        prune(embedder, tmp_path / "out")


def test_stale_files_of_the_dense_model_go(embedder, tmp_path, warnings):
    """Saved over the folder that it came from: nothing there loads in the pruned model's place."""
    pruner = OptinPruner.from_pretrained(embedder)
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "adapter_model.safetensors", "tf_model.h5"):
        shutil.copy(embedder / "model.safetensors", embedder / name)
    (embedder / "adapter_config.json").write_text("{}")
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=8), save_dir=embedder)
    assert sorted(file.name for file in embedder.iterdir() if "model" in file.name or "adapter" in file.name) == [
        "model.safetensors"
    ]
    batch = tiny_batch(pruner.model)
    reloaded = AutoModel.from_pretrained(embedder)
    with torch.no_grad():
        expected = pruner.pruned_model(**batch).last_hidden_state
        torch.testing.assert_close(reloaded(**batch).last_hidden_state, expected, atol=0, rtol=0)
    assert any("adapter_config.json" in said and "deleted" in said for said in warnings)
    assert os.path.isdir(embedder / "1_Pooling")


def test_stale_files_are_not_pushed_and_go_on_the_hub(hub, tmp_path, warnings):
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=8), save_dir=tmp_path / "out")
    stale = ("pytorch_model.bin", "model.fp16.safetensors", "adapter_config.json", "tf_model.h5")
    for name in (*stale, "notes.txt"):
        (tmp_path / "out" / name).write_text("{}")
    api = huggingface_hub.HfApi()
    api.create_repo("me/small")
    api.upload_folder(repo_id="me/small", folder_path=tmp_path / "out")
    assert set(stale) <= set(hub.files("me/small"))
    push_folder(tmp_path / "out", "me/small")
    assert not set(stale) & set(hub.files("me/small")) and "notes.txt" in hub.files("me/small")
    assert all(name in warnings[-1] for name in stale) and "not pushed" in warnings[-1]
    assert all((tmp_path / "out" / name).exists() for name in stale)


@pytest.mark.parametrize("own", [False, True], ids=["of another tokenizer", "of this one"])
def test_special_tokens_that_are_there(own, tmp_path):
    """Transformers reads them beside `tokenizer.json`, whatever model they were of."""
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    tokens = {"pad_token": "[PAD]"} if own else {"pad_token": "<pad>", "unk_token": "<unk>"}
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    if own:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
        pruner = OptinPruner.from_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    pruner.prune(TEXTS, WHOLE, save_dir=tmp_path)
    assert (tmp_path / "special_tokens_map.json").exists() == own
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert (saved.pad_token_id, len(saved)) == (word_tokenizer().pad_token_id, len(word_tokenizer()))
