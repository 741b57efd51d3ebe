"""What is saved of a pruned model is the model; what could not be is refused before any work."""

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny import output_of, tiny_batch, tiny_model, tiny_samples
from torch import nn
from torch.nn.utils import prune
from transformers import BertForMaskedLM, BertForSequenceClassification

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.commands.run import run
from optimum_optin.storage.integrity import _values, check_own, difference, reloaded

FAST = OptinConfig(flops=0.5, probes=4)


def _lora(model, **settings):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, **settings))


def _lora_on_the_head(model):
    _lora(model, target_modules=["classifier"])


def _head_to_save(model):
    peft = pytest.importorskip("peft")
    peft.get_peft_model(model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))


def _ia3_on_embeddings(model):
    peft = pytest.importorskip("peft")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["word_embeddings"]))


def _orthogonal(model):
    torch.nn.utils.parametrizations.orthogonal(model.bert.pooler.dense)


def _weight_norm(model):
    torch.nn.utils.parametrizations.weight_norm(model.classifier)


def _old_weight_norm(model):
    torch.nn.utils.weight_norm(model.classifier)


def _old_spectral_norm(model):
    torch.nn.utils.spectral_norm(model.bert.pooler.dense)


def _masked(model):
    prune.l1_unstructured(model.classifier, "weight", 0.5)


def _masked_embeddings(model):
    prune.l1_unstructured(model.bert.embeddings.word_embeddings, "weight", 0.5)


def _dynamically_quantized(model):
    model.classifier = torch.ao.quantization.quantize_dynamic(nn.Sequential(model.classifier), {nn.Linear})[0]


def _quanto(model):
    quanto = pytest.importorskip("optimum.quanto")
    quanto.quantize(model.bert.pooler, weights=quanto.qint8)
    quanto.freeze(model.bert.pooler)


def _float8(model):
    model.classifier.weight = nn.Parameter(model.classifier.weight.to(torch.float8_e4m3fn), requires_grad=False)


class Scaled(torch.Tensor):
    """As quantizers have them."""


def _subclass(model):
    model.classifier.weight = nn.Parameter(model.classifier.weight.detach().as_subclass(Scaled))


def _compiled_layer(model):
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0])


class LoraLinear(nn.Linear):
    """As loralib has it: a linear, and more."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.lora_A = nn.Parameter(torch.ones(1, linear.in_features))

    def forward(self, input):
        return super().forward(input) + (input @ self.lora_A.T)


def _own_linear(model):
    model.bert.encoder.layer[0].intermediate.dense = LoraLinear(model.bert.encoder.layer[0].intermediate.dense)


FOREIGN = {
    _lora_on_the_head: "the model has adapters .classifier.*all that would be saved: merge the adapters first",
    _head_to_save: "classifier is a peft.*ModulesToSaveWrapper, of an adapter: merge the adapters first",
    _ia3_on_embeddings: "the model has adapters .bert.embeddings.word_embeddings",
    _orthogonal: "the weight of bert.pooler.dense is computed from others .*remove_parametrizations",
    _weight_norm: "the weight of classifier is computed from others",
    _old_weight_norm: "the weight of classifier is computed from others .weight_g.*remove_weight_norm",
    _old_spectral_norm: "the weight of bert.pooler.dense is computed from others .weight_orig",
    _masked: "the weight of classifier is computed from others .weight_orig.*prune.remove",
    _masked_embeddings: "the weight of bert.embeddings.word_embeddings is computed from others",
    _dynamically_quantized: "classifier is a torch.ao.* quantized: prune the unquantized model",
    _quanto: "bert.pooler.dense is a optimum.quanto.*, quantized: prune the unquantized model",
    _float8: "classifier.weight is kept in torch.float8_e4m3fn",
    _subclass: "classifier.weight is a test_integrity.Scaled, not a plain tensor",
    _compiled_layer: "bert.encoder.layer.0 is a torch._dynamo.*, compiled: prune before torch.compile",
    _own_linear: "intermediate.dense is a test_integrity.LoraLinear, a linear with a forward of its own",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", FOREIGN)
def test_what_would_not_be_saved_is_refused_before_scoring(change, monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    model = tiny_model()
    change(model)
    pruner = OptinPruner(model)
    for work in (pruner.prune, pruner.score):
        with pytest.raises(ValueError, match=FOREIGN[change]):
            work(tiny_samples(), FAST)


def test_a_folder_with_an_adapter_is_refused_by_the_command(tmp_path, capsys):
    peft = pytest.importorskip("peft")
    tiny_model().save_pretrained(tmp_path / "dense")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "dense")
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "texts.txt").write_text("a\nb\n")
    arguments = [str(tmp_path / "adapter"), "--task", "text-classification"]
    code = run(
        "score", [*arguments, "--calibration", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "scores")]
    )
    assert code == 2
    assert "holds an adapter: merge it first" in capsys.readouterr().err
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "adapter")  # the base with it
    with pytest.raises(ValueError, match="query is a peft.*merge adapters first"):
        OptinPruner(loaded).score(tiny_samples(), FAST)


def test_merged_adapters_and_removed_masks_are_pruned(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "dense"], init_lora_weights=False)
    merged = peft.get_peft_model(model, settings).merge_and_unload()
    prune.l1_unstructured(merged.classifier, "weight", 0.5)
    prune.remove(merged.classifier, "weight")
    pruner = OptinPruner(merged)
    pruned = pruner.prune(tiny_samples(), FAST, save_dir=tmp_path)
    batch = tiny_batch(merged)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(output_of(loaded, batch), output_of(pruned, batch))


class Normed(BertForSequenceClassification):
    """Computes a weight by itself, and so does what is loaded."""

    def __init__(self, config):
        super().__init__(config)
        torch.nn.utils.parametrizations.weight_norm(self.classifier)


def test_what_the_class_computes_itself_is_its_own(tmp_path):
    pruned = OptinPruner(tiny_model(model_class=Normed)).prune(tiny_samples(), FAST, save_dir=tmp_path)
    batch = tiny_batch(pruned)
    assert torch.equal(output_of(Normed.from_pretrained(tmp_path), batch), output_of(pruned, batch))


def test_untied_weights_are_refused():
    model = tiny_model(model_class=BertForMaskedLM)
    decoder = model.cls.predictions.decoder
    decoder.weight = nn.Parameter(decoder.weight.detach() + 1)
    with pytest.raises(ValueError, match=r"decoder.weight.* differ, but are one weight by the config"):
        OptinPruner(model).prune(tiny_samples(), FAST)


def _other_head(model):
    model.classifier = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))


def _wider_head(model):
    model.classifier = nn.Linear(32, 5)


def _one_more(model):
    model.extra = nn.Linear(3, 3)


def _shared(model):
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight


def _other_activation(model):
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn = nn.ReLU()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_activation, "1.intermediate.intermediate_act_fn is a ReLU, which computes something else"),
        (_other_head, "classifier.0.weight is no weight of a BertForSequenceClassification with this config"),
        (_wider_head, r"classifier.weight has the shape \(5, 32\), by the config \(3, 32\)"),
        (_one_more, "extra.weight is no weight of a Bert"),
    ],
)
def test_modules_that_the_class_does_not_make(change, message, tmp_path, monkeypatch):
    """They cannot be saved, which is said before any work; in memory, the model is pruned all the same."""
    said = []
    monkeypatch.setattr("optimum_optin.pruner.logger.warning", said.append)
    model = tiny_model()
    change(model)
    pruner = OptinPruner(model)
    pruned = pruner.prune(tiny_samples(), FAST)
    assert output_of(pruned, tiny_batch(model)).isfinite().all()
    assert "can be used, but not saved and loaded again" in said[0]
    for work in (lambda: pruner.save_pretrained(tmp_path / "saved"), lambda: pruner.benchmark(repeats=1)):
        with pytest.raises(ValueError, match=message):
            work()
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        pruner.prune(tiny_samples(), FAST, save_dir=tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_modules_that_compute_the_same_are_the_same():
    model = tiny_model()
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.GELU()
    model.dropout = nn.Identity()
    assert difference(model) is None


def test_weights_that_are_one_without_a_word_are_refused_before_scoring(tmp_path, monkeypatch):
    """transformers does not save them."""
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    model = tiny_model()
    _shared(model)
    with pytest.raises(
        ValueError, match="0.intermediate.dense.weight and .*1.intermediate.dense.weight are one weight"
    ):
        OptinPruner(model).prune(tiny_samples(), FAST, save_dir=tmp_path / "saved")


class TakesMore(BertForSequenceClassification):
    def __init__(self, config, classes):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, classes)


def test_a_class_that_takes_more_than_a_config(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("optimum_optin.storage.integrity.logger.warning", said.append)
    config = tiny_model().config
    model = TakesMore(copy.deepcopy(config), 5).eval()
    assert difference(model) is None
    pruned = OptinPruner(model).prune(tiny_samples(), FAST, save_dir=tmp_path)
    assert "takes more than a config" in said[0]
    loaded = TakesMore.from_pretrained(tmp_path, classes=5)
    batch = tiny_batch(model)
    assert torch.equal(output_of(loaded, batch), output_of(pruned, batch))


@pytest.mark.parametrize("name", ["roberta", "vit", "deit"])
def test_encoders_without_a_pooler_are_saved(name, tmp_path, monkeypatch):
    """Such as the base models of classifiers: a switch of their class, which no config notes, leaves the pooler out."""
    monkeypatch.setattr("optimum_optin.pruner.logger.warning", pytest.fail)
    model = tiny_model(name).base_model
    assert model.pooler is None
    pruner = OptinPruner(model)
    pruned = pruner.prune(tiny_samples(model=model), FAST, save_dir=tmp_path)
    assert reloaded(pruned, tmp_path).pooler is None, "made as it was"
    loaded = type(model).from_pretrained(tmp_path, add_pooling_layer=False)
    batch = tiny_batch(model)
    assert torch.equal(loaded(**batch).last_hidden_state, pruned(**batch).last_hidden_state)
    assert pruner.benchmark(repeats=1)


def test_a_save_that_is_not_the_model_is_none(tmp_path):
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(), FAST)
    pruner.pruned_model._keys_to_ignore_on_save = {"classifier.weight"}
    with pytest.raises(ValueError, match="what is saved is not the model: classifier.weight is another when loaded"):
        pruner.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_checking_draws_no_random_numbers():
    model = tiny_model()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert difference(model) is None
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_the_class_ties_are_one_in_either_order():
    model = tiny_model(model_class=BertForMaskedLM)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert difference(model) is None
    model.all_tied_weights_keys = {other: name for name, other in model.all_tied_weights_keys.items()}
    assert difference(model) is None


@pytest.mark.parametrize(
    ("dtype", "own"), [(torch.float16, True), (torch.bfloat16, True), (torch.float64, True), (torch.float8_e5m2, False)]
)
def test_weights_of_one_byte_are_refused(dtype, own):
    model = tiny_model()
    model.classifier.weight.data = model.classifier.weight.data.to(dtype)
    with (
        nullcontext()
        if own
        else pytest.raises(ValueError, match=r"classifier\.weight is kept in torch\.float8_e5m2: cast it")
    ):
        check_own(model)


def test_only_what_returns_numbers_like_its_own_is_compared_by_them():
    numbers = torch.linspace(-4, 4, 33).expand(2, -1)
    torch.testing.assert_close(_values(nn.GELU()), nn.functional.gelu(numbers))
    torch.testing.assert_close(_values(nn.Dropout(0.9)), numbers)
    for other in (nn.Flatten(0), nn.Linear(7, 33), nn.AdaptiveMaxPool1d(33, return_indices=True)):
        assert _values(other) is None
