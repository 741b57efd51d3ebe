"""Models whose `forward` is not like transformers' own: what it takes, and what it returns."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from tiny import TINY, tiny_batch, tiny_model, tiny_samples
from torch import nn
from transformers import (
    BertForMultipleChoice,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    ViTModel,
    ViTPreTrainedModel,
)
from tsv import write_sst2
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.commands.run import run
from optimum_optin.comparing.losses import CATEGORICAL, REAL
from optimum_optin.discovery.find import find_layers
from optimum_optin.evaluation.accuracy import evaluate_glue
from optimum_optin.inputs.tokens import token_masks, token_rows
from optimum_optin.passes.outputs import compared_output
from optimum_optin.running.forward import logits_of, run_model

FAST = OptinConfig(flops=0.5, probes=4)


class Head(BertPreTrainedModel):
    """A head of one's own on BERT's pooled output."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config)
        self.out = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def logits(self, input_ids, attention_mask):
        return self.out(self.bert(input_ids, attention_mask=attention_mask)[1])


class Explicit(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return {"logits": self.logits(input_ids, attention_mask)}


class IdsAlone(Head):
    def forward(self, input_ids):
        return self.logits(input_ids, None)


class Tuple(Head):
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        logits = self.logits(input_ids, attention_mask)
        return logits.new_zeros(()), logits


class WithHiddenStates(Head):
    def forward(self, input_ids=None, attention_mask=None):
        hidden, pooled = self.bert(input_ids, attention_mask=attention_mask)[:2]
        return None, hidden, self.out(pooled)


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor = None


class Dataclass(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return Answer(self.logits(input_ids, attention_mask))


class Named(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


class NamedTuples(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return Named(None, self.logits(input_ids, attention_mask))


class AnyObject(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return SimpleNamespace(logits=self.logits(input_ids, attention_mask))


class OtherName(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return {"scores": self.logits(input_ids, attention_mask), "hidden_states": None}


class ByPlace(Head):
    def forward(self, input_ids, attention_mask=None, /):
        return self.logits(input_ids, attention_mask)


class Keywords(Head):
    def forward(self, **inputs):
        return self.logits(inputs["input_ids"], inputs["attention_mask"])


class Strict(Head):
    """Passes what it does not know on to something that takes nothing."""

    def forward(self, input_ids=None, attention_mask=None, **others):
        assert not others
        return self.logits(input_ids, attention_mask)


class NeedsTypes(Head):
    def forward(self, input_ids, attention_mask, token_type_ids, position_ids):
        assert token_type_ids.shape == position_ids.shape == input_ids.shape
        return self.logits(input_ids, attention_mask)


HEADS = [
    Explicit,
    IdsAlone,
    Tuple,
    WithHiddenStates,
    Dataclass,
    NamedTuples,
    AnyObject,
    OtherName,
    ByPlace,
    Keywords,
    Strict,
    NeedsTypes,
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("texts", [False, True], ids=["tokenised", "texts"])
def test_a_head_of_ones_own(head, texts, tmp_path):
    model = tiny_model(model_class=head)
    pruner = OptinPruner(model, word_tokenizer() if texts else None)
    scores = pruner.score(TEXTS if texts else tiny_samples(), FAST)
    assert set(scores.terms) == {"trajectory", "output"}
    pruned = pruner.prune(scores=scores, save_dir=tmp_path)
    assert pruner.report.divergence["agreement"] is not None
    batch = tiny_batch(model)
    expected = pruned.logits(batch["input_ids"], None if head is IdsAlone else batch["attention_mask"])
    loaded = head.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(run_model(loaded, batch)), expected, atol=0, rtol=0)
    pruner.benchmark(repeats=1)


@pytest.mark.parametrize("head", HEADS)
def test_its_logits_are_what_is_compared(head):
    """As of transformers' own head of the same weights."""
    model = tiny_model(model_class=head)
    batch = tiny_batch(model)
    rows = {stack: token_rows(mask) for stack, mask in token_masks(model, batch).items()}
    output = compared_output(model, batch, rows)
    expected = model.logits(batch["input_ids"], None if head is IdsAlone else batch["attention_mask"])
    torch.testing.assert_close(output.values, expected)
    assert (output.kind, output.of_head) == (CATEGORICAL, True)


class PerToken(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return self.out(self.bert(input_ids, attention_mask=attention_mask)[0])


class OneNumber(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return self.logits(input_ids, attention_mask)[:, 0]


class Embeds(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return self.bert(input_ids, attention_mask=attention_mask)[1]


class Hidden(Head):
    def forward(self, input_ids=None, attention_mask=None):
        return (self.bert(input_ids, attention_mask=attention_mask)[0],)


def test_shapes_tell_what_a_tensor_is():
    compared = {}
    for head in (PerToken, OneNumber, Embeds, Hidden):
        model = tiny_model(model_class=head)
        batch = tiny_batch(model)
        rows = {stack: token_rows(mask) for stack, mask in token_masks(model, batch).items()}
        compared[head] = compared_output(model, batch, rows)
    valid = batch["attention_mask"].bool()
    with torch.no_grad():
        assert torch.equal(compared[PerToken].values, tiny_model(model_class=PerToken)(**batch)[valid])
    assert compared[PerToken].kind == CATEGORICAL
    assert compared[OneNumber].values.shape == (3, 1)
    assert compared[OneNumber].kind == REAL
    assert (compared[Embeds].kind, compared[Embeds].of_head) == (REAL, False)
    assert compared[Hidden] is None


class TwoHeads(Head):
    def forward(self, input_ids=None, attention_mask=None):
        logits = self.logits(input_ids, attention_mask)
        return {"intent_logits": logits, "slot_logits": logits[:, :2]}


def test_of_several_heads_none_is_guessed(monkeypatch):
    said = []
    monkeypatch.setattr("optimum_optin.running.forward.logger.warning_once", said.append)
    pruner = OptinPruner(tiny_model(model_class=TwoHeads))
    assert set(pruner.score(tiny_samples(), FAST).terms) == {"trajectory"}
    assert "several outputs (intent_logits, slot_logits), of which none is called 'logits'" in said[0]


class Pictures(ViTPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.vit = ViTModel(config)
        self.out = nn.Linear(config.hidden_size, 5)
        self.post_init()

    def forward(self, pixel_values):
        return self.out(self.vit(pixel_values)[0][:, 0])


def test_a_head_of_ones_own_on_images(tmp_path):
    model = tiny_model("vit", model_class=Pictures)
    pruner = OptinPruner(model)
    pruner.prune(tiny_samples(model=model), OptinConfig(flops=0.6, probes=4, merging="auto"), save_dir=tmp_path)
    batch = tiny_batch(model)
    assert torch.equal(Pictures.from_pretrained(tmp_path)(**batch), pruner.pruned_model(**batch))


def test_tuples_of_transformers_own_classes():
    model = tiny_model(return_dict=False)
    assert OptinPruner(model).score(tiny_samples(), FAST).terms["output"]
    assert model.config.return_dict is False


class OtherPlace(BertPreTrainedModel):
    """Its base model is not called as transformers calls it."""

    def __init__(self, config):
        super().__init__(config)
        self.backbone = BertModel(config)
        self.out = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        return self.out(self.backbone(input_ids, attention_mask=attention_mask)[1])


def test_a_base_model_of_any_name_is_found(tmp_path):
    model = tiny_model(model_class=OtherPlace)
    pruned = OptinPruner(model).prune(tiny_samples(), FAST, save_dir=tmp_path)
    assert find_layers(pruned)["layers.0"] == "backbone.encoder.layer.0"
    batch = tiny_batch(model)
    assert torch.equal(OtherPlace.from_pretrained(tmp_path)(**batch), pruned(**batch))


@pytest.mark.parametrize("head", [Explicit, Tuple, ByPlace])
def test_a_head_of_ones_own_is_evaluated(head, tmp_path):
    write_sst2(tmp_path, count=12)
    model = tiny_model(model_class=head, num_labels=2)
    plain = tiny_model(num_labels=2)
    plain.bert, plain.classifier = model.bert, model.out
    measured, expected = (
        evaluate_glue(each.eval(), word_tokenizer(), "sst2", data_dir=tmp_path)["metrics"] for each in (model, plain)
    )
    assert measured == expected


def test_one_without_logits_is_not_evaluated(tmp_path):
    write_sst2(tmp_path, count=12)
    with pytest.raises(ValueError, match="needs logits of shape .12, 2. of this batch, PerToken gives .12, "):
        evaluate_glue(tiny_model(model_class=PerToken, num_labels=2), word_tokenizer(), "sst2", data_dir=tmp_path)


@pytest.mark.parametrize("command", ["prune", "score"])
def test_the_commands_refuse_before_data_are_read(command, tmp_path, capsys):
    tiny_model(model_class=BertForMultipleChoice).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    missing = str(tmp_path / "nowhere.csv")
    code = run(command, [str(tmp_path / "model"), "--calibration", missing, "--output", str(tmp_path / "out")])
    assert code == 2
    assert "BertForMultipleChoice reads several sequences per sample" in capsys.readouterr().err


class Renamed(Head):
    def forward(self, ids=None, mask=None):
        return self.logits(ids, mask)


class NeedsMore(Head):
    def forward(self, input_ids, graph, attention_mask=None):
        return self.logits(input_ids, attention_mask)


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (Renamed, "Renamed.forward takes ids, mask, but not input_ids, which a 'bert' model reads: name its"),
        (NeedsMore, "NeedsMore.forward cannot be called without graph, of which we know nothing"),
        (BertForMultipleChoice, r"BertForMultipleChoice reads several sequences per sample.*ForSequenceClassification"),
    ],
)
def test_models_that_cannot_be_run_are_refused_before_data_are_read(model_class, message):
    def data():
        raise AssertionError("data were read")
        yield

    pruner = OptinPruner(tiny_model(model_class=model_class))
    for work in (pruner.prune, pruner.score):
        with pytest.raises(ValueError, match=message):
            work(data(), FAST)


def test_every_tiny_model_names_what_it_returns():
    for model_type, (_, _, config) in TINY.items():
        model = tiny_model(model_type)
        with torch.no_grad():
            expected, named = model(**tiny_batch(model)), run_model(model, tiny_batch(model))
        assert set(named) == set(expected), config


class NoGradient(BertForSequenceClassification):
    @torch.no_grad()
    def forward(self, input_ids=None, attention_mask=None):
        return super().forward(input_ids, attention_mask=attention_mask)


class Detached(BertForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None):
        return {"logits": super().forward(input_ids, attention_mask=attention_mask).logits.detach()}


class HalfDetached(BertForSequenceClassification):
    """What the first layer returns is cut off from what comes after."""

    def forward(self, input_ids=None, attention_mask=None):
        cut = self.bert.encoder.layer[0].register_forward_hook(lambda module, args, output: _detached(output))
        try:
            return {"logits": super().forward(input_ids, attention_mask=attention_mask).logits}
        finally:
            cut.remove()


def _detached(output):
    return output.detach() if isinstance(output, torch.Tensor) else (output[0].detach(), *output[1:])


class Shortened(BertForSequenceClassification):
    """The last layer runs in vain."""

    def forward(self, input_ids=None, attention_mask=None):
        kept = []
        note = self.bert.encoder.layer[-1].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
        try:
            self.bert(input_ids, attention_mask=attention_mask)
        finally:
            note.remove()
        return {"logits": self.classifier(kept[0][:, 0])}


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton"])
def test_a_last_layer_that_is_not_used_is_the_first_to_go(scorer):
    pruner = OptinPruner(tiny_model(model_class=Shortened))
    pruner.prune(tiny_samples(), OptinConfig(flops=0.5, probes=8, scorer=scorer, output_weight=10.0, search="ranked"))
    scores = pruner.score(tiny_samples(), OptinConfig(probes=8, scorer=scorer))
    assert scores.terms["output"]["layers.2.neurons"].max() < 1e-100
    assert scores.terms["output"]["layers.1.neurons"].max() > 1e-20
    kept = pruner.report.layers
    assert kept["layers.2"]["neurons"]["kept"] < kept["layers.1"]["neurons"]["kept"]


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton"])
@pytest.mark.parametrize("model_class", [NoGradient, Detached, HalfDetached])
def test_a_forward_without_gradients_is_named_as_such(model_class, scorer):
    pruner = OptinPruner(tiny_model(model_class=model_class))
    with pytest.raises(ValueError, match="has no gradient by all of its layers.*scorer='exact'"):
        pruner.prune(tiny_samples(), OptinConfig(flops=0.5, probes=4, scorer=scorer))


def test_the_exact_scorer_takes_a_forward_without_gradients():
    pruner = OptinPruner(tiny_model(model_class=NoGradient))
    pruner.prune(tiny_samples(4), OptinConfig(flops=0.5, scorer="exact", compensation="none"))
    assert 0.4 < pruner.report.flops_achieved <= 0.5
