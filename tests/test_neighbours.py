"""A pruned model among its neighbours: what people run a model with next takes it like any other.

Every model here was saved and reloaded; its first layer lost some heads, its second all heads, its third all neurons.
Tests of packages that are not installed are skipped: `pip install -e '.[neighbours]'` runs them.
"""

import copy
import shutil
import sysconfig
from pathlib import Path

import evaluate
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tiny import tiny_batch, tiny_model, tiny_samples
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    pipeline,
)
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.discovery.find import find_groups

# Neighbours warn of each other's and their own deprecations, and of weights without elements.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

# model type -> linears for LoRA
TYPES = {
    "bert": ["query", "value", "dense"],
    "distilbert": ["q_lin", "v_lin", "out_lin"],
    "modernbert": ["Wqkv", "Wo"],
    "mpnet": ["q", "v", "dense"],
}


@pytest.fixture(scope="module", params=TYPES)
def folder(request, tmp_path_factory):
    """A pruned classifier and its tokenizer on disk."""
    return pruned_folder(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The same of BERT alone, where the neighbour does not look at the architecture."""
    return pruned_folder("bert", tmp_path_factory.mktemp("bert"))


def pruned_folder(model_type, folder):
    model = tiny_model(model_type)
    empty = ("layers.1.heads", "layers.2.neurons")
    with torch.no_grad():  # units that do nothing are pruned first
        for group in find_groups(model):
            model.get_submodule(group.consumer).weight.mul_(1e-6 if group.key in empty else 1)
    pruner = OptinPruner(model, word_tokenizer())
    pruner.prune(tiny_samples(), OptinConfig(flops=0.4, probes=4, min_heads=0, compensation="none"), save_dir=folder)
    layers = pruner.report.layers
    assert layers["layers.1"]["heads"]["kept"] == layers["layers.2"]["neurons"]["kept"] == 0
    assert 0 < layers["layers.0"]["heads"]["kept"] < 4
    return folder


def load(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder)


@torch.no_grad()
def logits_of(model, batch):
    return model(**batch).logits


def test_pipelines(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(TEXTS[0], return_tensors="pt")
    expected = logits_of(load(folder), encoded).softmax(-1)[0]
    answers = pipeline("text-classification", model=str(folder), device="cpu")(TEXTS[:3], batch_size=3)
    assert answers[0]["score"] == pytest.approx(float(expected.max()), abs=1e-6)
    assert answers[0]["label"] == f"LABEL_{int(expected.argmax())}"
    features = pipeline("feature-extraction", model=str(folder), device="cpu", return_tensors=True)(TEXTS[0])
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**encoded).last_hidden_state
    torch.testing.assert_close(features, hidden, atol=1e-6, rtol=1e-6)


def test_trainer_fine_tunes_it(folder, tmp_path):
    model = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = Dataset.from_dict({**tokenizer(TEXTS), "label": ["cat dog bird".split().index(t.split()[2]) for t in TEXTS]})
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=40, save_steps=40, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * before
    batch = tiny_batch(model)
    checkpoint = load(tmp_path / "run" / "checkpoint-40")
    torch.testing.assert_close(logits_of(checkpoint, batch), logits_of(model.eval(), batch), atol=0, rtol=0)


def test_lora(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = load(folder)
    batch = tiny_batch(model)
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=TYPES[model.config.model_type], r=4)
    adapted = peft.get_peft_model(model, settings)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # in the first step, only the half of LoRA that starts at zero moves
        adapted(**batch, labels=torch.arange(3)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = logits_of(adapted.eval(), batch)
    assert (expected - logits_of(load(folder), batch)).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")

    reloaded = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(reloaded, batch), expected, atol=0, rtol=0)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, batch), expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(load(tmp_path / "merged"), batch), expected, atol=1e-5, rtol=1e-5)


def test_torch_compile_captures_one_graph(folder):
    model = load(folder)
    batch = tiny_batch(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, batch), logits_of(model, batch), atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(
    not shutil.which("g++") or not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="no C++ compiler"
)
def test_torch_compile_with_its_own_compiler(tmp_path_factory):
    model = load(pruned_folder("mpnet", tmp_path_factory.mktemp("compiled")))  # the one with a hook
    batch = tiny_batch(model)
    torch._dynamo.reset()
    torch.testing.assert_close(logits_of(torch.compile(model), batch), logits_of(model, batch), atol=1e-5, rtol=1e-5)


def test_torch_export(folder, tmp_path):
    model = load(folder)
    batch = tiny_batch(model)
    with torch.no_grad():  # else PyTorch cannot save a ModernBERT without sliding attention: a part has no user
        program = torch.export.export(model, (), kwargs=batch)
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(logits_of(exported, batch), logits_of(model, batch), atol=1e-5, rtol=1e-5)


def test_onnx(folder, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = load(folder)
    batch = tiny_batch(model)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        kwargs=batch,
        f=path,
        input_names=list(batch),
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(batch, sizes),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for other in (batch, tiny_batch(model, seed=1, samples=5, tokens=19)):
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in other.items()})
        torch.testing.assert_close(torch.from_numpy(logits), logits_of(model, other), atol=1e-5, rtol=1e-4)
    check_onnx_int8(model, path, tiny_batch(model, seed=2, samples=7))


def check_onnx_int8(model, path, batch):
    """No tensor without elements in an exported graph; ONNX Runtime's dynamic int8 of it gives the same labels."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = onnx.load(path).graph
    assert not [tensor.name for tensor in graph.initializer if 0 in tensor.dims]
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    assert not [
        name for name, dims in shapes.items() if any(d.HasField("dim_value") and d.dim_value == 0 for d in dims)
    ]
    quantization = pytest.importorskip("onnxruntime.quantization")
    # In 7 bits: sums of products of 8 bits saturate on CPUs without VNNI, and are off by up to 40 % for MPNet.
    quantization.quantize_dynamic(path, path.with_suffix(".int8.onnx"), reduce_range=True)
    session = onnxruntime.InferenceSession(path.with_suffix(".int8.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
    expected = logits_of(model, batch)
    same = int((torch.from_numpy(logits).argmax(-1) == expected.argmax(-1)).sum())
    assert same >= len(expected) - 1  # one may be a tie
    assert (torch.from_numpy(logits) - expected).abs().max() < 0.1 * expected.abs().max()


def dynamic_int8(model):
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def quanto_int8(model):
    quanto = pytest.importorskip("optimum.quanto")
    empty = [name for name, module in model.named_modules() if getattr(module, "in_features", None) == 0]
    quanto.quantize(model, weights=quanto.qint8, exclude=empty)  # it fails on a weight without elements
    quanto.freeze(model)
    return model


def torchao_int8(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


@pytest.mark.parametrize("quantize", [dynamic_int8, quanto_int8, torchao_int8])
def test_quantization(folder, quantize):
    model = load(folder)
    batch = tiny_batch(model)
    quantized = quantize(copy.deepcopy(model))
    expected = logits_of(model, batch)
    distance = (logits_of(quantized, batch) - expected).abs().max()
    assert 0 < distance < 0.1 * expected.abs().max()


def test_sentence_transformers(bert, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    embed = sentence_transformers.SentenceTransformer(str(bert), device="cpu")  # adds mean pooling
    embeddings = embed.encode(TEXTS[:4], convert_to_tensor=True)
    encoded = AutoTokenizer.from_pretrained(bert)(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(bert)(**encoded).last_hidden_state
    weights = encoded["attention_mask"][..., None].float()
    expected = (hidden * weights).sum(1) / weights.sum(1)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    embed.save_pretrained(str(tmp_path))
    again = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    torch.testing.assert_close(again.encode(TEXTS[:4], convert_to_tensor=True), embeddings, atol=1e-6, rtol=1e-6)


IMAGE_TYPES = ["vit", "beit with a shared bias", "dinov2 with SwiGLU", "swin", "swinv2", "clip, a classifier of images"]


@pytest.fixture(scope="module", params=IMAGE_TYPES)
def images(request, tmp_path_factory):
    """A pruned classifier of images and its processor on disk."""
    pytest.importorskip("PIL")
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp("images")
    (empty,) = (group.key for group in find_groups(model) if group.key.endswith(".1.heads"))
    with torch.no_grad():  # units that do nothing are pruned first
        for group in find_groups(model):
            model.get_submodule(group.consumer).weight.mul_(1e-6 if group.key == empty else 1)
    pruner = OptinPruner(model, ViTImageProcessorPil(size={"height": 16, "width": 16}))
    config = OptinConfig(flops=0.5, probes=4, min_heads=0)
    pruner.prune(tiny_samples(model=model), config, save_dir=folder)
    assert pruner.report.layers[empty.removesuffix(".heads")]["heads"]["kept"] == 0
    return folder


def load_images(folder):
    return AutoModelForImageClassification.from_pretrained(folder)


def test_image_pipeline(images):
    from PIL import Image

    picture = Image.new("L", (20, 24), 99)
    (pixels,) = AutoImageProcessor.from_pretrained(images)(picture.convert("RGB"))["pixel_values"]
    expected = logits_of(load_images(images), {"pixel_values": torch.as_tensor(pixels)[None]}).softmax(-1)
    answers = pipeline("image-classification", model=str(images), device="cpu")(picture)
    assert answers[0]["score"] == pytest.approx(float(expected.max()), abs=1e-6)


def test_images_torch_compile_and_export(images, tmp_path):
    model = load_images(images)
    batch = tiny_batch(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits_of(compiled, batch), logits_of(model, batch), atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=batch)
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(logits_of(exported, batch), logits_of(model, batch), atol=1e-5, rtol=1e-5)


def test_images_onnx(images, tmp_path):
    model, path = export_images(images, tmp_path)
    check_onnx_int8(model, path, tiny_batch(model, seed=2, samples=7))


def export_images(images, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = load_images(images)
    if model.config.model_type in ("beit", "swin"):
        # PyTorch 2.13's exporter cannot take apart its own attention with a position bias, of a dense model neither.
        model.set_attn_implementation("eager")
    batch = tiny_batch(model)
    torch.onnx.export(
        model,
        kwargs=batch,
        f=tmp_path / "model.onnx",
        input_names=["pixel_values"],
        output_names=["logits"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for other in (batch, tiny_batch(model, seed=1, samples=5)):
        (logits,) = session.run(["logits"], {"pixel_values": other["pixel_values"].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), logits_of(model, other), atol=1e-5, rtol=1e-4)
    return model, tmp_path / "model.onnx"


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A pruned classifier of images that merges tokens, on disk."""
    model, folder = tiny_model("vit"), tmp_path_factory.mktemp("merging")
    config = OptinConfig(flops=0.5, merging=[4, 3, 0], probes=4, compensation="none")
    OptinPruner(model).prune(tiny_samples(model=model), config, save_dir=folder)
    return folder


def test_merged_tokens_in_onnx(merging, tmp_path):
    export_images(merging, tmp_path)


def test_merged_tokens_are_quantized_but_for_the_keys(merging):
    quanto = pytest.importorskip("optimum.quanto")
    model = load_images(merging)
    batch = tiny_batch(model, samples=16)
    expected = logits_of(model, batch)
    quanto.quantize(model, weights=quanto.qint8, exclude="*k_proj")  # whose place would lose its hook
    quanto.freeze(model)
    distance = (logits_of(model, batch) - expected).abs().mean()  # of single samples, near ties may fall otherwise
    assert 0 < distance < 0.02 * expected.abs().max()


def test_a_new_head_for_another_data_set(images):
    model = AutoModelForImageClassification.from_pretrained(images, num_labels=7, ignore_mismatched_sizes=True)
    batch = tiny_batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch, labels=torch.tensor([0, 3, 6])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


class Accuracy(evaluate.Metric):
    """Share of right answers; `evaluate.load("accuracy")` asks the Hub."""

    def _info(self):
        features = Features({"predictions": Value("int32"), "references": Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(map(int.__eq__, predictions, references)) / len(references)}


def test_evaluator(bert):
    model, tokenizer = load(bert), AutoTokenizer.from_pretrained(bert)
    predicted = logits_of(model, tokenizer(TEXTS, padding=True, return_tensors="pt")).argmax(-1).tolist()
    labels = [*predicted[:18], *((label + 1) % 3 for label in predicted[18:])]  # a quarter of them wrong
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(model.config.id2label.values()))})
    result = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=str(bert),
        data=Dataset.from_dict({"text": TEXTS, "label": labels}, features=features),
        metric=Accuracy(),
        label_mapping=model.config.label2id,
    )
    assert result["accuracy"] == 0.75
