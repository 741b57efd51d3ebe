"""Models whose weights lie on disk, held against the same models in memory."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as tr
from accelerate import disk_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from decoders import generator
from interrupting import compared, interrupted_everywhere, seen
from safetensors.torch import load_file, save_file
from tiny import output_of, tiny_batch, tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.keeping import offloaded
from optimum_optin.keeping.doors import kept

FAST = OptinConfig(flops=0.6, probes=8)


def _mixtral():
    shape = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    return tr.MixtralForCausalLM(tr.MixtralConfig(**shape, **heads)).eval()


MODELS = {
    "bert": tiny_model,
    "llama, tied": lambda: generator("smollm"),
    "experts": _mixtral,  # which transformers packs, so that no file holds them as they are
}


def _on_disk(folder, kind, **options):
    """All on disk; the file of the checkpoint itself, unless weights are not in it as they are."""
    return kind.from_pretrained(folder, device_map={"": "disk"}, offload_folder=folder.parent / "offloaded", **options)


def _in_part(folder, kind, **options):
    """As much in memory as there is said to be room for."""
    size = sum(each.stat().st_size for each in folder.glob("*.safetensors"))  # of float32
    most = size // (4 if options.get("dtype") in ("bfloat16", torch.bfloat16) else 2)
    offload = {"offload_folder": folder.parent / "offloaded", "max_memory": {"cpu": most}}
    return kind.from_pretrained(folder, device_map="auto", **offload, **options)


def _by_accelerate(folder, kind, **options):
    """A model that was in memory, in files of Accelerate's own."""
    return disk_offload(kind.from_pretrained(folder, **options), folder.parent / "offloaded")


WAYS = {"on disk": _on_disk, "in part": _in_part, "by Accelerate": _by_accelerate}


def _offloaded(model):
    return [name for name, each in model.named_parameters() if each.is_meta]


def _saved(pruner, folder):
    pruner.prune(tiny_samples(), FAST, save_dir=folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "way", "dtype"),  # the files hold float32
    [
        ("bert", "on disk", "float32"),
        ("bert", "in part", "bfloat16"),
        ("bert", "by Accelerate", "float32"),
        ("llama, tied", "on disk", "bfloat16"),
        ("llama, tied", "in part", "float32"),
        ("llama, tied", "by Accelerate", "float32"),
        ("experts", "on disk", "float32"),
        ("experts", "in part", "bfloat16"),
    ],
)
def test_what_is_saved_is_what_the_model_in_memory_gives(name, way, dtype, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path / "dense")
    model = type(model).from_pretrained(tmp_path / "dense", dtype=dtype).eval()
    expected = _saved(OptinPruner(model), tmp_path / "expected")
    placed = WAYS[way](tmp_path / "dense", type(model), dtype=dtype).eval()
    assert _offloaded(placed)
    before = seen({"model": placed})
    pruner = OptinPruner(placed)
    found = _saved(pruner, tmp_path / "found")
    assert not compared(before, seen({"model": placed}), "")
    assert found.keys() == expected.keys() and all(torch.equal(each, expected[name]) for name, each in found.items())
    assert not _offloaded(pruner.pruned_model)
    assert not [module for module in pruner.pruned_model.modules() if "_hf_hook" in vars(module)]
    assert not {"to", "cuda", "hf_device_map"} & set(vars(pruner.pruned_model))
    batch = tiny_batch(model)
    assert torch.equal(output_of(placed, batch), output_of(model, batch))
    if name == "llama, tied":  # in that pass, Accelerate made two tensors of one
        again = OptinPruner(placed).prune(tiny_samples(), FAST)
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items() if name in expected)


def test_every_door_is_open_to_it(tmp_path):
    """Scores serve a model wherever its weights are; and it can be checked, swept, measured and timed."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    inside = OptinPruner(model)
    outside = OptinPruner(_on_disk(tmp_path / "dense", type(model)))
    outside.check()
    scores = outside.score(tiny_samples(), FAST)
    known = inside.score(tiny_samples(), FAST)
    assert scores.fingerprint == known.fingerprint
    assert all(
        torch.equal(each, known.terms[term][key]) for term, by in scores.terms.items() for key, each in by.items()
    )
    scores.check(outside.model)
    assert outside.plan(scores, 0.5) == inside.plan(known, 0.5)
    sweep = outside.sweep(budgets=[0.5], scores=scores, repeats=1)
    assert [point.name for point in sweep.points] == ["flops-0.5"]
    outside.prune(scores=scores)
    outside.benchmark(repeats=1)
    assert outside.create_model_card().text
    assert _offloaded(outside.model)


def test_from_pretrained_takes_a_map_of_devices(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
    pruner = OptinPruner.from_pretrained(tmp_path / "dense", **options)
    assert _offloaded(pruner.model)
    pruned = pruner.prune(tiny_samples(), FAST)
    expected = OptinPruner(model).prune(tiny_samples(), FAST)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.skipif(sys.platform != "linux", reason="where memory comes from is told by /proc")
def test_weights_are_pages_of_files(way, dtype, tmp_path):
    model = generator("llama")
    model.save_pretrained(tmp_path / "dense")
    placed = WAYS[way](tmp_path / "dense", type(model), dtype=dtype)
    names = _offloaded(placed)
    with kept(placed):
        places = {name: placed.get_parameter(name).data_ptr() for name in names}
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        files = [
            tuple(int(end, 16) for end in line[0].split("-")) for line in lines if len(line) > 5 and "/" in line[5]
        ]
        assert names and not [name for name in names if not any(a <= places[name] < b for a, b in files)]


def test_nothing_is_converted_twice(tmp_path, monkeypatch):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    placed = _on_disk(tmp_path / "dense", type(model), dtype=torch.bfloat16)
    with kept(placed):
        first = placed.classifier.weight.data_ptr()
    monkeypatch.setattr(offloaded.tempfile, "TemporaryFile", None)
    with kept(placed):
        assert placed.classifier.weight.data_ptr() == first
    weights = load_file(tmp_path / "dense" / "model.safetensors")
    save_file(weights | {"classifier.weight": -weights["classifier.weight"]}, tmp_path / "dense" / "model.safetensors")
    monkeypatch.undo()
    with kept(placed):
        assert torch.equal(placed.classifier.weight, -weights["classifier.weight"].bfloat16())


def test_what_is_written_to_weights_does_not_reach_the_file(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    before = (tmp_path / "dense" / "model.safetensors").read_bytes()
    placed = _on_disk(tmp_path / "dense", type(model))
    with kept(placed), torch.no_grad():
        placed.classifier.weight.zero_()
        assert not placed.classifier.weight.any()
    assert (tmp_path / "dense" / "model.safetensors").read_bytes() == before
    with kept(placed):
        assert torch.equal(placed.classifier.weight, model.classifier.weight)


def test_after_an_error_it_is_as_it_was(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    placed = _on_disk(tmp_path / "dense", type(model))
    before = seen({"model": placed})

    def stop(stage, done, total):
        return stage != "compensation"

    with pytest.raises(RuntimeError, match="stopped"):
        OptinPruner(placed).prune(tiny_samples(), FAST, callback=stop)
    assert not compared(before, seen({"model": placed}), "")
    assert torch.equal(output_of(placed, tiny_batch(model)), output_of(model, tiny_batch(model)))


@pytest.mark.parametrize(("how", "every"), [("signal", 8), ("raise", 8), ("calls", 9)])
def test_ctrl_c_leaves_it_as_it_was(how, every, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "dense")
    placed = _on_disk(tmp_path / "dense", type(model), dtype=torch.bfloat16)

    def work():
        with kept(placed):
            output_of(placed, tiny_batch(model))

    found = interrupted_everywhere(work, {"model": placed}, how, chosen=lambda number, place: number % every == 2)
    assert len(found) > 12
    assert not {place: left for place, left in found.items() if left}


def test_files_that_are_gone_or_others_are_named(tmp_path):
    model = tiny_model()
    file = tmp_path / "dense" / "model.safetensors"
    model.save_pretrained(tmp_path / "dense")
    placed = _on_disk(tmp_path / "dense", type(model))
    before, weights = seen({"model": placed}), load_file(file)
    save_file(weights | {"classifier.bias": torch.zeros(7)}, file)
    with pytest.raises(ValueError, match=r"weight classifier\.bias has the shape \(3,\), and \(7,\) in the file"):
        OptinPruner(placed).check()
    save_file({name: each for name, each in weights.items() if name != "classifier.bias"}, file)
    with pytest.raises(ValueError, match=r"does not hold classifier\.bias any more: load the model again"):
        OptinPruner(placed).check()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"model\.safetensors are damaged"):
        OptinPruner(placed).check()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        OptinPruner(placed).check()
    assert not compared(before, seen({"model": placed}), "")


def _of_another_device(model):
    for module in model.modules():
        if "_hf_hook" in vars(module):
            module._hf_hook.execution_device = torch.device("cuda:0")


def _with_a_hook(model):
    add_hook_to_module(model.classifier, ModelHook(), append=True)


def _without_a_weight(model):
    index = model.classifier._hf_hook.weights_map.dataset.index
    del index["classifier.bias"]


@pytest.mark.parametrize("change", [_of_another_device, _with_a_hook, _without_a_weight])
def test_what_does_not_run_on_the_cpu_alone_is_left_as_it_is_and_refused(change, tmp_path):
    model = tiny_model()
    scores = OptinPruner(model).score(tiny_samples(), FAST)
    model.save_pretrained(tmp_path / "dense")
    placed = _on_disk(tmp_path / "dense", type(model))
    change(placed)
    before, pruner = seen({"model": placed}), OptinPruner(placed)
    for work in (
        pruner.check,
        lambda: pruner.prune(tiny_samples()),
        lambda: pruner.score(tiny_samples()),
        lambda: pruner.prune(scores=scores),
        lambda: pruner.plan(scores),
    ):
        with pytest.raises(ValueError, match="weight .* is offloaded, .* load it with device_map='cpu'"):
            work()
    assert not compared(before, seen({"model": placed}), "")


def test_a_model_in_memory_with_hooks_keeps_them():
    model = tiny_model()
    add_hook_to_module(model.classifier, ModelHook())
    with kept(model):
        assert "_hf_hook" in vars(model.classifier)
