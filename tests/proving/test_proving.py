"""`check_architecture`: what fits is proved, what does not is refused with its reason, and nothing is left behind."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as tr
from test_untouched import state_of
from tiny import CASES, SHAPE, VISION_SHAPE, tiny_batch, tiny_model, tiny_samples
from torch import nn
from transformers.models.bert.modeling_bert import BertOutput, BertSelfAttention

from optimum_optin import OptinConfig, OptinPruner, Stack, check_architecture, find_groups, heads, neurons
from optimum_optin.architectures import registry
from optimum_optin.commands.run import run

FAST = OptinConfig(flops=0.5, probes=4)
BERT_HEADS = (
    "attention.self",
    "attention.self.attention_head_size",
    ["attention.self.query", "attention.self.key", "attention.self.value"],
    "attention.output.dense",
)
BERT_NEURONS = neurons(["intermediate.dense"], "output.dense")
DEBERTA_HEADS = heads(
    "attention.self",
    "attention.self.attention_head_size",
    [f"attention.self.{name}_proj" for name in ("query", "key", "value")],
    "attention.output.dense",
    counters={"attention.self.num_attention_heads": "units", "attention.self.all_head_size": "features"},
)
ALBERT = Stack(
    "encoder.albert_layer_groups.0.albert_layers",
    (
        heads(
            "attention",
            "attention.attention_head_size",
            ["attention.query", "attention.key", "attention.value"],
            "attention.dense",
        ),
        neurons(["ffn"], "ffn_output"),
    ),
)
CONVOLUTION = {**SHAPE, "conv_kernel_size": 3, "conv_act": "gelu"}
RELATIVE = {**SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
LAYOUT = {**SHAPE, "coordinate_size": 4, "shape_size": 8, "input_size": 16, "patch_size": 4}


@pytest.fixture(autouse=True)
def _rows(monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))


def made(model_class, config, *stacks):
    """A perturbed model with a row of its own."""
    registry.register_architecture(config.model_type, *stacks)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bert(*sublayers, **options):
    """A tiny BERT with a row of its own."""
    model = tiny_model()
    model.config.model_type = "mine"
    registry.register_architecture("mine", Stack("encoder.layer", sublayers, **options))
    return model


def changed(model_type, **changes):
    """A tiny model whose row has other fields of `Linears`, `Residual` or `Stack`."""
    (stack,) = registry.row_of(model_type)
    for name in list(changes):
        for part in ("linears", "residual"):
            if hasattr(getattr(stack.sublayers[0], part), name):
                value = changes[name]
                sublayers = (
                    replace(each, **{part: replace(getattr(each, part), **{name: value})}) for each in stack.sublayers
                )
                stack = replace(stack, sublayers=tuple(sublayers))
    stack = replace(stack, **{name: value for name, value in changes.items() if hasattr(stack, name)})
    model = tiny_model(model_type)
    model.config.model_type = "mine"
    registry.register_architecture("mine", stack)
    return model


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_is_proved(case):
    proof = check_architecture(tiny_model(case))
    assert proof.proved and proof.repeatable, str(proof)
    assert 0 < proof.largest < 2e-6
    assert [each.group.key for each in proof.groups] == [group.key for group in find_groups(tiny_model(case))]
    assert {each.least for each in proof.groups} == {0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_says_what_is_rounding(dtype):
    proof = check_architecture(tiny_model().to(dtype))
    assert proof.proved, str(proof)
    assert proof.largest < proof.rounding / 3
    wrong = bert(replace(heads(*BERT_HEADS), width=4), BERT_NEURONS).to(dtype)
    proof = check_architecture(wrong)
    assert not proof.proved
    assert proof.groups[0].cut.endswith("prove it in float32 (dtype='float32')") == (dtype.itemsize == 2)


def test_a_pruned_model_and_a_sample_of_ones_own_are_proved():
    model = OptinPruner(tiny_model("mpnet")).prune(tiny_samples(), FAST)
    assert check_architecture(model, tiny_batch(model)).proved


class Crossing(BertSelfAttention):
    """Keys are of other tokens."""

    def forward(self, hidden_states, attention_mask=None, **options):
        read = (hidden_states, hidden_states.roll(1, 1), hidden_states)
        parts = [
            linear(each).unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)
            for linear, each in zip((self.query, self.key, self.value), read, strict=True)
        ]
        return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2), None


def crossing():
    model = bert(heads(*BERT_HEADS), BERT_NEURONS)
    for layer in model.bert.encoder.layer:
        layer.attention.self.__class__ = Crossing
    return model


class Keeping(BertSelfAttention):
    """Keeps what it reads for the output of the same layer."""

    def forward(self, hidden_states, attention_mask=None, **options):
        self.kept[0] = hidden_states
        written, weights = super().forward(hidden_states, attention_mask=attention_mask, **options)
        return written + 0 * hidden_states.sum(), weights


class Adding(BertOutput):
    """Adds what the attention kept."""

    def forward(self, hidden_states, input_tensor):
        return super().forward(hidden_states, input_tensor) + self.kept[0]


def keeping():
    model, kept = bert(heads(*BERT_HEADS), BERT_NEURONS), [None]
    for layer in model.bert.encoder.layer:
        for module, kind in ((layer.attention.self, Keeping), (layer.output, Adding)):
            module.__class__, module.kept = kind, kept
    return model


# What a refit that walked from layer to layer could not deal with.
REFITTED = {
    "DeBERTa-v2 with its convolution": lambda: made(
        tr.DebertaV2Model, tr.DebertaV2Config(**CONVOLUTION), Stack("encoder.layer", (DEBERTA_HEADS, BERT_NEURONS))
    ),
    "keys of other tokens": crossing,
}
CUTS = {
    "DeBERTa-v2 with relative positions": (
        lambda: made(
            tr.DebertaV2Model, tr.DebertaV2Config(**RELATIVE), Stack("encoder.layer", (DEBERTA_HEADS, BERT_NEURONS))
        ),
        r"layers\.0\.heads .* with every second unit cut, the model does not run \(RuntimeError: Expected size",
    ),
    "ALBERT": (
        lambda: made(tr.AlbertModel, tr.AlbertConfig(embedding_size=16, **SHAPE), ALBERT),
        r"layers\.0\.heads .* encoder\.albert_layer_groups\.0\.albert_layers\.0 runs 3 times in a pass",
    ),
    "LayoutLMv3": (
        lambda: made(
            tr.LayoutLMv3Model,
            tr.LayoutLMv3Config(**LAYOUT),
            Stack("encoder.layer", (heads(*BERT_HEADS), BERT_NEURONS)),
        ),
        r"layers\.0\.heads .* does not run \(RuntimeError: The size of tensor a .*misses a counter, a table",
    ),
    "half a head": (
        lambda: bert(replace(heads(*BERT_HEADS), width=4), BERT_NEURONS),
        r"layers\.0\.heads is 0\.\d+ of its size off what it is with them masked \(rounding: 1e-05\): its row",
    ),
    "a producer forgotten": (
        lambda: bert(heads(*BERT_HEADS[:2], BERT_HEADS[2][:2], BERT_HEADS[3]), BERT_NEURONS),
        "with every second unit cut, the model does not run",
    ),
    "consumer and producer swapped": (
        lambda: bert(heads(*BERT_HEADS), neurons(["attention.output.dense"], "attention.self.value")),
        r"layers\.0\.neurons .* the model does not run",
    ),
    "a counter forgotten": (lambda: changed("swinv2", counters={}), "the model does not run"),
    "a counter that counts something else": (
        lambda: changed("distilbert", counters={"attention.dim": "units"}),
        r"counter distilbert\.transformer\.layer\.0\.attention\.dim is 32, where its row says 4 units, 1 for each: 4",
    ),
    "a table forgotten": (lambda: changed("swin", tables={}), "the model does not run"),
    "a shared bias forgotten": (lambda: changed("mpnet", shared_bias=None), "the model does not run"),
}


def test_a_model_that_keeps_tensors_on_modules_is_refused_a_refit_but_can_be_cut():
    model = keeping()
    proof = check_architecture(model)
    assert not any(each.cut for each in proof.groups) and all(each.refit for each in proof.groups)
    message = (
        r"can be cut, but what is left cannot be refitted: logits is 0\.\d+ of its size off if another sample runs"
    )
    with pytest.raises(ValueError, match=message) as error:
        OptinPruner(model).check(FAST)
    assert "compensation='none' prunes it without" in str(error.value)
    OptinPruner(model).check(replace(FAST, compensation="none"))


@pytest.mark.parametrize("case", REFITTED)
def test_what_stands_between_layers_is_no_hindrance(case):
    model = REFITTED[case]()
    assert check_architecture(model).proved
    pruner = OptinPruner(model)
    data = tiny_samples(200)
    scores = pruner.score(data, FAST)
    off = []
    for compensation in ("none", "ridge"):
        pruned = pruner.prune(scores=scores, config=replace(FAST, compensation=compensation))
        off.append(pruner.report.divergence.distance)
        assert pruned is not model
    assert off[1] < 0.7 * off[0]


@pytest.mark.parametrize("case", CUTS)
def test_what_would_be_cut_wrong_is_refused(case):
    make, message = CUTS[case]
    pruner = OptinPruner(make())
    for work in (pruner.score, pruner.prune):
        with pytest.raises(ValueError, match=message):
            work(unread(), replace(FAST, compensation="none"))


def unread():
    raise AssertionError("data were read")
    yield


def test_only_groups_that_are_wrong_are_blamed():
    proof = check_architecture(bert(replace(heads(*BERT_HEADS), width=4), BERT_NEURONS))
    assert {each.group.role: each.proved for each in proof.groups} == {"heads": False, "neurons": True}


class Dropping(tr.BertForSequenceClassification):
    """Drops out whatever the mode."""

    def forward(self, input_ids=None, attention_mask=None):
        hidden = self.bert(input_ids, attention_mask=attention_mask)[0]
        return self.classifier(nn.functional.dropout(hidden[:, 0], 0.5))


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: tiny_model(model_class=Dropping), "in logits by .* first in classifier"),
        (
            lambda: made(tr.ViTMAEModel, tr.ViTMAEConfig(**VISION_SHAPE), *registry.row_of("vit")),
            r"in layers\.0\.heads by .* first in embeddings",
        ),
    ],
    ids=["dropout", "ViTMAE"],
)
def test_random_passes_are_refused_with_their_source(make, place):
    model, before = make(), torch.get_rng_state()
    with pytest.raises(
        ValueError, match=rf"{place}: random numbers are drawn there \(with torch\.manual_seed"
    ) as error:
        OptinPruner(model).score(unread(), FAST)
    assert "Scores and refit compare passes: switch that off in evaluation mode" in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)


class Counting(tr.BertForSequenceClassification):
    """Every call adds to what the next one returns."""

    calls = 0

    def forward(self, input_ids=None, attention_mask=None):
        Counting.calls += 1
        return super().forward(input_ids, attention_mask=attention_mask).logits + Counting.calls


def test_passes_that_remember_earlier_ones_are_refused():
    proof = check_architecture(tiny_model(model_class=Counting))
    assert "first in its own forward: it depends on more than its inputs" in proof.problem
    assert not proof.proved and str(proof).endswith("in a subclass.")


class Boxes(tr.BertForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, boxes=None):
        return super().forward(input_ids, attention_mask=attention_mask).logits + boxes.sum()


class BoxesOfImages(tr.ViTForImageClassification):
    def forward(self, pixel_values=None, boxes=None):
        return super().forward(pixel_values + boxes.sum()).logits


def test_inputs_that_a_sample_lacks_are_named():
    for model, inputs in (
        (tiny_model("vit", model_class=BoxesOfImages), "pixel_values"),
        (tiny_model(model_class=Boxes), "input_ids and attention_mask"),
    ):
        with pytest.raises(
            ValueError, match=rf"does not run on {inputs} \(AttributeError: .*takes also boxes: what it"
        ):
            OptinPruner(model).check(FAST)
    assert check_architecture(model, {**tiny_batch(model), "boxes": torch.ones(3)}).proved


class Unused(tr.BertForSequenceClassification):
    """Leaves out its last layer."""

    def forward(self, input_ids=None, attention_mask=None):
        layers = self.bert.encoder.layer
        self.bert.encoder.layer = layers[:2]
        try:
            return super().forward(input_ids, attention_mask=attention_mask)
        finally:
            self.bert.encoder.layer = layers


def test_a_layer_that_does_not_run_is_named():
    proof = check_architecture(tiny_model(model_class=Unused))
    assert proof.groups[-1].score.startswith("bert.encoder.layer.2 does not run for this sample")
    assert [each.score is None for each in proof.groups] == [True] * 4 + [False] * 2
    assert not any(each.refit for each in proof.groups)


def test_units_without_effect_are_named_and_may_go():
    model = tiny_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.zero_()
    proof = check_architecture(model)
    assert [each.group.key for each in proof.groups if not each.effect] == ["layers.1.neurons"]
    assert proof.proved and "layers.1.neurons" in str(proof) and "changes nothing for this sample" in str(proof)
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(16), replace(FAST, flops=0.7))
    assert pruner.report.layers["layers.1"]["neurons"]["kept"] == 0


def test_a_refusal_is_not_remembered():
    model = tiny_model()
    weight = model.bert.encoder.layer[1].output.dense.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    pruner = OptinPruner(model)
    with pytest.raises(ValueError, match=r"the output of layers\.1 is not finite"):
        pruner.check(FAST)
    with torch.no_grad():
        weight.copy_(kept)
    pruner.check(FAST)


def test_a_group_that_cannot_lose_its_last_unit_keeps_it():
    model = changed("beit", core=None)
    assert {(each.group.role, each.least) for each in check_architecture(model).groups} == {
        ("heads", 1),
        ("neurons", 0),
    }
    with pytest.raises(ValueError, match=r"layers\.0\.heads .* cannot lose its last unit: set floors={'heads': 1}"):
        OptinPruner(model).check(replace(FAST, min_heads=0))
    OptinPruner(model).check(FAST)


def test_what_no_sample_can_prove_is_refused_at_once():
    with pytest.raises(ValueError, match=r"reads several sequences per sample, \(batch, choices, tokens\)"):
        check_architecture(tiny_model(model_class=tr.BertForMultipleChoice))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("count", [1, 40, 120, 140])
def test_the_model_is_as_it_was(error, count, monkeypatch):
    model = tiny_model("bert").train()
    before, calls, normal = state_of(model), 0, nn.functional.linear

    def failing(*arguments):
        nonlocal calls
        calls += 1
        if calls == count and error:
            raise error
        return normal(*arguments)

    monkeypatch.setattr(nn.functional, "linear", failing)
    if error:
        with pytest.raises(error):
            check_architecture(model)
    else:
        assert check_architecture(model).proved
        assert calls > 140
    assert state_of(model) == before


def test_the_copy_holds_only_what_is_cut():
    from optimum_optin.proving.cuts import _lean_copy

    model = tiny_model()
    copied = _lean_copy(model)
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert one is not other and one.data_ptr() == other.data_ptr()


def test_scores_for_a_prune_without_refit_are_made_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("optimum_optin.commands.score.load_pruner", lambda arguments: OptinPruner(keeping(), None))
    monkeypatch.setattr("optimum_optin.commands.score.load_calibration", lambda *arguments: tiny_samples())
    words = ["model", "--calibration", "data", "--probes", "4", "--output", str(tmp_path / "scores")]
    assert run("score", words) == 2
    assert "compensation='none' prunes it without" in capsys.readouterr().err
    assert run("score", [*words, "--compensation", "none"]) == 0


def test_the_command_prints_it_and_says_so_by_its_exit_code(tmp_path, capsys):
    model = tiny_model()
    model.save_pretrained(tmp_path / "fits")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "damaged")
    assert run("check", [str(tmp_path / "fits")]) == 0
    assert "6 of 6 groups are proved: passes agree to the last bit" in capsys.readouterr().out
    assert run("check", [str(tmp_path / "damaged"), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["proved"] is False and printed["sample"] == {"input_ids": [1, 16], "attention_mask": [1, 16]}
    assert printed["problem"].startswith("the output of layers.1 is not finite")
    assert run("check", [str(tmp_path / "damaged")]) == 1
    assert "nothing is proved: the output of layers.1 is not finite on one sample" in capsys.readouterr().out
    assert run("check", [str(tmp_path / "nowhere")]) == 2


def test_a_model_that_does_not_come_back_from_disk_is_not_proved(monkeypatch):
    proof = check_architecture(tiny_model(), reload=True)
    assert proof.reloaded and proof.proved and "reloaded: cut to half, saved and loaded, it is the same" in str(proof)
    save = tr.BertForSequenceClassification.save_pretrained

    def spoilt(self, folder, **options):
        with torch.no_grad():
            self.classifier.weight += 1
        save(self, folder, **options)
        with torch.no_grad():
            self.classifier.weight -= 1

    monkeypatch.setattr(tr.BertForSequenceClassification, "save_pretrained", spoilt)
    proof = check_architecture(tiny_model(), reload=True)
    assert proof.reloaded is False and not proof.proved
    assert "its outputs are off by" in str(proof) and proof.to_dict()["reload_problem"] == proof.reload_problem
