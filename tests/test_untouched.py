"""What the user hands in, and what is global, is the same afterwards: on success, on errors, on Ctrl-C."""

import copy
import os
import random
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny import tiny_model, tiny_samples
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, ViTImageProcessor
from transformers.utils import logging
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, Scores

FAST = OptinConfig(flops=0.5, probes=8)
LONG = [" ".join(TEXTS)[: 40 * (number + 1)] for number in range(24)]


def state_of(*objects):
    """Everything that can be seen of the objects, and of what is global."""
    return {
        "objects": [_seen(each) for each in objects],
        "torch": [torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()],
        "inference": [torch.is_inference_mode_enabled(), torch.is_autocast_enabled(), torch.get_num_threads()],
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.allow_tf32],
        "random": [random.getstate(), repr(np.random.get_state())],
        "process": [os.getcwd(), dict(os.environ), list(sys.path)],
        "logging": [logging.get_verbosity()],
    }


def _seen(each):
    look = next((look for kind, look in LOOKS if isinstance(each, kind)), None)
    if look is not None:
        return look(each)
    return repr(vars(each)) if hasattr(each, "__dict__") else repr(each)


def _seen_model(model):
    config, generation = model.config, getattr(model, "generation_config", None)
    return {
        "weights": {name: (id(value), value.tolist()) for name, value in model.state_dict(keep_vars=True).items()},
        "gradients": {name: (value.requires_grad, value.grad) for name, value in model.named_parameters()},
        "modules": {name: _attributes(module) for name, module in model.named_modules()},
        "config": (id(config), copy.deepcopy(vars(config)), config._name_or_path, config.to_dict()),
        "generation": None if generation is None else generation.to_dict(),
        "class": list(vars(type(model))),
    }


def _seen_tokenizer(tokenizer):
    return tokenizer.backend_tokenizer.to_str(), {name: repr(value) for name, value in vars(tokenizer).items()}


def _seen_loader(loader):
    generators = (loader.generator, getattr(loader.sampler, "generator", None))
    return [generator.get_state().tolist() for generator in generators if generator is not None]


LOOKS = (
    (torch.nn.Module, _seen_model),
    (PreTrainedTokenizerFast, _seen_tokenizer),
    (DataLoader, _seen_loader),
    (Dataset, lambda data: (data.format, data.features, data.data.table.to_pydict())),
    (Image.Image, lambda image: (image.mode, image.size, image.tobytes(), dict(image.info))),
    ((list, tuple), lambda items: [_seen(each) for each in items]),
    (dict, lambda items: {name: _seen(each) for name, each in items.items()}),
    ((np.ndarray, torch.Tensor), lambda array: array.tolist()),
)


def _attributes(module):
    plain = {name: repr(value) for name, value in vars(module).items() if not name.startswith("_")}
    hooks = {name: len(value) for name, value in vars(module).items() if name.endswith("_hooks")}
    return plain, hooks, sorted(map(str, vars(module)))


@pytest.fixture
def sentiment(tmp_path):
    """GLUE's SST-2 as a file."""
    (tmp_path / "SST-2").mkdir()
    rows = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(LONG))
    (tmp_path / "SST-2/dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    return tmp_path


def padded_tokenizer():
    """As many are on the Hub: with a truncation and a padding of their own."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(32)
    tokenizer.backend_tokenizer.enable_padding(length=32)
    return tokenizer


@pytest.mark.parametrize("make", [word_tokenizer, padded_tokenizer], ids=["plain", "with settings of its own"])
def test_everything_is_as_it_was(make, sentiment, tmp_path):
    model, tokenizer = tiny_model(num_labels=2).train(), make()
    model.config.return_dict = False
    next(model.parameters()).requires_grad_(False)
    data = Dataset.from_dict({"text": LONG}).with_format("numpy")
    config = OptinConfig(flops=0.5, probes=8, max_length=8)
    before = state_of(model, tokenizer, data, config)
    pruner = OptinPruner(model, tokenizer, config)

    def unchanged(step):
        assert state_of(model, tokenizer, data, config) == before, step

    scores = pruner.score(data)
    unchanged("score")
    pruner.plan(scores)
    unchanged("plan")
    pruner.prune(data, save_dir=tmp_path / "one")
    unchanged("prune")
    pruner.prune(scores=scores, flops=0.3)
    unchanged("prune from scores")
    pruner.evaluate("sst2", data_dir=sentiment)
    unchanged("evaluate")
    pruner.benchmark(batch_size=2, repeats=2)
    unchanged("benchmark")
    pruner.save_pretrained(tmp_path / "two", remote_code=True)
    unchanged("save_pretrained")
    pruner.create_model_card("me/small")
    scores.save_pretrained(tmp_path / "scores")
    pruner.prune(data, scores=Scores.from_pretrained(tmp_path / "scores"))
    unchanged("prune from saved scores")
    saved = type(tokenizer).from_pretrained(tmp_path / "two")
    assert saved.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(saved.backend_tokenizer.encode(LONG[-1]).ids) == len(make().backend_tokenizer.encode(LONG[-1]).ids) > 8


def test_a_push_leaves_everything_as_it_was(hub):
    model, tokenizer = tiny_model(num_labels=2), word_tokenizer()
    pruner = OptinPruner(model, tokenizer, FAST)
    pruner.prune(LONG)
    before = state_of(model, tokenizer)
    pruner.push_to_hub("me/small")
    assert state_of(model, tokenizer) == before
    pruner.prune(LONG, flops=0.3)
    before = state_of(model, tokenizer)
    hub.fail("POST .*/commit/", status=500)
    with pytest.raises(OSError, match="500"):
        pruner.push_to_hub("me/small")
    assert state_of(model, tokenizer) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("count", [1, 12, 18])
def test_after_an_error_in_a_forward_pass(error, count, sentiment, monkeypatch):
    model, tokenizer = tiny_model(num_labels=2).train(), padded_tokenizer()
    pruner = OptinPruner(model, tokenizer, FAST)
    pruner.check()  # which would say that the model does not run
    before, calls = state_of(model, tokenizer), 0
    normal = torch.nn.functional.linear

    def failing(*arguments, **options):
        nonlocal calls
        calls += not arguments[0].is_meta  # what fails while units are counted is tried again with weights
        if calls == count:
            raise error("now")
        return normal(*arguments, **options)

    for work in (
        lambda: pruner.score(LONG),
        lambda: pruner.prune(LONG),
        lambda: pruner.evaluate("sst2", data_dir=sentiment),
    ):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "linear", failing)
            with pytest.raises(error, match="now"):
                work()
        assert state_of(model, tokenizer) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_of_the_tokenizer(error, monkeypatch):
    tokenizer = padded_tokenizer()
    pruner = OptinPruner(tiny_model(), tokenizer, FAST)
    before = state_of(tokenizer)

    def fail(*_, **__):
        raise error("now")

    monkeypatch.setattr(type(tokenizer), "_convert_encoding", fail)
    with pytest.raises(error, match="now"):
        pruner.score(LONG)
    assert state_of(tokenizer) == before


def test_a_tokenizer_in_a_wrapper_of_somebody(sentiment):
    class Wrapper:
        model_max_length = 64

        def __init__(self):
            self.inner, self.model_input_names = word_tokenizer(), ["input_ids"]

        def __call__(self, *texts, **options):
            return self.inner(*texts, **options)

    wrapper = Wrapper()
    pruner = OptinPruner(tiny_model(num_labels=2), wrapper, FAST)
    before = state_of(wrapper.inner)
    pruner.prune(LONG)
    assert state_of(wrapper.inner) == before
    pruner.evaluate("sst2", data_dir=sentiment)
    assert state_of(wrapper.inner) == before


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["global generator", "generator of its own"])
def test_a_loader_gives_next_what_it_would_have_given(shuffle, own):
    generator = torch.Generator().manual_seed(3) if own else None
    rows = [{"input_ids": torch.arange(5, 15) + number} for number in range(24)]
    loader = DataLoader(rows, batch_size=4, shuffle=shuffle, generator=generator)
    pruner = OptinPruner(tiny_model(), None, FAST)
    before = state_of(loader, rows)
    pruner.score(loader)
    assert state_of(loader, rows) == before
    pruner.prune(loader)
    assert state_of(loader, rows) == before


def test_samples_of_every_kind():
    texts = tiny_samples(24)
    arrays = [{"input_ids": np.array(sample["input_ids"]), "extra": [1]} for sample in texts]
    masked = [{**sample, "attention_mask": [1] * len(sample["input_ids"]), "labels": 1} for sample in texts]
    whole = dict(word_tokenizer()(LONG, padding=True, max_length=12, truncation=True))
    pairs = [(text, text) for text in LONG]
    pruner = OptinPruner(tiny_model(), word_tokenizer(), FAST)
    for data in (texts, arrays, masked, whole, pairs, LONG, [{"text": text, "label": 0} for text in LONG]):
        before = state_of(data)
        pruner.score(data)
        assert state_of(data) == before


def test_images_and_their_processors():
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 24, 3), dtype=np.uint8)
    images = [Image.fromarray(each) for each in pixels]
    dataset = Dataset.from_dict({"image": images})
    model = tiny_model("vit")
    for data in (images, list(pixels), dataset, tiny_samples(16, model=model)):
        before = state_of(model, processor, data)
        OptinPruner(model, processor, FAST).prune(data)
        assert state_of(model, processor, data) == before


def test_a_processor_of_texts_and_images(tmp_path):
    from transformers import CLIPProcessor

    processor = CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}), padded_tokenizer()
    )
    model = tiny_model("clip")
    images = [Image.fromarray(np.full((20, 20, 3), number, np.uint8)) for number in range(16)]
    data = list(zip(images, LONG, strict=False))
    before = state_of(model, processor.tokenizer, processor.image_processor, images)
    pruner = OptinPruner(model, processor, FAST)
    pruner.prune(data, save_dir=tmp_path)
    pruner.save_pretrained(tmp_path)
    assert state_of(model, processor.tokenizer, processor.image_processor, images) == before
