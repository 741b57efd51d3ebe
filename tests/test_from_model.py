"""The pruner on plain modules: every way through it, what it leaves as it was, and bad input."""

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tr
from tiny import TEXT as SHAPES
from tiny import tiny_model
from torch import nn
from toys import Block, Bottleneck, Bottlenecks, Pictures, Residual, TorchEncoder, Transformer, perturbed

from optimum_optin import OptinConfig, OptinPruner, Scores, load_pruned
from optimum_optin.inputs import modalities
from optimum_optin.models.examples import example_of
from optimum_optin.running.prepared import copy_of
from optimum_optin.storage.structure import Kept

CONFIG = OptinConfig(flops=0.6, probes=8, min_heads=2)
DATA = torch.randint(0, 50, (24, 9), generator=torch.Generator().manual_seed(1))


class Pair(nn.Module):
    """Reads two sequences, returns a dict, and takes a mask that need not be given."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 32), nn.Linear(4, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, ids, places, mask=None):
        x = self.embed(ids) + self.place(places)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.mean(1)), "features": x, "loss": None}


def places(samples):
    return torch.randn(samples, 9, 4, generator=torch.Generator().manual_seed(2))


def seen(module):
    """All of a module that a pass might change."""
    state = {name: each.clone() for name, each in module.state_dict().items()}
    return state, [each.training for each in module.modules()], [each.requires_grad for each in module.parameters()]


def same(one, other):
    return one[1:] == other[1:] and all(torch.equal(each, other[0][name]) for name, each in one[0].items())


@pytest.mark.parametrize("kind", [Transformer, TorchEncoder])
def test_a_module_goes_every_way_that_a_model_of_transformers_goes(kind, tmp_path):
    module = perturbed(kind())
    before = seen(module)
    pruner = OptinPruner.from_model(module, DATA[:2], config=CONFIG)
    pruner.check()
    scores = pruner.score(DATA)
    scores.save_pretrained(tmp_path / "scores")
    loaded = Scores.from_pretrained(tmp_path / "scores")
    plan = pruner.plan(loaded, flops=0.7)
    assert 0.55 < plan.flops_achieved <= 0.7
    pruned = pruner.prune(DATA, scores=scores)
    assert type(pruned) is kind and same(seen(module), before)
    report = pruner.report
    assert 0.5 < report.flops_achieved <= 0.6 and report.macs_pruned < report.macs_dense
    assert report.tokens == 9 and report.divergence["agreement"] > 0.5
    assert report.params_pruned == sum(each.numel() for each in pruned.parameters())
    figures = pruner.benchmark(batch_size=3, repeats=1)
    assert (figures["tokens"], figures["batch_size"]) == (9, 3)
    pruner.save_pretrained(tmp_path / "pruned")
    with torch.no_grad():
        assert torch.equal(load_pruned(kind, tmp_path / "pruned")(DATA), pruned(DATA))


def test_what_is_counted_is_what_is_measured():
    pruner = OptinPruner.from_model(perturbed(Transformer()), DATA[:1], config=CONFIG)
    pruner.prune(DATA)
    layers = pruner.report.layers.values()
    # By hand: of a head, three projections to 8 channels and one back, the products of 9 by 9; of a neuron, two.
    head, neuron = 4 * 9 * 32 * 8 + 2 * 9 * 9 * 8, 2 * 9 * 32
    macs = sum(each["heads"]["kept"] * head + each["neurons"]["kept"] * neuron for each in layers)
    assert pruner.report.macs_pruned == macs + 32 * 5


@pytest.mark.parametrize("scorer", ["exact", "gauss_newton", "surgeon"])
def test_scorers_agree_with_removing_units(scorer):
    module = perturbed(Transformer())
    with torch.no_grad():
        module.blocks[0].down.weight[:, 7] = 0  # a neuron that does nothing
    pruner = OptinPruner.from_model(module, DATA[:1], config=OptinConfig(scorer=scorer, probes=16))
    scores = pruner.score(DATA).combine()
    assert int(scores["layers.0.neurons"].argmin()) == 7


def test_several_inputs_and_outputs_by_name():
    module = perturbed(Pair())
    for example in ((DATA[:1], places(1)), {"places": places(1), "ids": DATA[:1]}):
        pruner = OptinPruner.from_model(module, example, config=CONFIG)
        assert list(example_of(module)) == ["ids", "places"]
        samples = list(zip(DATA, places(24), range(24), strict=True))  # with a label each
        pruned = pruner.prune(samples)
        assert pruner.report.divergence["agreement"] is not None, "the dict's logits are compared"
        assert pruned(DATA, places(24))["logits"].shape == (24, 5)


class Loose(Transformer):
    """Names no input."""

    def forward(self, **inputs):
        return super().forward(inputs["ids"]) * inputs["weights"]


def test_inputs_without_names_of_their_own_come_by_those_of_the_example(tmp_path):
    both = {"ids": DATA, "weights": torch.rand(24, 1)}
    pruner = OptinPruner.from_model(perturbed(Loose()), {name: each[:1] for name, each in both.items()}, config=CONFIG)
    pruned = pruner.prune([{name: each[row] for name, each in both.items()} for row in range(24)], save_dir=tmp_path)
    with torch.no_grad():
        assert torch.equal(load_pruned(Loose, tmp_path)(**both), pruned(**both))
    assert set(pruner.report.layers) == {"layers.0", "layers.1"}


def test_a_known_structure_is_cut_without_scores(tmp_path):
    pruner = OptinPruner.from_model(perturbed(Transformer()), DATA[:1], config=CONFIG)
    copied = copy_of(pruner.model)
    OptinPruner.convert_model(copied, {"layers.1.neurons": Kept(48, (1, 2, 40))})
    assert copied.blocks[1].up.out_features == 3 and copied.blocks[0].up.out_features == 48
    again = OptinPruner.from_model(copied, DATA[:1], config=CONFIG)
    again.prune(DATA, save_dir=tmp_path)
    assert again.report.layers["layers.1"]["neurons"]["units"] == 48


def test_the_shape_of_a_sample_counts_and_not_the_number_in_the_example():
    module = perturbed(Transformer())
    reports = []
    for count in (1, 5):
        pruner = OptinPruner.from_model(copy.deepcopy(module), DATA[:count], config=CONFIG)
        pruner.prune(DATA)
        reports.append((pruner.report.macs_dense, pruner.report.layers))
    assert reports[0] == reports[1]


# Convolutions


@pytest.mark.parametrize("compensation", ["ridge", "none"])
@pytest.mark.parametrize("kind", [Pictures, Residual])
def test_convolutions_go_the_same_way(kind, compensation, tmp_path):
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    labelled = list(zip(images, range(32), strict=True))
    config = OptinConfig(flops=0.6, probes=8, compensation=compensation)
    module = perturbed(kind())
    before = seen(module)
    pruner = OptinPruner.from_model(module, images[:2], config=config)
    pruned = pruner.prune(labelled, save_dir=tmp_path)
    report = pruner.report
    assert same(seen(module), before)
    assert 0.4 < report.flops_achieved <= 0.6 and report.macs_pruned < report.macs_dense and report.tokens == 256
    loaded = load_pruned(kind, tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded(images), pruned(images), atol=1e-6)
    again = OptinPruner.from_model(loaded, images[:1], config=config)
    smaller = again.prune(images, save_dir=tmp_path)
    with torch.no_grad():
        assert torch.allclose(load_pruned(kind, tmp_path)(images), smaller(images), atol=1e-6)


def scaled(image):
    """What a transform of torchvision does with an image of Pillow's."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def test_images_are_read_by_a_callable_and_accuracy_is_measured(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    arrays = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), np.uint8)
    names = ["ant", "bee", "cat", "dog", "eel"]
    for number, array in enumerate(arrays):
        folder = tmp_path / "zoo" / names[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(array).save(folder / f"{number}.png")
    module = perturbed(Pictures())
    config = OptinConfig(flops=0.6, probes=8)
    pruner = OptinPruner.from_model(module, torch.rand(1, 3, 16, 16), processor=scaled, config=config)
    dense = pruner.evaluate("image-classification", data_dir=tmp_path / "zoo", labels=names)["metrics"]["accuracy"]
    with torch.no_grad():
        right = [int(module(scaled(each)[None]).argmax()) == number % 5 for number, each in enumerate(arrays)]
    assert dense["dense"] == pytest.approx(sum(right) / 20)
    pruner.prune([pillow.fromarray(each) for each in arrays], save_dir=tmp_path / "pruned")
    both = pruner.evaluate("image-classification", data_dir=tmp_path / "zoo", labels=names)["metrics"]["accuracy"]
    assert both["dense"] == dense["dense"] and both["pruned"] is not None
    pruner.save_pretrained(tmp_path / "pruned")
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert "image-classification" in card and "load_pruned" in card
    with pytest.raises(ValueError, match="does not say which classes it has.*labels="):
        pruner.evaluate("image-classification", data_dir=tmp_path / "zoo")


# What is in the way


class Noted(Pictures):
    """Has a dropout beside its batch norms."""

    def forward(self, pixels):
        return super().forward(nn.functional.dropout(pixels, 0.2, self.training))


def test_a_module_in_training_mode_is_measured_in_evaluation_mode_and_stays_as_it_was(caplog):
    dense = perturbed(TorchEncoder()).train()  # with dropouts of 0.1
    before = seen(dense)
    with caplog.at_level(logging.WARNING):
        pruner = OptinPruner.from_model(dense, DATA[:1], config=CONFIG)
        pruned = pruner.prune(DATA)
    assert "TorchEncoder is in training mode" in caplog.text
    assert same(seen(dense), before) and pruned.training
    other = OptinPruner.from_model(copy.deepcopy(dense).eval(), DATA[:1], config=CONFIG)
    assert torch.equal(other.prune(DATA)(DATA), pruned.eval()(DATA))


def test_batch_norms_in_training_mode_keep_their_statistics():
    dense = perturbed(Noted()).train()
    before = seen(dense)
    OptinPruner.from_model(dense, torch.randn(2, 3, 16, 16))
    assert same(seen(dense), before)


@pytest.mark.parametrize("example", [torch.randn(1, 9), {"ids": DATA[:1]}, (), (DATA[:1], DATA[:1]), None, "a cat"])
def test_a_failed_attempt_leaves_no_trace(example):
    module = perturbed(Transformer())
    with pytest.raises(ValueError, match="example_inputs|does not run on token_ids"):
        OptinPruner.from_model(module, example)
    assert example_of(module) is None
    with pytest.raises(TypeError, match=r"must be a transformers model, got Transformer.*OptinPruner\.from_model"):
        OptinPruner(module)


class Twice(Transformer):
    """Every block runs two times, as in ALBERT."""

    def forward(self, token_ids):
        x = self.embed(token_ids)
        for block in (*self.blocks, *self.blocks):
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Half(Transformer):
    """Its first block runs two times, its second one once."""

    def forward(self, token_ids):
        x = self.blocks[0](self.blocks[0](self.embed(token_ids)))
        return self.head(self.norm(self.blocks[1](x)).mean(1))


def test_what_runs_twice_is_left_whole_with_its_reason():
    with pytest.raises(ValueError, match=r"of this Twice cannot be pruned: .*runs 2 times"):
        OptinPruner.from_model(perturbed(Twice()), DATA[:1], config=CONFIG).check()
    pruner = OptinPruner.from_model(perturbed(Half()), DATA[:1], config=CONFIG)
    pruner.prune(DATA)
    assert list(pruner.report.layers) == ["layers.1"]
    assert all("runs 2 times" in pruner.report.left_whole[f"layers.0.{role}"] for role in ("heads", "neurons"))


class Detaching(nn.Module):
    """A block whose neurons read what no gradient goes through, as RT-DETR's decoder starts."""

    def __init__(self):
        super().__init__()
        self.inner = Block()

    def forward(self, x):
        inner, (batch, tokens, _) = self.inner, x.shape
        q, k, v = (
            part(inner.norm1(x)).view(batch, tokens, inner.heads, -1).transpose(1, 2)
            for part in (inner.q, inner.k, inner.v)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)
        written = inner.down(nn.functional.gelu(inner.up(inner.norm2(x.detach()))))
        return x + inner.o(attended) + written


class Detached(Transformer):
    """A classifier of such blocks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Detaching()])


def test_units_behind_what_was_detached_are_scored_and_refitted():
    pruner = OptinPruner.from_model(perturbed(Detached()), DATA[:1], config=CONFIG)
    scores = pruner.score(DATA).combine()
    assert {key.partition(".")[2] for key in scores} == {"0.heads", "0.neurons"}
    assert all(float(each.max()) > 0 for each in scores.values())
    pruner.prune(DATA)
    assert pruner.report.divergence["agreement"] > 0.5


class InVain(Bottlenecks):
    """Another convolution reads the last stream, and nobody what it writes (MobileNetV2's segmenter has one)."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*self.blocks, Bottleneck())
        self.vain = nn.Conv2d(8, 20, 1)

    def forward(self, pixels):
        x = self.blocks(nn.functional.relu(self.norm(self.stem(pixels))))
        self.vain(x)
        return self.head(x.mean((2, 3)))


def test_a_reader_in_vain_does_not_hide_the_others():
    images = torch.randn(24, 3, 16, 16)
    pruner = OptinPruner.from_model(perturbed(InVain()), images[:2], config=CONFIG)
    scores = pruner.score(images)
    assert any(key.endswith("stream_channels") for key in scores.combine())
    pruner.prune(images, scores=scores)
    assert pruner.report.flops_achieved <= 0.6


class Chain(nn.Module):
    """Three linears beside a shortcut: the middle one reads units and writes others."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(32, 24), nn.Linear(24, 16), nn.Linear(16, 32)

    def forward(self, x):
        return x + self.three(self.two(self.one(x).relu()).relu())


class Chains(Transformer):
    """A classifier of texts made of chains."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Chain() for _ in range(2))


def test_a_linear_that_loses_both_sides_is_saved_and_loaded(tmp_path):
    pruner = OptinPruner.from_model(perturbed(Chains()), DATA[:1], config=replace(CONFIG, flops=0.01))
    pruned = pruner.prune(DATA, save_dir=tmp_path)
    assert any(not each["kept"] for roles in pruner.report.layers.values() for each in roles.values())
    assert all(each.numel() for each in pruned.parameters())
    with torch.no_grad():
        assert torch.equal(load_pruned(Chains, tmp_path)(DATA), pruned(DATA))


class Deciding(Transformer):
    """Goes another way where a sum is not a positive number, as with NaN."""

    def forward(self, token_ids):
        x = self.embed(token_ids)
        for block in self.blocks:
            x = block(x)
            if not (x.square().sum() > 0):
                x = torch.zeros_like(x)
        return self.head(self.norm(x).mean(1))


class Picking(Transformer):
    """One of its blocks runs, by what is read."""

    def forward(self, token_ids):
        x = self.blocks[int(token_ids[0, 0]) % 2](self.embed(token_ids))
        return self.head(self.norm(x).mean(1))


def test_branches_by_values_are_pruned_rightly_or_left_whole_with_a_reason(tmp_path):
    pruner = OptinPruner.from_model(perturbed(Deciding()), DATA[:1], config=CONFIG)
    pruned = pruner.prune(DATA, save_dir=tmp_path)
    listed = {f"{layer}.{role}" for layer, roles in pruner.report.layers.items() for role in roles}
    assert all(
        key in listed or any(key in name for name in pruner.report.left_whole)
        for key in ("layers.0.heads", "layers.0.neurons", "layers.1.heads", "layers.1.neurons")
    )
    with torch.no_grad():
        assert torch.equal(load_pruned(Deciding, tmp_path)(DATA), pruned(DATA))


def test_what_the_example_does_not_reach_is_left_whole():
    pruner = OptinPruner.from_model(perturbed(Picking()), torch.arange(2, 11)[None], config=CONFIG)
    pruner.check()  # of the first block
    odd = torch.arange(1, 10)[None]
    with pytest.raises(ValueError, match=r"blocks\.0\.\S+ does not run on the calibration data.*Exclude its layer"):
        pruner.prune(odd.repeat(16, 1))


class Drawing(Transformer):
    def forward(self, token_ids):
        return super().forward(token_ids) + torch.randn(1)


class Flat(nn.Module):
    """No layers, and nothing that units could be cut of."""

    def __init__(self):
        super().__init__()
        self.only = nn.Linear(9, 5)

    def forward(self, x):
        return self.only(x)


def test_modules_of_which_nothing_can_be_proved_are_refused():
    with pytest.raises(ValueError, match="this Drawing cannot be pruned: two passes of one sample"):
        OptinPruner.from_model(perturbed(Drawing()), DATA[:1]).check()
    with pytest.raises(ValueError, match="nothing of this Flat can be pruned: tracing found no units"):
        OptinPruner.from_model(perturbed(Flat()), torch.randn(1, 9)).check()


def test_options_that_need_a_config_are_refused_before_work(tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2/dev.tsv").write_text("sentence\tlabel\na cat\t1\n")
    pruner = OptinPruner.from_model(perturbed(Transformer()), DATA[:1])
    with pytest.raises(ValueError, match="layout='uniform' cannot prune this Transformer"):
        pruner.check(OptinConfig(layout="uniform"))
    with pytest.raises(ValueError, match="remote_code=True is for models of transformers, and Transformer is a plain"):
        pruner.check(OptinConfig(remote_code=True))
    with pytest.raises(ValueError, match="tokens of this Transformer cannot be merged"):
        pruner.prune(DATA, OptinConfig(merging=(2, 0)))
    with pytest.raises(ValueError, match="sst2 is measured by the labels in a model's config, and Transformer"):
        pruner.evaluate("sst2", data_dir=tmp_path)
    with pytest.raises(ValueError, match="is a model of inputs"):
        pruner.score(DATA, text_columns=["text"])


# Models of transformers


def test_a_model_whose_inputs_are_known_needs_no_example():
    with pytest.raises(ValueError, match="what a 'bert' model reads is known"):
        OptinPruner.from_model(tiny_model("bert"), {"input_ids": DATA[:1]})


def test_a_model_of_transformers_that_reads_something_else_goes_by_its_example(tmp_path, monkeypatch):
    side = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
    sizes = {f"{name}_{field}": size for name in ("encoder", "decoder") for field, size in side.items()}
    model = perturbed(tr.BartModel(tr.BartConfig(vocab_size=99, d_model=32, max_position_embeddings=64, **sizes)))
    both = {"input_ids": DATA, "decoder_input_ids": DATA[:, :7] + 20}
    with monkeypatch.context() as patch:
        patch.setattr(modalities, "MODALITIES", (modalities.TEXTS, modalities.IMAGES))
        with pytest.raises(ValueError, match=r"'decoder_input_ids' and 'input_ids', and we know only .*from_model"):
            OptinPruner(model).check()
    example = {name: value[:1] for name, value in both.items()}
    pruner = OptinPruner.from_model(model, example, config=OptinConfig(flops=0.6, probes=8, compensation="none"))
    pruned = pruner.prune(both, save_dir=tmp_path)
    loaded = tr.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, expected = loaded(**both)[0], pruned(**both)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_config_of_ones_own_is_no_config_of_transformers():
    class Configured(Transformer):
        def __init__(self):
            super().__init__()
            self.config = tr.BertConfig(**SHAPES)

    pruner = OptinPruner.from_model(perturbed(Configured()), DATA[:1], config=CONFIG)
    pruner.prune(DATA)
    assert set(pruner.report.layers) == {"layers.0", "layers.1"}
