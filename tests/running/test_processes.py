"""Two processes give the scores, masks and weights of one; the main one writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model, tiny_samples
from tsv import write_sst2

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores
from optimum_optin.running import processes

SCORERS = {"surgeon": 100, "gauss_newton": 60, "exact": 16}  # samples for each
IMAGES = {"vit": 24, "swin with padded windows": 24}
SCRIPT = """
import sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from tiny import tiny_model, tiny_samples
from test_processes import IMAGES, SCORERS, config
from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.running import processes
from optimum_optin.sums.symmetric import Grams
from words import TEXTS, word_tokenizer

torch.set_num_threads(1)
state = processes.state()  # a script need not make one
assert state.num_processes == 2
numbers, matrix = (torch.full(shape, 1.0 + state.process_index, dtype=torch.float64) for shape in ((3,), (2, 2)))
halves = torch.full((3,), 0.5)  # of another type, so in a message of its own
processes.add_up(numbers, matrix.T, halves)
assert numbers.eq(3).all() and matrix.eq(3).all() and halves.eq(1).all()
grams = Grams(19, "cpu")
grams.expect("some")
grams.add("some", torch.arange(38.0).view(2, 19)[state.process_index][None])
grams.add_up()
rows = torch.arange(38.0).view(2, 19)
assert torch.equal(grams.matrix("some"), (rows.T @ rows).double())
assert processes.everyones(state.process_index + 0.5) == [0.5, 1.5]
assert processes.gathered({"of": state.process_index}) == [{"of": 0}, {"of": 1}]
assert list(processes.fair_share([1, 2, 9, 1, 4])) == [[2], [0, 1, 3, 4]][state.process_index]
assert processes.on_main(lambda: {"of": state.process_index}) == {"of": 0}
for scorer, count in SCORERS.items():
    folder = Path(sys.argv[1], scorer)
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(count), config(scorer))
    scores.save_pretrained(folder / "scores")
    model = pruner.prune(scores=scores, save_dir=folder / "model")
    save_file(model.state_dict(), folder / f"rank{state.process_index}.safetensors")
    (folder / f"rank{state.process_index}.json").write_text(repr(pruner.report.divergence))
for model_type, count in IMAGES.items():
    folder = Path(sys.argv[1], model_type)
    pruner = OptinPruner(tiny_model(model_type))
    scores = pruner.score(tiny_samples(count, model=pruner.model), config("surgeon"))
    scores.save_pretrained(folder / "scores")
    model = pruner.prune(scores=scores)
    save_file(model.state_dict(), folder / f"rank{state.process_index}.safetensors")
pruner = OptinPruner(tiny_model(num_labels=2), word_tokenizer())
pruner.prune(TEXTS, OptinConfig(probes=4))
pruner.evaluate("sst2", data_dir=sys.argv[1])
pruner.benchmark(batch_size=1, repeats=1)
pruner.report.save(Path(sys.argv[1], "measured", str(state.process_index)))
"""


def config(scorer):
    return OptinConfig(flops=0.5, scorer=scorer, probes=16, merging="auto")  # for ViT


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folder of what two processes made."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    write_sst2(folder)
    for rank in "01":
        (folder / "measured" / rank).mkdir(parents=True)
    here = Path(__file__).parents[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{Path(__file__).parent}"}
    done = subprocess.run(
        [*command, str(script), str(folder)], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("scorer", SCORERS)
def test_two_processes_give_what_one_gives(scorer, shared):
    folder = shared / scorer
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(SCORERS[scorer]), config(scorer))
    for term, by_group in Scores.from_pretrained(folder / "scores").terms.items():
        for key, score in by_group.items():
            expected = scores.terms[term][key]
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-5 * float(expected.max()))
    expected = pruner.prune(scores=scores).state_dict()
    one, other = (load_file(folder / f"rank{rank}.safetensors") for rank in range(2))
    for name, value in expected.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)
    saved = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], one[name]) for name in saved)
    assert (folder / "rank0.json").read_text() == (folder / "rank1.json").read_text()
    report = json.loads((folder / "model" / "optin_report.json").read_text())
    assert report["divergence"]["distance"] == pytest.approx(pruner.report.divergence["distance"], rel=1e-3)


@pytest.mark.parametrize("model_type", IMAGES)
def test_images_too(model_type, shared):
    folder = shared / model_type
    pruner = OptinPruner(tiny_model(model_type))
    scores = pruner.score(tiny_samples(IMAGES[model_type], model=pruner.model), config("surgeon"))
    for term, by_group in Scores.from_pretrained(folder / "scores").terms.items():
        for key, score in by_group.items():
            expected = scores.terms[term][key]
            torch.testing.assert_close(score, expected, rtol=0, atol=1e-5 * float(expected.max()))
    one, other = (load_file(folder / f"rank{rank}.safetensors") for rank in range(2))
    for name, value in pruner.prune(scores=scores).state_dict().items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], value, rtol=1e-5, atol=1e-5)


def test_what_is_measured_is_the_same_on_both(shared):
    one, other = (PruningReport.load(shared / "measured" / rank) for rank in "01")
    assert one.latency == other.latency and one.latency["pruned_ms"] > 0
    assert one.evaluations == other.evaluations and 0 <= one.evaluations[0]["metrics"]["accuracy"]["pruned"] <= 1


def test_more_processes_than_batches_are_refused_before_work(monkeypatch):
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes share 1 calibration batches"):
        OptinPruner(tiny_model()).score(tiny_samples(8))


def test_a_single_process_has_all_the_work_and_changes_nothing():
    assert list(processes.my_share(5)) == [0, 1, 2, 3, 4]
    tensor = torch.arange(3.0)
    processes.add_up(tensor)
    assert torch.equal(tensor, torch.arange(3.0))
    assert processes.fair_share([3.0, 1.0, 2.0]) == [0, 1, 2]
    assert processes.my_part(5) == slice(0, 5)
    assert processes.everyones(0.5) == [0.5]


def test_autocast_around_it_changes_nothing():
    models = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            models.append(OptinPruner(tiny_model()).prune(tiny_samples(32), config("surgeon")))
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_model_with_accelerates_hooks_gives_the_same():
    """What device_map="auto" makes of a model over several devices; here they are all the CPU."""
    expected = OptinPruner(tiny_model()).prune(tiny_samples(32), config("surgeon"))
    placed = tiny_model()
    devices = {"bert.embeddings": "cpu", "bert.pooler": "cpu", "classifier": "cpu"}
    devices |= {f"bert.encoder.layer.{index}": "cpu" for index in range(3)}
    dispatch_model(placed, devices, main_device="cpu", force_hooks=True)
    got = OptinPruner(placed).prune(tiny_samples(32), config("surgeon"))
    assert got.bert.encoder.layer[0]._hf_hook is not placed.bert.encoder.layer[0]._hf_hook
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in expected.state_dict().items())
    with torch.no_grad():
        assert torch.equal(got(**tiny_batch(got)).logits, expected(**tiny_batch(expected)).logits)
