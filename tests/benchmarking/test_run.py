"""Benchmarks: models whose speeds are known, forms that are wrong, what goes to disk, and bad input."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from language_models import language_model
from tiny import tiny_model
from torch import nn
from words import TEXTS, word_tokenizer

from optimum_optin.benchmarking import VARIANTS, Benchmark, Form, run_benchmark
from optimum_optin.benchmarking import variants as table
from optimum_optin.benchmarking.batches import Work, collated, data_work, made_up, with_padding
from optimum_optin.benchmarking.plot import check_plot, save_plot
from optimum_optin.benchmarking.runners import OnnxRunner, TorchRunner, write_model
from optimum_optin.benchmarking.turns import timed_cells
from optimum_optin.timing.machine import cpus


class Machine:
    """A clock, and forms of known speed that let it go on."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("optimum_optin.timing.side_by_side.time", clock)

    def form(self, seconds, model, variant="eager"):
        """A form that takes so many seconds for each sample, or what a function says."""
        runner = SimpleNamespace(feed=lambda batch: len(batch["x"]), run=lambda samples: self._work(seconds, samples))
        return SimpleNamespace(form=Form(model=model, variant=variant), runner=runner, peaks={})

    def _work(self, seconds, samples):
        self.now += samples * (seconds() if callable(seconds) else seconds)


def test_speeds_that_are_known_are_found(monkeypatch):
    machine = Machine(monkeypatch)
    work = Work("data", [{"x": torch.zeros(1)}, {"x": torch.zeros(3)}], batch_size=3, tokens=5.0)
    entries = [machine.form(0.25, "dense"), machine.form(0.125, "pruned"), machine.form(0.0625, "pruned", "fast")]
    dense, pruned, fast = timed_cells(entries, work, repeats=6)
    assert (pruned.speedup.median, pruned.speedup.low, pruned.speedup.high) == (2, 2, 2)
    assert pruned.speedup == pruned.speedup_over_eager and pruned.noise is None and pruned.runs == 6
    assert fast.speedup is None and fast.speedup_over_eager.median == 4
    assert dense.speedup is None and dense.speedup_over_eager is None
    assert (dense.samples, dense.p50_ms, dense.p95_ms) == (4, 1000, 1000)
    assert (dense.samples_per_second, dense.tokens_per_second) == (4, 20)


def test_a_drifting_machine_slows_neighbours_alike(monkeypatch):
    machine = Machine(monkeypatch)
    dense = machine.form(lambda: 0.25 * (1 + machine.now / 200), "dense")
    pruned = machine.form(lambda: 0.125 * (1 + machine.now / 200), "pruned")
    work = Work("grid", [{"x": torch.zeros(4)}], batch_size=4, tokens=1)
    found = timed_cells([dense, pruned], work, repeats=30)
    assert found[0].p95_ms > 1.05 * found[0].p50_ms
    assert found[1].speedup.median == pytest.approx(2, abs=0.02) and found[1].noise is None


def test_noisy_cells_take_more_turns_and_say_so(monkeypatch):
    machine = Machine(monkeypatch)
    drawn = iter(torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist())
    work = Work("grid", [{"x": torch.zeros(1)}], batch_size=1, tokens=1)
    forms = [machine.form(lambda: next(drawn), model) for model in ("dense", "pruned")]
    dense, pruned = timed_cells(forms, work, repeats=6)
    assert (dense.runs, pruned.runs) == (18, 18)
    assert "known to" in pruned.noise and dense.noise is None


@pytest.fixture(scope="module")
def found():
    """A benchmark of tiny models on a grid and a data set, with a form that returns garbage and one that fails."""

    def garbage(model, folder, batch, threads):
        other = tiny_model(seed=5)
        write_model(other, folder)
        return lambda: TorchRunner(other)

    def failing(model, folder, batch, threads):
        raise RuntimeError("no such operator\nand a long story")

    patch = pytest.MonkeyPatch()
    patch.setitem(VARIANTS, "garbage", dataclasses.replace(VARIANTS["bf16"], name="garbage", write=garbage))
    patch.setitem(VARIANTS, "failing", dataclasses.replace(VARIANTS["bf16"], name="failing", write=failing))
    dense = tiny_model()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    options = {"data": TEXTS, "processor": word_tokenizer(), "num_samples": 6, "repeats": 1, "threads": 1}
    options |= {"tokens": [6, 12], "batch_size": [1, 3], "variants": ["bf16", "garbage", "failing"]}
    try:
        result = run_benchmark(dense, tiny_model(num_hidden_layers=1), **options)
    finally:
        patch.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    return result


def test_every_form_has_its_cells(found):
    shapes = [("grid", size, tokens) for tokens in (6, 12) for size in (1, 3)]
    mean = sum(len(text.split()) + 2 for text in TEXTS) / len(TEXTS)
    for model in ("dense", "pruned"):
        for variant in ("eager", "bf16"):
            cells = [cell for cell in found.cells if (cell.model, cell.variant) == (model, variant)]
            assert [(cell.work, cell.batch_size, cell.tokens) for cell in cells if cell.work == "grid"] == shapes
            assert [(cell.batch_size, cell.samples) for cell in cells if cell.work == "data"] == [(1, 6), (3, 6)]
            assert all(cell.tokens == pytest.approx(mean, abs=1) for cell in cells if cell.work == "data")
            assert all(cell.noise == "3 runs are too few, 6 are needed" for cell in cells if cell.speedup)
    assert found.machine.threads == 1 and found.machine.versions["torch"] == torch.__version__


def test_forms_tell_sizes_and_distances(found):
    forms = {(form.model, form.variant): form for form in found.forms}
    whole, small = forms["dense", "eager"], forms["pruned", "eager"]
    assert whole.bytes_on_disk > small.bytes_on_disk > forms["pruned", "bf16"].bytes_on_disk
    assert whole.distance is None and whole.checked_on is None and whole.load_seconds > 0
    rounded = forms["dense", "bf16"]
    assert 1e-4 < rounded.distance < 0.1 and rounded.trouble is None
    assert rounded.checked_on == "samples of the data set"


def test_garbage_is_called_wrong_and_not_timed(found):
    for form in (each for each in found.forms if each.variant == "garbage"):
        assert "outputs differ" in form.wrong or "the same class" in form.wrong
    for form in (each for each in found.forms if each.variant == "failing"):
        assert form.failed == "RuntimeError: no such operator"
    assert {cell.variant for cell in found.cells} == {"eager", "bf16"}
    assert "WRONG: " in str(found) and "FAILED: RuntimeError" in str(found) and "NOISY" in str(found)


def test_it_goes_through_json(found, tmp_path):
    found.save(tmp_path / "found.json")
    assert Benchmark.load(tmp_path / "found.json") == found
    assert json.loads((tmp_path / "found.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema=2 of a benchmark must be 1"),
        ({"cells": [{"work": "grid"}]}, "is damaged"),
        ({"machine": None}, "is damaged"),
        ({"dtype": 5}, "dtype must be a text"),
        ({"more": 1}, "is damaged"),
    ],
)
def test_damaged_files_are_refused(found, tmp_path, change, message):
    (tmp_path / "found.json").write_text(json.dumps(found.to_dict() | change))
    with pytest.raises(ValueError, match=message):
        Benchmark.load(tmp_path / "found.json")


def test_the_entry_of_the_report_is_the_first_cell_in_eager_mode(found):
    cells = [cell for cell in found.cells if (cell.work, cell.batch_size, cell.tokens) == ("grid", 1, 6)]
    dense, pruned = (cell for cell in cells if cell.variant == "eager")
    entry = found.latency
    assert (entry["batch_size"], entry["tokens"], entry["threads"]) == (1, 6, 1)
    assert (entry["dense_ms"], entry["pruned_ms"]) == (dense.p50_ms, pruned.p50_ms)
    assert entry["speedup"] == pruned.speedup.median


def test_a_plot_is_drawn(found, tmp_path):
    pytest.importorskip("matplotlib")
    save_plot(found, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "</svg>" in drawn and len(drawn) > 10_000
    with pytest.raises(ValueError, match="a plot must be a file such as plot.png"):
        check_plot(tmp_path / "plot.doc")


def test_decoding_is_timed_apart_from_the_prompt():
    dense, pruned = language_model(), language_model(num_hidden_layers=1)
    found = run_benchmark(dense, pruned, tokens=6, batch_size=2, repeats=1, threads=1, new_tokens=4)
    cells = {(cell.work, cell.model): cell for cell in found.cells}
    read, written = cells["prefill", "dense"], cells["decode", "dense"]
    assert (read.tokens, read.new_tokens, written.tokens, written.new_tokens) == (6, None, 6, 4)
    assert written.tokens_per_second == pytest.approx(3 * written.samples_per_second) and "6 + 4" in str(found)
    assert read.tokens_per_second == pytest.approx(12e3 / read.p50_ms)
    assert cells["decode", "pruned"].speedup.median > 0 and written.p50_ms <= written.p95_ms
    with pytest.raises(ValueError, match="new_tokens=60 must be at most 58"):
        run_benchmark(dense, pruned, tokens=6, new_tokens=60)


def test_batches_of_data_are_padded_to_their_longest():
    model = tiny_model()
    texts = ["cat", "the cat sat on the mat", "the dog", "bird"]
    batches = collated(texts, model, word_tokenizer(), batch_size=2, samples=4)
    lengths = sorted(int(row.sum()) for batch in batches for row in batch["attention_mask"])
    assert lengths == [3, 3, 4, 8]
    assert all(batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1] for batch in batches)
    work = data_work("data", model, batches, 2)
    places = sum(batch["input_ids"].numel() for batch in batches)
    assert work.tokens == 18 / 4 and work.padding == pytest.approx(1 - 18 / places)
    assert work.padding > 0, "samples come as they are drawn, not by length"


def test_made_up_texts_hold_no_special_tokens_and_can_be_padded():
    model = tiny_model("roberta")
    batch = made_up(model, 3, 12)
    special = {model.config.pad_token_id, model.config.bos_token_id}
    assert batch["input_ids"].shape == (3, 12) and special.isdisjoint(batch["input_ids"].flatten().tolist())
    assert len(set(batch["input_ids"].flatten().tolist())) > 10
    padded = with_padding(batch)
    assert padded["attention_mask"].sum(1).tolist() == [12, 8, 12]
    assert padded["input_ids"][1, 7] == batch["input_ids"][1, 11], "the end of a text stays at its end"
    assert with_padding({name: value[:1] for name, value in batch.items()})["attention_mask"].sum() == 8


def test_an_onnx_file_is_run_by_its_names(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch"]) for name in ("x", "logits")]
    node = onnx.helper.make_node("Neg", ["x"], ["logits"])
    graph = onnx.helper.make_graph([node], "negative", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    runner = OnnxRunner(tmp_path / "model.onnx", threads=1)
    batch = {"x": torch.tensor([1.0, 2.0]), "not_taken": torch.ones(2)}
    runner.run(runner.feed(batch))
    assert runner.outputs(batch)["logits"].tolist() == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variants": ["tensorrt"]}, ValueError, "'tensorrt' is none of eager, compile, onnx, onnx-int8, bf16"),
        ({"variants": "onnx"}, ValueError, "must be a list of names"),
        ({"variants": ["bf16", "bf16"]}, ValueError, "holds a name twice"),
        ({"tokens": []}, ValueError, "tokens must hold a number at least"),
        ({"tokens": [8, 65]}, ValueError, "tokens=65 must be at most 64"),
        ({"batch_size": [1, 0]}, ValueError, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": True}, ValueError, "batch_size=True must be"),
        ({"repeats": 0}, ValueError, "repeats=0 must be"),
        ({"threads": 10_000}, ValueError, f"threads=10000 must be at most {cpus()}, the CPUs"),
        ({"new_tokens": 1}, ValueError, "new_tokens=1 must be at least 2"),
        ({"new_tokens": 8}, ValueError, "is for models that write text, which BertForSequenceClassification does not"),
        ({"data": []}, ValueError, "calibration data is empty"),
        ({"data": ["a text"]}, ValueError, "raw text needs a tokenizer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(options, error, message, monkeypatch):
    monkeypatch.setattr("optimum_optin.benchmarking.run.make", None)
    with pytest.raises(error, match=message):
        run_benchmark(tiny_model(), tiny_model(), **{"tokens": 8, **options})


def test_what_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ImportError, match="'onnx' needs onnxruntime, not installed here: pip install 'optimum-optin"):
        run_benchmark(tiny_model(), tiny_model(), tokens=8, variants=["onnx"])
    monkeypatch.setattr("optimum_optin.benchmarking.plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'optimum-optin\[plots\]'"):
        check_plot("plot.png")


def test_variants_that_cannot_run_this_model_are_refused():
    half = tiny_model().to(torch.bfloat16)
    for name in ("bf16", "onnx"):
        with pytest.raises(ValueError, match=f"'{name}' is made of weights in float32, and these are in bfloat16"):
            run_benchmark(half, half, tokens=8, variants=[name])


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    def broken(function):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match="'compile' does not work here .*no C.. compiler.*g"):
        run_benchmark(tiny_model(), tiny_model(), tokens=8, variants=["compile"])


def test_modules_are_measured_without_a_time_to_load():
    from optimum_optin.models.examples import note_example

    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    note_example(module, {"input": torch.randn(1, 8)})
    found = run_benchmark(module, module, tokens=1, batch_size=2, variants=["bf16"], repeats=1, threads=1)
    assert all(form.load_seconds is None and form.bytes_on_disk > 0 and form.trouble is None for form in found.forms)
    assert len(found.cells) == 4
