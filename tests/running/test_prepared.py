"""Models that others prepared or wrapped: what is pruned is the model itself."""

import functools
import gc
import types
import weakref

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.state import AcceleratorState
from decoders import generator
from memory_taken import memory_taken
from tiny import output_of, tiny_batch, tiny_model, tiny_samples
from torch import nn
from transformers import Trainer, TrainingArguments, pipeline
from words import word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.running.freezing import frozen
from optimum_optin.running.prepared import copy_of, set_apart

FAST = OptinConfig(flops=0.5, probes=4)


@pytest.fixture(autouse=True)
def _no_state():
    """What one test says of precision, the next may say otherwise."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def _accelerate(model):
    Accelerator(mixed_precision="bf16", cpu=True).prepare(model)


def _accelerate_twice(model):
    _accelerate(model)
    _accelerate(model)


def _accelerate_and_a_hook(model):
    add_hook_to_module(model, ModelHook())
    _accelerate(model)


def _unwrapped(model):
    _accelerate(model)
    Accelerator(cpu=True).unwrap_model(model, keep_fp32_wrapper=False)


def _compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")


def _compiled_layer_forward(model):
    layer = model.bert.encoder.layer[0]
    layer.forward = torch.compile(layer.forward, backend="eager")


def _compiled_in_place(model):
    model.compile(backend="eager")
    model(**tiny_batch(model))


def _bound(model):
    model.forward = types.MethodType(type(model).forward, model)


def _spread(model):
    """What device_map="auto" makes of a model over several devices; here they are all the CPU."""
    devices = {name: "cpu" for name, module in model.named_modules() if not [*module.children()]}
    dispatch_model(model, devices, main_device="cpu", force_hooks=True)


PREPARED = [
    _accelerate,
    _accelerate_twice,
    _accelerate_and_a_hook,
    _unwrapped,
    _compiled_forward,
    _compiled_layer_forward,
    _compiled_in_place,
    _bound,
    _spread,
]


@pytest.mark.parametrize("prepare", PREPARED)
def test_a_prepared_model_gives_what_the_plain_one_gives(prepare, tmp_path):
    torch._dynamo.reset()
    plain = OptinPruner(tiny_model())
    expected = plain.prune(tiny_samples(), FAST)
    model = tiny_model()
    batch = tiny_batch(model)
    prepare(model)
    before = [(path, dict(vars(module))) for path, module in model.named_modules()]
    output = output_of(model, batch)
    pruner = OptinPruner(model)
    pruned = pruner.prune(tiny_samples(), FAST, save_dir=tmp_path)
    assert pruner.report.macs_pruned == plain.report.macs_pruned
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(output_of(pruned, batch), output_of(loaded, batch))
    assert torch.equal(output_of(pruned, batch), output_of(expected, batch))
    # What the user handed in is the same afterwards.
    for path, attributes in before:
        now = vars(model.get_submodule(path))
        assert all(now[name] is value for name, value in attributes.items()), path
    assert torch.equal(output_of(model, batch), output)


@pytest.mark.parametrize("prepare", [_accelerate_and_a_hook, _bound, _spread])
def test_a_copy_has_nothing_of_the_model_that_it_was_made_from(prepare):
    """Or what moves the copy would move the model, and what runs the copy would run that."""
    model = tiny_model()
    prepare(model)
    to = model.to
    copied = copy_of(model)
    assert copied.to(torch.float64) is copied and copied.dtype == torch.float64
    assert model.to == to and model.dtype == torch.float32
    gone = weakref.ref(model)
    del model, to
    gc.collect()
    assert gone() is None


def test_measured_is_the_model_itself():
    model = tiny_model()
    batch = tiny_batch(model)
    expected = output_of(model, batch)
    _accelerate(model)
    assert not torch.equal(output_of(model, batch), expected)
    with frozen(model):
        assert torch.equal(output_of(model, batch), expected)
    assert not torch.equal(output_of(model, batch), expected)


def _closure(model):
    forward = model.forward
    model.forward = lambda **inputs: forward(output_attentions=True, **inputs)


def _partial(model):
    model.forward = functools.partial(model.forward, output_attentions=True)


def _method(model):
    def forward(self, hidden_states, *args, **kwargs):
        return type(self).forward(self, hidden_states * 2, *args, **kwargs)

    layer = model.bert.encoder.layer[1]
    layer.forward = types.MethodType(forward, layer)


def _of_another(model):
    layers = model.bert.encoder.layer
    layers[1].forward = layers[0].forward


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (_closure, "BertForSequenceClassification"),
        (_partial, "BertForSequenceClassification"),
        (_method, r"BertForSequenceClassification.bert.encoder.layer.1"),
        (_of_another, r"BertForSequenceClassification.bert.encoder.layer.1"),
    ],
)
def test_a_forward_of_somebody_elses_is_refused_before_scoring(change, where, monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    model = tiny_model()
    change(model)
    pruner = OptinPruner(model)
    for work in (pruner.prune, pruner.score):
        with pytest.raises(
            ValueError, match=f"the forward of {where} was replaced on the object, by .*del module.forw"
        ):
            work(tiny_samples(), FAST)


def _peft(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=4))


def _sentence_transformer(model):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = model.name_or_path
    return sentence_transformers.SentenceTransformer(folder, device="cpu")


def _cross_encoder(model):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.CrossEncoder(model.name_or_path, device="cpu")


def _trainer(model):
    return Trainer(model, TrainingArguments(model.name_or_path, report_to=[], use_cpu=True))


def _traced(model):
    inputs = tuple(tiny_batch(model).values())
    model.config.return_dict = False
    return torch.jit.trace(model, inputs)


class Holder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder = model


WRAPPED = {
    "DataParallel": (nn.DataParallel, "give its .module", lambda wrapped: wrapped.module),
    "OptimizedModule": (torch.compile, "before torch.compile: give its ._orig_mod", lambda wrapped: wrapped._orig_mod),
    "PeftModelFor": (_peft, "give its .merge_and_unload()", lambda wrapped: wrapped.merge_and_unload()),
    "SentenceTransformer": (_sentence_transformer, "give model[0].auto_model", lambda wrapped: wrapped[0].auto_model),
    "CrossEncoder": (_cross_encoder, "give its .model", lambda wrapped: wrapped.model),
    "Pipeline": (
        lambda model: pipeline("text-classification", model=model, tokenizer=word_tokenizer(), device="cpu"),
        "give its .model, and its .tokenizer",
        lambda wrapped: wrapped.model,
    ),
    "Trainer": (_trainer, "give its .model", lambda wrapped: wrapped.model),
    "Module": (_traced, "give the model that it was traced", None),
    "Holder": (Holder, "give the one inside, .encoder", lambda wrapped: wrapped.encoder),
    "type": (type, "give an object of that class, e.g. BertForSeq", None),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrapper_is_refused_with_the_way_to_the_model_in_it(kind, tmp_path):
    wrap, remedy, unwrap = WRAPPED[kind]
    model = tiny_model()
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path)
    wrapped = wrap(model)
    for make in (OptinPruner, OptinPruner.from_pretrained):
        with pytest.raises(TypeError, match="model must be a transformers model, got ") as error:
            make(wrapped)
        assert remedy in str(error.value)
    if unwrap:  # what the message says works
        OptinPruner(unwrap(wrapped)).score(tiny_samples(8), FAST)


@pytest.mark.parametrize(
    ("package", "name", "remedy"),
    [
        ("torch.nn.parallel.distributed", "DistributedDataParallel", "give its .module"),
        ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel", "save the whole model"),
        ("deepspeed.runtime.engine", "DeepSpeedEngine", "give its .module"),
        ("optimum.modeling_base", "OptimizedModel", "prune the PyTorch model that it was exported from"),
    ],
)
def test_wrappers_that_are_not_here_are_known_by_name(package, name, remedy):
    base = type(name, (), {"__module__": package})
    wrapped = type("Derived", (base,), {})()
    with pytest.raises(TypeError, match=f"got Derived: .*{remedy}"):
        OptinPruner(wrapped)


@pytest.mark.parametrize("kind", ["bert", "t5 encoder", "llama"])
def test_a_pruned_model_shares_no_weight_with_the_dense_one(kind):
    """While it is refitted, it shares tables of embeddings, as these may be half of a language model; never after."""
    model = {"llama": lambda: generator("llama"), "t5 encoder": lambda: generator("t5").encoder}.get(kind, tiny_model)()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generated = torch.Generator().manual_seed(0)
    samples = [{"input_ids": torch.randint(1, 32, (9,), generator=generated).tolist()} for _ in range(16)]
    pruned = OptinPruner(model).prune(samples, FAST)
    kept = {parameter.data_ptr() for parameter in model.parameters()}
    assert not kept & {parameter.data_ptr() for parameter in pruned.parameters()}
    assert (len({id(each) for each in pruned.parameters()})) == len(dict(pruned.named_parameters()))
    if pruned.get_output_embeddings() is not None and model.get_output_embeddings() is not None:
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert (pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight) == tied
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_copy_that_is_not_apart_holds_the_weights_of_the_model_until_it_is_set_apart():
    model = tiny_model()
    copied = copy_of(model, apart=False)

    def shared():
        return {name for name, each in copied.named_parameters() if each is model.get_parameter(name)}

    assert shared() == {name for name, _ in model.named_parameters()}
    set_apart(copied, model, tables=False)
    tables = {name for name, _ in model.named_parameters() if "embeddings.weight" in name}
    assert tables and shared() == tables
    set_apart(copied, model)
    assert not shared()
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in model.state_dict().items())


def test_tied_weights_are_copied_once():
    """A table of embeddings is a large part of a small language model: memory has no room for two more of it."""
    rows, columns = 40_000, 256
    model = nn.ModuleDict({"table": nn.Embedding(rows, columns), "head": nn.Linear(columns, rows, bias=False)})
    model["head"].weight = model["table"].weight
    copies = [copy_of(model, apart=False) for _ in range(3)]
    assert memory_taken(lambda: set_apart(copies.pop(), model)) < 1.5 * model["table"].weight.nbytes
