"""`OptinPruner`: the whole road, its errors, and what it leaves behind when it fails."""

import dataclasses
import doctest
import importlib
import re

import datasets
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from datasets import Dataset
from safetensors.torch import load_file
from tiny import SHAPE, TINY, tiny_batch, tiny_model, tiny_samples
from torch.nn.utils.prune import random_unstructured
from transformers import BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification, ElectraForPreTraining
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, find_groups, register_scorer
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.running.freezing import frozen
from optimum_optin.scoring import registry, score_exact, score_gauss_newton, score_surgeon
from optimum_optin.scoring.fingerprint import fingerprint
from optimum_optin.scoring.registry import Scored

FAST = OptinConfig(flops=0.5, probes=8)


@pytest.fixture
def pruner():
    return OptinPruner(tiny_model(), word_tokenizer(), FAST)


def _same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(left, right) for left, right in pairs)


def test_from_pretrained_takes_a_folder_a_task_or_a_model(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert type(OptinPruner.from_pretrained(tmp_path).model).__name__ == "BertForSequenceClassification"
    pruner = OptinPruner.from_pretrained(tmp_path, task="feature-extraction", dtype=torch.bfloat16)
    assert type(pruner.model).__name__ == "BertModel"
    assert pruner.model.dtype == torch.bfloat16
    assert pruner.processor("the cat")["input_ids"] == word_tokenizer()("the cat")["input_ids"]
    model = tiny_model()
    tokenizer = word_tokenizer()
    pruner = OptinPruner.from_pretrained(model, processor=tokenizer)
    assert pruner.model is model
    assert pruner.processor is tokenizer
    with pytest.raises(ValueError, match="unknown task 'text-clasification'; known: .*text-classification"):
        OptinPruner.from_pretrained(tmp_path, task="text-clasification")


def test_a_folder_without_tokenizer_still_prunes_tokenised_data(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    pruner = OptinPruner.from_pretrained(tmp_path)
    assert pruner.processor is None
    pruner.prune(tiny_samples(), FAST)


def test_get_calibration_dataset_reads_local_files(pruner, tmp_path, monkeypatch):
    file = tmp_path / "train.csv"
    Dataset.from_dict({"text": TEXTS, "label": [0] * len(TEXTS)}).to_csv(file)
    drawn = pruner.get_calibration_dataset(
        "csv", data_files=str(file), num_samples=10, seed=3, cache_dir=str(tmp_path / "cache")
    )
    assert len(drawn) == 10
    assert set(drawn["text"]) <= set(TEXTS)
    pruner.prune(drawn)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert list(pruner.get_calibration_dataset(str(file), num_samples=10, seed=3)["text"]) == list(drawn["text"])


def test_report_is_counted_and_saved(pruner, tmp_path):
    pruned = pruner.prune(TEXTS, save_dir=tmp_path / "out")
    data = pruner.report.to_dict()
    assert data["flops_requested"] == 0.5
    assert 0.4 < data["flops_achieved"] <= 0.5
    assert data["params_dense"] == sum(p.numel() for p in pruner.model.parameters())
    assert data["params_pruned"] == sum(p.numel() for p in pruned.parameters())
    assert data["macs_pruned"] < data["macs_dense"]
    for group in find_groups(pruned):
        assert data["layers"][group.layer][group.role]["kept"] == group.units
    assert PruningReport.load(tmp_path / "out") == pruner.report
    assert "requested 50.0%" in str(pruner.report)


def test_any_budget_from_the_same_scores(pruner, tmp_path):
    scores = pruner.score(TEXTS)
    dense = {name: value.clone() for name, value in pruner.model.state_dict().items()}
    small = pruner.prune(scores=scores, flops=0.3)
    large = pruner.prune(scores=scores, flops=0.8)
    assert small.num_parameters() < large.num_parameters() < pruner.model.num_parameters()
    assert all(torch.equal(value, dense[name]) for name, value in pruner.model.state_dict().items())
    scores.save_pretrained(tmp_path)
    again = pruner.prune(TEXTS, scores=Scores.from_pretrained(tmp_path), flops=0.3)
    assert _same_weights(again, small)


def test_same_seed_same_result(pruner):
    one = pruner.prune(TEXTS)
    assert _same_weights(one, pruner.prune(TEXTS))
    scores, other = pruner.score(TEXTS), pruner.score(TEXTS, OptinConfig(probes=8, seed=1))
    assert not torch.equal(scores.terms["output"]["layers.0.heads"], other.terms["output"]["layers.0.heads"])


def test_plan_says_what_ranked_search_does(pruner):
    pruner.config = dataclasses.replace(FAST, search="ranked")
    scores = pruner.score(TEXTS)
    plan = pruner.plan(scores, flops=0.4)
    pruner.prune(scores=scores, flops=0.4)
    assert plan.layers == pruner.report.layers
    assert plan.flops_achieved == pytest.approx(pruner.report.flops_achieved)
    assert "layers.2" in str(plan)


@pytest.mark.parametrize("model_type", ["bert", "swin", "swinv2", "swinv2 with padded windows"])
@pytest.mark.parametrize("flops", [0.01, 0.2])
def test_where_whole_layers_go_the_share_that_is_counted_is_that_of_the_plan(flops, model_type):
    model = tiny_model(model_type)
    config = OptinConfig(
        scorer="gauss_newton", probes=8, search="ranked", compensation="none", min_heads=0, flops=flops
    )
    pruner = OptinPruner(model, config=config)
    scores = pruner.score(tiny_samples(model=model))
    plan = pruner.plan(scores)
    pruner.prune(scores=scores)
    assert 0 <= pruner.report.flops_achieved <= plan.flops_achieved + 1e-9 <= flops + 1e-9
    if not model_type.startswith("swinv2"):  # where more goes with the last head of a layer than heads cost
        assert plan.flops_achieved == pytest.approx(pruner.report.flops_achieved)


def test_the_full_budget_changes_nothing(pruner):
    pruned = pruner.prune(TEXTS, flops=1.0)
    assert _same_weights(pruned, pruner.model)
    assert pruner.report.flops_achieved == 1.0


def test_floors_are_kept(pruner):
    pruner.prune(TEXTS, OptinConfig(flops=0.2, probes=8, min_heads=1, min_neurons=3))
    for roles in pruner.report.layers.values():
        assert roles["heads"]["kept"] >= 1
        assert roles["neurons"]["kept"] >= 3


def test_floors_by_role_are_kept(pruner):
    pruner.prune(TEXTS, OptinConfig(flops=0.2, probes=8, floors={"heads": 1, "neurons": 3}))
    assert all(roles["neurons"]["kept"] >= 3 for roles in pruner.report.layers.values())
    assert pruner.report.config["floors"] == {"heads": 1, "neurons": 3}


def test_scoring_leaves_the_model_as_it_was(pruner):
    pruner.model.train()
    pruner.score(TEXTS)
    assert pruner.model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pruner.model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pruner.model.modules())


@pytest.mark.parametrize("changes", [{"num_labels": 1}, {}], ids=["regression", "no head"])
@pytest.mark.parametrize("scorer", ["gauss_newton", "exact"])
def test_models_without_classes_have_an_output_term_that_is_not_zero(changes, scorer):
    pruner = OptinPruner(tiny_model(base=not changes, **changes))
    scores = pruner.score(tiny_samples(8), OptinConfig(scorer=scorer, probes=8))
    assert all(float(score.sum()) > 0 for by_group in scores.terms.values() for score in by_group.values())
    assert set(scores.terms) == {"trajectory", "output"}


def test_a_model_without_head_or_pooler_is_scored_by_its_trajectory():
    pruner = OptinPruner(TINY["modernbert"][1](TINY["modernbert"][2]))
    assert set(pruner.score(tiny_samples(8), OptinConfig(probes=4)).terms) == {"trajectory"}
    pruner.prune(tiny_samples(8), OptinConfig(probes=4))


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification])
def test_the_output_term_of_other_tasks_agrees_with_exact(model_class):
    pruner = OptinPruner(tiny_model(model_class=model_class, num_labels=2))
    exact, sketched = (
        pruner.score(tiny_samples(8), OptinConfig(scorer=scorer, probes=200)) for scorer in ("exact", "gauss_newton")
    )
    total = [sum(float(score.sum()) for score in scores.terms["output"].values()) for scores in (exact, sketched)]
    assert total[1] == pytest.approx(total[0], rel=0.2)


def test_half_precision_models_stay_half(tmp_path):
    pruner = OptinPruner(tiny_model().to(torch.bfloat16), word_tokenizer())
    pruned = pruner.prune(TEXTS, FAST, save_dir=tmp_path / "out")
    assert pruned.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_large_embeddings_have_a_fingerprint():
    """Over 2^24 values, float32 indices round past the end."""
    config = type(TINY["bert"][2])(vocab_size=2**19, hidden_size=34, num_hidden_layers=1, num_attention_heads=2)
    model = TINY["bert"][1](config)
    before = fingerprint(model, find_groups(model))
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[-1, -1] += 1
    assert fingerprint(model, find_groups(model)) != before


def test_a_fingerprint_knows_the_heads():
    one, other = (TINY["bert"][1](type(TINY["bert"][2])(**{**SHAPE, "num_attention_heads": heads})) for heads in (4, 8))
    other.load_state_dict(one.state_dict())
    assert fingerprint(one, find_groups(one)) != fingerprint(other, find_groups(other))


def test_multi_label_outputs_are_sigmoids():
    model = tiny_model(problem_type="multi_label_classification")
    with torch.no_grad():  # a softmax would see no difference between equal classes
        model.classifier.weight[:] = model.classifier.weight[0].clone()
    scores = OptinPruner(model).score(tiny_samples(8), OptinConfig(probes=8))
    assert sum(float(score.sum()) for score in scores.terms["output"].values()) > 1e-4


def test_electra_discriminator_outputs_are_tokens():
    pruner = OptinPruner(tiny_model("electra", model_class=ElectraForPreTraining))
    exact, sketched = (
        pruner.score(tiny_samples(8), OptinConfig(scorer=scorer, probes=200)) for scorer in ("exact", "gauss_newton")
    )
    total = [sum(float(score.sum()) for score in scores.terms["output"].values()) for scores in (exact, sketched)]
    assert total[1] == pytest.approx(total[0], rel=0.2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scoring_works_where_gradients_are_off(pruner, mode):
    expected = OptinPruner(tiny_model(), word_tokenizer(), FAST).prune(TEXTS)
    with mode():
        pruned = pruner.prune(TEXTS)
    assert _same_weights(pruned, expected)
    assert not any(parameter.is_inference() for parameter in pruned.parameters())


def test_scoring_works_where_outputs_are_tuples(pruner):
    pruner.model.config.return_dict = False
    assert set(pruner.score(TEXTS).terms) == {"trajectory", "output"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda group: {}, "must return {term: {group key: scores}}"),
        (lambda group: {"trajectory": torch.ones(3)}, "must return {term: {group key: scores}}"),
        (lambda group: {"trajectory": {}}, "no scores for, or does not know, layers.0.heads"),
        (lambda group: {"trajectory": {"x": torch.ones(3)}}, "no scores for, or does not know"),
    ],
    ids=["nothing", "no groups", "groups missing", "unknown group"],
)
def test_a_scorer_that_returns_nonsense_is_refused(make, message):
    registry._SCORERS["nonsense"] = lambda model, groups, batches, config: make(groups)
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            OptinPruner(tiny_model()).prune(tiny_samples(), OptinConfig(scorer="nonsense"))
    finally:
        registry._SCORERS.pop("nonsense")


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda units: -torch.ones(units), "must be 4 finite numbers of at least 0.*smallest -1"),
        (lambda units: torch.full((units,), torch.nan), "must be 4 finite numbers"),
        (lambda units: torch.ones(units + 1), r"must be 4 finite numbers.*shape \(5,\)"),
        (torch.zeros, "scores every unit 0"),
    ],
    ids=["negative", "nan", "length", "zero"],
)
def test_scores_that_do_not_fit_are_refused(score, message):
    registry._SCORERS["odd"] = lambda model, groups, *_: {
        "trajectory": {group.key: score(group.units) for group in groups}
    }
    try:
        with pytest.raises(ValueError, match=message):
            OptinPruner(tiny_model()).prune(tiny_samples(), OptinConfig(scorer="odd"))
    finally:
        registry._SCORERS.pop("odd")


def test_arguments_of_a_wrong_type_say_so(pruner, tmp_path):
    with pytest.raises(TypeError, match="model must be a transformers model, got str: use from_pretrained"):
        OptinPruner("bert-base-uncased")
    for call in (lambda: pruner.prune(TEXTS, 0.5), lambda: pruner.prune(TEXTS, {"flops": 0.5})):
        with pytest.raises(TypeError, match="config must be OptinConfig, got"):
            call()
    with pytest.raises(TypeError, match="scores must be Scores, got 'folder'"):
        pruner.prune(scores="folder")


def test_a_plan_for_a_pruned_model_counts_the_dense_units(pruner):
    again = OptinPruner(pruner.prune(TEXTS), word_tokenizer(), dataclasses.replace(FAST, search="ranked"))
    scores = again.score(TEXTS)
    plan = again.plan(scores)
    again.prune(scores=scores)
    assert plan.layers == again.report.layers
    assert plan.layers["layers.0"]["neurons"]["units"] == 48


def test_an_accelerate_hook_survives_exact_scoring():
    model = tiny_model()
    layer = model.bert.encoder.layer[0]
    add_hook_to_module(layer, ModelHook())
    hooked = layer.forward
    OptinPruner(model).score(tiny_samples(4), OptinConfig(scorer="exact"))
    assert layer.forward is hooked


def test_a_registered_scorer_is_used():
    @register_scorer("by index")
    def by_index(model, groups, batches, config):
        return {"trajectory": {group.key: torch.arange(group.units).double() for group in groups}}

    try:
        pruner = OptinPruner(tiny_model())
        pruned = pruner.prune(tiny_samples(), OptinConfig(flops=0.5, scorer="by index"))
        kept = {key: entry["kept"] for key, entry in pruned.config.quantization_config.structure.items()}
        assert kept["layers.0.neurons"].endswith("47")
    finally:
        registry._SCORERS.pop("by index")


SCORED_IN_PARTS = {
    "lists": lambda groups, batches: (list(groups), list(batches)),
    "slices": lambda groups, batches: (groups[:3], batches[:2]),
    "heads, chosen": lambda groups, batches: ([group for group in groups if group.role == "heads"], batches),
}


@pytest.mark.parametrize("model_type", ["bert", "vit"])
@pytest.mark.parametrize("scorer", [score_exact, score_gauss_newton, score_surgeon], ids=lambda scorer: scorer.__name__)
@pytest.mark.parametrize("part", SCORED_IN_PARTS.values(), ids=SCORED_IN_PARTS)
def test_a_scorer_hands_lists_of_groups_and_batches_on_to_another(part, scorer, model_type):
    model = tiny_model(model_type)
    groups = find_groups(model)
    calibration = calibrate(model, calibration_batches(tiny_samples(12, model=model), model, batch_size=4))
    some, batches = part(groups, calibration)
    members = dataclasses.replace(groups, members=tuple(some))
    config = OptinConfig(probes=4)
    with frozen(model):
        found = scorer(model, some, batches, config)
        expected = scorer(model, members, calibration.part(range(len(list(batches)))), config)
    found, expected = (each.terms if isinstance(each, Scored) else each for each in (found, expected))
    assert found.keys() == expected.keys()
    for term, scores in expected.items():
        assert scores.keys() == found[term].keys() == {group.key for group in some}
        assert all(torch.equal(found[term][key], score) for key, score in scores.items())


# Bad input


@pytest.fixture
def no_scoring(monkeypatch):
    """Fail the test if anything gets as far as scoring."""

    def refuse(*arguments):
        raise AssertionError("scoring began before the input was refused")

    monkeypatch.setitem(registry._SCORERS, "gauss_newton", refuse)


@pytest.mark.usefixtures("no_scoring")
def test_bad_input_is_refused_before_scoring(pruner, tmp_path):
    with pytest.raises(ValueError, match="below the minimum structure, which costs"):
        pruner.prune(TEXTS, flops=1e-6)
    with pytest.raises(ValueError, match="below the minimum structure.*min_heads"):
        pruner.prune(TEXTS, OptinConfig(flops=0.1, min_heads=3, min_neurons=40))
    floors = {"channels": 8}
    for call in (pruner.check, lambda config: pruner.score(TEXTS, config), lambda config: pruner.prune(TEXTS, config)):
        with pytest.raises(
            ValueError, match="channels'.=8: this model has no channels; its units are heads and neurons"
        ):
            call(OptinConfig(floors=floors))
    with pytest.raises(ValueError, match="unknown scorer 'magic'; known: exact, gauss_newton"):
        pruner.prune(TEXTS, OptinConfig(scorer="magic"))
    with pytest.raises(ValueError, match="pass calibration data, or scores="):
        pruner.prune()
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="file is a file; give a folder"):
            pruner.prune(TEXTS, save_dir=folder)
    with torch.no_grad():
        pruner.model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.weight holds NaN"):
        pruner.prune(TEXTS)


@pytest.mark.parametrize("scorer", ["gauss_newton", "exact"])
def test_activations_that_overflow_name_the_layer(scorer):
    model = tiny_model("modernbert")
    with torch.no_grad():
        model.model.layers[1].mlp.Wo.weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"output of layers\.1 is not finite"):
        OptinPruner(model).score(tiny_samples(8), OptinConfig(scorer=scorer, probes=2))


def test_scores_of_another_model_or_configuration_are_refused(pruner):
    scores = pruner.score(TEXTS)
    other = OptinPruner(tiny_model(seed=1), word_tokenizer())
    for call in (other.prune, other.plan):
        with pytest.raises(ValueError, match="belong to another model"):
            call(scores=scores)
    with pytest.raises(ValueError, match="computed with probes=8, the configuration asks for 9"):
        pruner.prune(scores=scores, config=OptinConfig(probes=9))


def test_damaged_or_missing_scores(pruner, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no scores"):
        Scores.from_pretrained(tmp_path)


def test_quantized_models_are_refused():
    model = tiny_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match=r"quantized \(bitsandbytes\): prune the unquantized model"):
        OptinPruner(model)


def test_nothing_to_save_before_pruning(pruner, tmp_path):
    for call in (pruner.save_pretrained, pruner.push_to_hub):
        with pytest.raises(RuntimeError, match=r"call prune\(\) first"):
            call(str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [False, True], ids=["new folder", "existing folder"])
def test_a_failed_save_leaves_nothing(pruner, tmp_path, monkeypatch, error, before):
    folder = tmp_path / "out"
    if before:
        folder.mkdir()
        (folder / "config.json").write_text("mine")
    monkeypatch.chdir(folder if before and error is RuntimeError else tmp_path)  # in place, or swapped

    def fail(*arguments, **options):
        raise error("disk full")

    pruner.prune(TEXTS)
    monkeypatch.setattr(pruner.processor, "save_pretrained", fail)  # after the model's own files
    with pytest.raises(error, match="disk full"):
        pruner.save_pretrained(folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["out", "config.json"] if before else [])
    assert not before or (folder / "config.json").read_text() == "mine"


@pytest.mark.parametrize("module", ["optimum_optin.pruner", "optimum_optin.config"])
def test_docstring_examples_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_config_travels_with_the_pruner(pruner):
    again = OptinPruner.from_dict(pruner.to_dict(), pruner.model, pruner.processor)
    assert again.config == FAST


@pytest.mark.parametrize("inside", [False, True], ids=["from outside", "from inside"])
def test_saving_into_an_existing_folder_keeps_other_files(pruner, tmp_path, monkeypatch, inside):
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path if inside else tmp_path.parent)
    (tmp_path / "notes.txt").write_text("mine")
    for stale in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / stale).write_text("of an earlier save")
    others = ("checkpoint-5/model.safetensors", "model_teacher.safetensors")
    (tmp_path / "checkpoint-5").mkdir()
    for other in others:
        (tmp_path / other).write_text("of another model")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "checkpoint-5")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    pruner.prune(TEXTS, save_dir="." if inside else tmp_path)
    assert not list(tmp_path.glob("model*0*")) and not list(tmp_path.glob("*.index.json"))
    assert all((tmp_path / other).read_text() == "of another model" for other in others)
    assert (tmp_path / "elsewhere").is_symlink() and (tmp_path / "gone").is_symlink()
    assert len(list(tmp_path.parent.iterdir())) == 1, "nothing is left beside the folder"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").is_file()
    batch = tiny_batch(pruner.model)
    reloaded = OptinPruner.from_pretrained(tmp_path).model
    torch.testing.assert_close(reloaded(**batch).logits, pruner.pruned_model(**batch).logits, atol=0, rtol=0)


def test_a_model_without_units_is_refused():
    model = tiny_model()
    groups = find_groups(model)
    rewrite(model, groups, {group.key: torch.zeros(group.units, dtype=torch.bool) for group in groups})
    with pytest.raises(ValueError, match="no unit left to prune"):
        OptinPruner(model).prune(tiny_samples(8), OptinConfig(probes=4))


def _with_adapter(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["query", "value"]))


def _with_norm(model):
    torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].intermediate.dense)


def _with_masks(model):
    random_unstructured(model.bert.encoder.layer[0].output.dense, "weight", amount=0.5)


def _with_a_layer_twice(model):
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_adapter, "query is a peft.* which we cannot slice: merge adapters first"),
        (_with_norm, r"the weight of .*intermediate.dense .* is computed from others"),
        (_with_masks, r"the weight of .*output.dense .* is computed from others"),
        (_with_a_layer_twice, "are one module, which we cannot cut for both"),
    ],
)
def test_modules_that_cannot_be_sliced_are_refused_before_scoring(change, message, monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    model = tiny_model()
    change(model)
    pruner = OptinPruner(model, word_tokenizer(), FAST)
    for work in (pruner.prune, pruner.score):
        with pytest.raises(ValueError, match=message):
            work(TEXTS)


def test_scores_that_share_memory_are_saved(pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))

    @register_scorer("shared")
    def score_shared(model, groups, batches, config):
        scores = {group.key: torch.rand(group.units) for group in groups}
        return {"trajectory": scores, "output": scores}

    scores = pruner.score(TEXTS, OptinConfig(scorer="shared", probes=8))
    scores.save_pretrained(tmp_path / "scores")
    again = Scores.from_pretrained(tmp_path / "scores")
    assert all(torch.equal(again.terms["output"][key], score) for key, score in scores.terms["trajectory"].items())


@pytest.mark.parametrize("file", ["optin_scores.json", "optin_scores.safetensors"])
def test_damaged_scores_are_named(file, pruner, tmp_path):
    pruner.score(TEXTS).save_pretrained(tmp_path / "scores")
    path = tmp_path / "scores" / file
    path.write_bytes(b"{}" if path.suffix == ".json" else path.read_bytes()[:100])
    with pytest.raises(ValueError, match="the scores in .*scores are damaged"):
        Scores.from_pretrained(tmp_path / "scores")


@pytest.mark.parametrize("model_type", ["bert", "vit", "modernbert"])
def test_every_parameter_beside_a_layer_without_heads_gets_gradients(model_type):
    model = tiny_model(model_type)
    groups = find_groups(model)
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["layers.1.heads"][:] = False
    unused = {name for name, parameter in _gradients(tiny_model(model_type)).items() if parameter is None}
    rewrite(model, groups, masks)
    found = {name for name, gradient in _gradients(model).items() if gradient is None}
    assert found <= unused


def _gradients(model):
    model.train()(**tiny_batch(model)).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.numel()}
