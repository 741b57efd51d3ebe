"""Models that merge tokens: against the dense model on averaged tokens, and on the way to disk."""

import copy
import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CASES, KINDS, load, output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from transformers import AutoModelForImageClassification

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores, find_groups, register_scorer
from optimum_optin.commands.run import run
from optimum_optin.comparing.losses import manifold_distance, output_distance
from optimum_optin.discovery import find_layers, key_projection
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.media.vision import image_tokens, prefix_tokens
from optimum_optin.merging.hooks import TokenMerger, attach_merging, merging
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.passes.calibration import calibrate
from optimum_optin.passes.hooks import recorded
from optimum_optin.passes.outputs import compared_output
from optimum_optin.passes.trajectory import draw_rows, trajectory_features
from optimum_optin.pricing.macs import cost_tables, count_macs, dense_cost, matching_cost, token_costs, total_cost
from optimum_optin.running.freezing import frozen
from optimum_optin.scoring import stored
from optimum_optin.scoring.merges import score_merges
from optimum_optin.storage.record import convert_model, merge_tokens_of
from optimum_optin.storage.structure import structure_of


def _mergeable(model_type):
    try:
        key_projection(tiny_model(model_type))
    except ValueError:
        return False
    return True


FAMILIES = [model_type for model_type in CASES if _mergeable(model_type)]
each_family = pytest.mark.parametrize("model_type", FAMILIES, ids=FAMILIES)
MERGES = {"layers.0": 5, "layers.1": 4}


def _merging(model, merges=None):
    """A copy of a model that merges tokens, as from disk."""
    copied = copy.deepcopy(model)
    convert_model(copied, {}, _schedule(model, merges or (5, 4)))
    return copied


def _schedule(model, merges=(5, 4)):
    return TokenSchedule(prefix_tokens(model), dict(zip(find_layers(model), merges, strict=False)))


def _average(places, apart):
    """Forward hook that gives every token the mean of those at its place, and notes what each was apart from it."""

    def hook(module, args, output):
        averaged = output.clone()
        for sample, places_of in enumerate(places):
            for place in places_of.unique():
                averaged[sample, places_of == place] = output[sample, places_of == place].mean(0)
        apart.append(output - averaged)
        return averaged

    return hook


def _add(apart):
    """Forward hook that gives every token back what it was apart."""
    return lambda module, args, output: output + sum(apart)


def test_the_families_are_those_with_plain_attention():
    assert {"vit", "deit", "deit with a teacher", "dinov2", "clip_vision_model", "siglip_vision_model"} <= set(FAMILIES)
    assert not {"swin", "beit", "dinov3_vit", "bert", "clip_text_model"} & set(FAMILIES)


@each_family
def test_attention_by_size_is_attention_to_every_token_that_was_merged(model_type):
    """A model that merges equals the dense one whose tokens are set to their mean after each layer."""
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    layers = find_layers(model)
    merged = _merging(model)
    with torch.no_grad(), recorded(merged, layers) as outputs:
        merged(**batch)
    oracle, apart = copy.deepcopy(model), []
    for layer in list(layers)[:2]:
        oracle.get_submodule(layers[layer]).register_forward_hook(_average(outputs[layer].places, apart))
    oracle.get_submodule(list(layers.values())[-1]).register_forward_hook(_add(apart))
    dense, expected, got = (output_of(each, batch) for each in (model, oracle, merged))
    assert (dense - expected).abs().max() > 1e-3, "merging must matter"
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    second = outputs[list(layers)[1]]
    sizes, places = second.sizes, second.places
    assert sizes.shape[1] == image_tokens(model, batch) - 9
    counted = torch.zeros_like(sizes).scatter_add(1, places, torch.ones(places.shape))
    assert torch.equal(counted, sizes) and (sizes[:, : prefix_tokens(model)] == 1).all()


@each_family
def test_all_tokens_are_back_at_the_end(model_type):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    with torch.no_grad():
        hidden = [
            each.base_model(**batch).last_hidden_state if model.base_model is not model else each(**batch)[0]
            for each in (model, _merging(model))
        ]
    assert hidden[0].shape == hidden[1].shape


COUNTED = [(name, "sdpa") for name in FAMILIES] + [(name, "eager") for name in FAMILIES if name in KINDS]


@pytest.mark.parametrize(("model_type", "attention"), COUNTED, ids=map(" ".join, COUNTED))
def test_pruned_and_merging_models_reload_equal_and_cost_what_is_counted(model_type, attention, tmp_path):
    model = tiny_model(model_type)
    model.set_attn_implementation(attention)
    batch = tiny_batch(model)
    groups = find_groups(model)
    masks = random_masks(groups)
    masks[f"{list(find_layers(model))[1]}.heads"][:] = False  # its tokens are compared without keys
    schedule = _schedule(model)
    pruned = copy.deepcopy(model)
    convert_model(pruned, structure_of(groups, masks), schedule)
    expected = output_of(pruned, batch)
    pruned.save_pretrained(tmp_path / "first")
    loaded = load(model, tmp_path / "first", attn_implementation=attention)
    torch.testing.assert_close(output_of(loaded, batch), expected, atol=0, rtol=0)
    loaded.save_pretrained(tmp_path / "second")
    again = load(model, tmp_path / "second", attn_implementation=attention)
    torch.testing.assert_close(output_of(again, batch), expected, atol=0, rtol=0)

    one = {"pixel_values": batch["pixel_values"][:1]}
    tokens = image_tokens(model, batch)
    dense = dense_cost(cost_tables(model, groups, tokens))
    left = dense_cost(cost_tables(loaded, find_groups(loaded), tokens, schedule))
    left += matching_cost(loaded, find_groups(loaded), tokens, schedule)
    assert count_macs(model, one) - count_macs(loaded, one) == dense - left > 0


def test_costs_by_length_are_those_of_the_tables():
    model = tiny_model("vit")
    groups = find_groups(model)
    costs = token_costs(model, groups, 17)
    for tokens in (0, 1, 9, 17):
        assert sum(cost[tokens] for cost in costs.layers.values()) == dense_cost(cost_tables(model, groups, tokens))
    schedule = TokenSchedule(1, MERGES)
    whole = dense_cost(cost_tables(model, groups, 17, schedule)) + matching_cost(model, groups, 17, schedule)
    assert costs.of(schedule) == whole


def test_copies_do_not_share_what_passes_through_them():
    merged = _merging(tiny_model("vit"))
    copied = copy.deepcopy(merged)

    def owners(model):
        return {id(hook.__self__) for module in model.modules() for hook in module._forward_hooks.values()}

    assert owners(merged) and not owners(merged) & owners(copied)


def test_threads_do_not_share_what_passes_through_them():
    """Servers run one model in several threads, and so does nn.DataParallel."""
    model = _merging(tiny_model("vit"))
    batches = [tiny_batch(model, seed) for seed in range(64)]
    expected = [output_of(model, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda batch: output_of(model, batch), batches))
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one)


def test_what_is_merged_under_a_context_is_undone():
    model = tiny_model("vit")
    batch = tiny_batch(model)
    dense = output_of(model, batch)
    with merging(model, find_groups(model), TokenSchedule(1, MERGES)):
        assert not torch.equal(output_of(model, batch), dense)
    assert torch.equal(output_of(model, batch), dense)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_are_the_same_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = _merging(tiny_model("vit")).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**tiny_batch(model), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append(model.vit.layers[0].mlp.fc1.weight.grad)
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_it_compiles_whole_and_exports_for_any_batch():
    model = _merging(tiny_model("dinov2"))
    pixels = tiny_batch(model)["pixel_values"]
    more = torch.cat([pixels, pixels.flip(0)])
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(model, (), {"pixel_values": pixels}, dynamic_shapes=shapes).module()
    with torch.no_grad():
        for each in (pixels, more):
            expected = model(pixel_values=each).logits
            torch.testing.assert_close(compiled(pixel_values=each).logits, expected)
            torch.testing.assert_close(exported(pixel_values=each).logits, expected)


def test_images_with_fewer_tokens_merge_as_many_as_have_a_partner():
    model = _merging(tiny_model("dinov2"), (8, 4))
    small = {"pixel_values": torch.randn(2, 3, 8, 8)}  # four patches: two merge, then one
    with torch.no_grad(), recorded(model, find_layers(model)) as outputs:
        model(**small)
    assert [outputs[f"layers.{index}"].hidden.shape[1] for index in range(2)] == [3, 2]


def test_losses_of_merging_are_those_of_running_it():
    model = tiny_model("vit")
    batches = [tiny_batch(model, seed, samples=8) for seed in range(2)]
    config = OptinConfig(rows=16)
    groups, layers = find_groups(model), find_layers(model)
    with frozen(model), torch.no_grad():
        terms = score_merges(model, groups, calibrate(model, batches), config)
        assert {term: list(by_layer) for term, by_layer in terms.items()} == {
            term: ["layers.0", "layers.1"] for term in ("trajectory", "output")
        }
        total = {"trajectory": 0.0, "output": 0.0}
        for index, batch in enumerate(batches):
            rows = draw_rows(token_masks(model, batch), 16, _stream(config, index))
            seen = []
            for pairs in (0, 8):
                with (
                    merging(model, find_groups(model), TokenSchedule(1, {"layers.0": pairs})),
                    recorded(model, layers) as outputs,
                ):
                    final = compared_output(model, batch, rows)
                seen.append((trajectory_features(outputs, rows, token_masks(model, batch)), final))
            (dense, dense_final), (merged, final) = seen
            for layer in ("layers.1", "layers.2"):
                total["trajectory"] += float(manifold_distance(merged[layer], dense[layer])) / 2
            total["output"] += float(output_distance(final.values, dense_final.values, 1.0, final.kind)) / 2
    for term, by_layer in terms.items():
        increments = by_layer["layers.0"]
        assert increments.shape == (8,) and (increments.diff() >= 0).all()
        assert float(increments.sum()) == pytest.approx(total[term], rel=1e-4)


def _stream(config, index):
    from optimum_optin.running.randomness import generators

    return generators(config.seed, 2)[index]


@pytest.mark.parametrize("tokens", ["auto", [4, 3, 0]])
def test_a_budget_pays_for_tokens_heads_and_neurons(tokens, tmp_path):
    model = tiny_model("vit")
    pruner = OptinPruner(model)
    config = OptinConfig(flops=0.5, merging=tokens, probes=8)
    pruned = pruner.prune(tiny_samples(32, model=model), config, save_dir=tmp_path)
    report = PruningReport.load(tmp_path)
    assert 0.45 < report.flops_achieved <= 0.5
    one = {"pixel_values": torch.zeros(1, 3, 16, 16)}
    counted = count_macs(model, one) - count_macs(load(model, tmp_path), one)
    dense = dense_cost(cost_tables(model, find_groups(model), 17))
    assert counted == pytest.approx((1 - report.flops_achieved) * dense)
    if tokens != "auto":
        assert report.merges == {"layers.0": 4, "layers.1": 3}
    batch = tiny_batch(model)
    assert torch.equal(output_of(load(model, tmp_path), batch), output_of(pruned, batch))
    assert f"merges {sum(report.merges.values())} of 17 tokens" in (tmp_path / "README.md").read_text()
    assert "tokens merged" in str(report)


def test_a_plan_shows_what_a_schedule_leaves():
    model = tiny_model("vit")
    pruner = OptinPruner(model)
    config = OptinConfig(flops=0.5, merging=[4, 3, 0], probes=4, search="ranked")
    scores = pruner.score(tiny_samples(16, model=model), config)
    plan = pruner.plan(scores)
    pruner.prune(scores=scores)
    assert plan.flops_achieved == pytest.approx(pruner.report.flops_achieved)
    assert plan.layers == pruner.report.layers and plan.merges == pruner.report.merges
    assert "tokens merged" in str(plan)


def test_none_merges_nothing_and_other_models_have_nothing_to_merge(caplog):
    for model_type, options, warning in (
        ("vit", {}, ""),
        ("swin", {"merging": "auto"}, "this 'swin' model does not allow it"),
        ("bert", {"merging": "auto"}, "this 'bert' model does not allow it"),
        ("vit", {"merging": "auto", "layout": "uniform"}, "layout='uniform' does not allow it"),
    ):
        model = tiny_model(model_type)
        pruner = OptinPruner(model)
        caplog.clear()
        pruner.prune(tiny_samples(16, model=model), OptinConfig(flops=0.8, probes=4, **options))
        assert pruner.report.merges == {}
        assert ("merging='auto' merges none" in caplog.text) == bool(warning)
        assert warning in caplog.text


def test_a_budget_that_is_too_small_is_named_as_it_was_given(monkeypatch):
    model = tiny_model("vit")
    samples, config = tiny_samples(16, model=model), OptinConfig(flops=0.1, probes=4, merging=[1, 1, 0])
    scores = OptinPruner(model).score(samples, config)
    groups, schedule = find_groups(model), TokenSchedule(1, {"layers.0": 1, "layers.1": 1})
    minimum = total_cost(model, groups, 17, schedule, _one_head_each(model))
    message = f"a budget of 0.1 of the dense cost .* costs {minimum / total_cost(model, groups, 17):.4g} of it"
    with pytest.raises(ValueError, match=message):
        OptinPruner(model).plan(scores)
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        OptinPruner(model).prune(samples, config)


def _one_head_each(model):
    return {group.key: torch.arange(group.units) < (group.role == "heads") for group in find_groups(model)}


def test_scores_of_tokens_come_back_from_disk(tmp_path):
    model = tiny_model("vit")
    scores = OptinPruner(model).score(tiny_samples(16, model=model), OptinConfig(probes=4, merging="auto"))
    scores.save_pretrained(tmp_path)
    loaded = Scores.from_pretrained(tmp_path)
    assert scores.merges["output"].keys() == loaded.merges["output"].keys() == {"layers.0", "layers.1"}
    for layer, loss in scores.combine_merges().items():
        assert torch.equal(loaded.combine_merges()[layer], loss)
    for key, score in scores.combine().items():
        assert torch.equal(loaded.combine()[key], score)


def _called_tokens(file, **changes):
    """Write a JSON file as the version wrote it that called merging `tokens`."""
    data = json.loads(file.read_text())
    data["config"]["tokens"] = data["config"].pop("merging")
    file.write_text(json.dumps({**data, **{name: change(data) for name, change in changes.items()}}))


@pytest.mark.filterwarnings("error::FutureWarning")
def test_files_in_which_merging_is_called_tokens_are_read(tmp_path, capsys):
    model = tiny_model("vit")
    pruner = OptinPruner(model)
    config = OptinConfig(flops=0.5, merging=[4, 3, 0], probes=4, search="ranked", compensation="none")
    scores = pruner.score(tiny_samples(16, model=model), config)
    pruner.prune(scores=scores, save_dir=tmp_path / "pruned")
    scores.save_pretrained(tmp_path / "scores")
    written = PruningReport.load(tmp_path / "pruned")
    assert "merging=(4, 3, 0)" in (tmp_path / "pruned/README.md").read_text()

    def digest(data):
        tensors = load_file(tmp_path / "scores/optin_scores.safetensors")
        return stored._digest(tensors, {name: value for name, value in data.items() if name != "sha256"})

    _called_tokens(tmp_path / "pruned/optin_report.json")
    _called_tokens(tmp_path / "scores/optin_scores.json", sha256=digest)
    assert Scores.from_pretrained(tmp_path / "scores").config == config
    report = PruningReport.load(tmp_path / "pruned")
    assert report == written and OptinConfig.from_dict(report.config) == config
    pruner.report = report
    assert "merging=[4, 3, 0]" in pruner.create_model_card().text
    assert run("info", [str(tmp_path / "pruned"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["config"]["merging"] == [4, 3, 0]


@pytest.mark.parametrize(
    ("model_type", "tokens", "message"),
    [
        ("vit", [4, 3], "must have a number for each of the model's 3 layers"),
        ("vit", [9, 0, 0], "9 merges after layers.0, which has 17 tokens"),
        ("vit", [0, 0, 1], "the last layer, save nothing"),
        ("swin", [1, 0, 0], "tokens of this 'swin' model cannot be merged; those of clip_vision_model, deit, "),
        ("bert", [1, 0, 0], r"'bert' model cannot be merged; .* vit, clip \(its classifiers of images\), siglip \("),
        ("clip", [1, 0, 0], r"'clip' model cannot be merged; .* clip \(its classifiers of images\)"),
    ],
)
def test_schedules_that_do_not_fit_are_refused_before_work(model_type, tokens, message, monkeypatch):
    model = tiny_model(model_type)
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        OptinPruner(model).prune(tiny_samples(16, model=model), OptinConfig(flops=0.6, merging=tokens))


@pytest.mark.parametrize(
    "tokens",
    [np.array([4, 4, 0]), torch.tensor([4, 4, 0]), [np.int64(4), torch.tensor(4), 0]],
    ids=["array", "tensor", "mixed"],
)
def test_whole_numbers_of_any_kind_are_pairs(tokens):
    config = OptinConfig(merging=tokens)
    assert config == OptinConfig(merging=[4, 4, 0]) and set(map(type, config.merging)) == {int}


@pytest.mark.parametrize(
    "tokens",
    [
        "some",
        3,
        [1.5, 0],
        [-1],
        None,
        [True, 0],
        {"layers.0": 4},
        np.array([4.0, 0]),
        np.array(4),
        np.ones((2, 2), int),
    ],
)
def test_tokens_of_another_kind_are_refused(tokens):
    with pytest.raises(ValueError, match="merging="):
        OptinConfig(merging=tokens)


def test_scores_without_tokens_cannot_choose_a_schedule():
    model = tiny_model("vit")
    pruner = OptinPruner(model)
    scores = pruner.score(tiny_samples(16, model=model), OptinConfig(probes=4, merging="none"))
    config = OptinConfig(probes=4, merging="auto")
    for use in (pruner.prune, pruner.plan):
        with pytest.raises(ValueError, match="no scores of tokens"):
            use(config=config, scores=scores)


def test_a_scorer_of_other_terms_does_not_keep_tokens_from_merging():
    @register_scorer("sizes")
    def score_sizes(model, groups, batches, config):
        return {"size": {group.key: torch.arange(group.units) + 1.0 for group in groups}}

    model = tiny_model("vit")
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(16, model=model), OptinConfig(flops=0.5, scorer="sizes", merging="auto"))
    assert pruner.report.flops_achieved <= 0.5


@pytest.mark.parametrize(
    ("head", "search", "warns"), [(True, "measured", False), (True, "ranked", True), (False, "measured", True)]
)
def test_auto_says_when_it_can_compare_no_schedules(head, search, warns, caplog):
    model = tiny_model("vit") if head else tiny_model("vit").base_model
    config = OptinConfig(flops=0.6, probes=4, merging="auto", search=search)
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(16, model=model), config)
    assert ("merging='auto' merges none: it compares trial cuts" in caplog.text) == warns
    assert not (warns and pruner.report.merges)


def test_a_model_that_merges_is_not_pruned_again():
    with pytest.raises(ValueError, match="merges tokens already"):
        OptinPruner(_merging(tiny_model("vit")))


def test_what_cannot_run_with_merged_tokens_says_so():
    model = _merging(tiny_model("vit"))
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(**tiny_batch(model), attention_mask=torch.eye(3, 17))
    with pytest.raises(ValueError, match="merges tokens already"):
        attach_merging(model, find_groups(model), TokenSchedule(1, MERGES))
    layer = model.vit.layers[0].attention
    layer.k_proj = copy.deepcopy(layer.v_proj)  # as quantizers do
    with pytest.raises(RuntimeError, match="key projections"):
        model(**tiny_batch(model))
    flash = tiny_model("vit")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2' cannot be merged"):
        attach_merging(flash, find_groups(flash), TokenSchedule(1, MERGES))


def test_remote_code_merges_too(tmp_path):
    model = tiny_model("vit")
    pruned = copy.deepcopy(model)
    convert_model(pruned, structure_of(find_groups(model), random_masks(find_groups(model))), TokenSchedule(1, MERGES))
    pruner = OptinPruner(model)
    config = OptinConfig(flops=0.5, merging=[4, 3, 0], probes=4, remote_code=True)
    pruned = pruner.prune(tiny_samples(16, model=model), config, save_dir=tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert "TokenMerger" in (tmp_path / "modeling_optin.py").read_text()
    hooks = [hook for module in loaded.modules() for hook in module._forward_hooks.values()]
    assert inspect.getmodule(type(hooks[0].__self__)).__name__.startswith("transformers_modules.")
    batch = tiny_batch(model)
    assert torch.equal(output_of(loaded, batch), output_of(pruned, batch))


def test_merge_tokens_of_notes_the_schedule():
    model = tiny_model("vit")
    groups = find_groups(model)
    convert_model(model, structure_of(groups, random_masks(groups)))
    merge_tokens_of(model, TokenSchedule(1, {"layers.0": 2, "layers.1": 0}))
    assert model.config.to_dict()["quantization_config"]["tokens"] == {
        "protected": 1,
        "merges": {"layers.0": 2},
        "differences": True,
    }


@pytest.mark.parametrize("model_type", ["vit", "dinov2"])
def test_hidden_states_are_the_same_as_after_reloading(model_type, tmp_path):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    model(**batch, output_hidden_states=True)  # transformers hooks the layers now
    config = OptinConfig(flops=0.7, probes=8, merging=[4] + [0] * (len(find_layers(model)) - 1))
    pruned = OptinPruner(model).prune(tiny_samples(model=model), config, save_dir=tmp_path / "pruned")
    again = type(model).from_pretrained(tmp_path / "pruned").eval()
    found, expected = (each(**batch, output_hidden_states=True).hidden_states for each in (pruned, again))
    assert [states.shape for states in found] == [states.shape for states in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_an_interruption_while_hooks_are_attached_leaves_none(monkeypatch):
    model, made = tiny_model("vit"), []
    before = model(**tiny_batch(model)).logits

    class Interrupted(TokenMerger):
        def __init__(self, *arguments):
            if made:
                raise KeyboardInterrupt
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr("optimum_optin.merging.hooks.TokenMerger", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        attach_merging(model, find_groups(model), TokenSchedule(1, MERGES))
    assert len(made) == 1
    assert torch.equal(model(**tiny_batch(model)).logits, before)


def test_a_schedule_that_does_not_fit_cuts_nothing():
    model = tiny_model("vit")
    before = {name: value.shape for name, value in model.state_dict().items()}
    masks = random_masks(find_groups(model))
    with pytest.raises(ValueError, match="'layers.9' is no layer of this model"):
        convert_model(model, structure_of(find_groups(model), masks), TokenSchedule(1, {"layers.9": 3}))
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    assert not hasattr(model.config, "quantization_config")
