"""The table of modalities: which one a model is of, and that an entry is all that a new one needs."""

import pytest
import torch
from tiny import CASES, tiny_model
from transformers import BertConfig, BertModel, PreTrainedModel

from optimum_optin import OptinConfig, OptinPruner, Stack, heads, neurons, register_architecture
from optimum_optin.architectures import registry
from optimum_optin.inputs import modalities
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.modalities import IMAGES, MODALITIES, PAIRS, TEXTS, Modality, modality_of
from optimum_optin.inputs.probes import mean_tokens, probe_batch
from optimum_optin.running.batch import token_mask

FEATURES = 5  # of one step in time


class SoundConfig(BertConfig):
    model_type = "tiny-sound"


class SoundModel(PreTrainedModel):
    """A model of sound: of each step in time, some numbers."""

    config_class = SoundConfig
    base_model_prefix = "sound"
    main_input_name = "sounds"

    def __init__(self, config):
        super().__init__(config)
        self.features = torch.nn.Linear(FEATURES, config.hidden_size)
        self.encoder = BertModel(config)
        self.post_init()

    def forward(self, sounds, attention_mask=None):
        return self.encoder(inputs_embeds=self.features(sounds), attention_mask=attention_mask)


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    linears = [f"attention.self.{name}" for name in ("query", "key", "value")]
    counters = {"attention.self.num_attention_heads": "units"}
    layer = (
        heads(
            "attention.self",
            "attention.self.attention_head_size",
            linears,
            "attention.output.dense",
            counters=counters,
        ),
        neurons(["intermediate.dense"], "output.dense"),
    )
    register_architecture("tiny-sound", Stack("encoder.encoder.layer", layer))
    return SoundModel(SoundConfig(**tiny_model().config.to_dict() | {"model_type": "tiny-sound"})).eval()


def _sounds(model, tokens):
    steps = torch.zeros(1, tokens, FEATURES)
    return {"sounds": steps, "attention_mask": torch.ones(1, tokens, dtype=torch.long)}


def _read(samples, model, processor, *, batch_size, **_options):
    """Sounds of one length, in batches."""
    steps = torch.stack(list(samples.values())).split(batch_size)
    return [{"sounds": part, "attention_mask": torch.ones(part.shape[:2], dtype=torch.long)} for part in steps]


SOUNDS = Modality(
    samples="sounds",
    real_tokens={"sounds": lambda model, batch, stack: token_mask(batch, batch["sounds"].shape[1])},
    read=_read,
    check=lambda batches, model: None,
    probe=_sounds,
)


@pytest.mark.parametrize("case", CASES)
def test_every_model_is_of_one_modality(case):
    """Told here by the class's main input, and by its config for pairs, which have two."""
    model = tiny_model(case)
    images = model.main_input_name == "pixel_values"
    dual = not images and hasattr(model.config, "vision_config")
    assert modality_of(model) is (IMAGES if images else PAIRS if dual else TEXTS)


def test_inputs_that_fit_none_are_named(model):
    with pytest.raises(ValueError, match=r"'tiny-sound' model reads 'sounds', .* images \('pixel_values'\), pairs"):
        modality_of(model)
    with pytest.raises(ValueError, match="'tiny-sound' model reads 'sounds'"):
        OptinPruner(model).prune([torch.randn(9, FEATURES)])


def test_an_entry_is_all_that_a_new_modality_needs(model, monkeypatch):
    monkeypatch.setattr(modalities, "MODALITIES", (*MODALITIES, SOUNDS))
    samples = list(torch.randn(32, 9, FEATURES, generator=torch.Generator().manual_seed(0)))
    batches = calibration_batches(samples, model, batch_size=8)
    assert [tuple(batch["sounds"].shape) for batch in batches] == [(8, 9, FEATURES)] * 4
    assert mean_tokens(batches, model) == 9
    assert probe_batch(model, 4)["sounds"].shape == (1, 4, FEATURES)
    with pytest.raises(ValueError, match="'tiny-sound' is a model of sounds"):
        calibration_batches(samples, model, text_columns=["text"])
    pruner = OptinPruner(model)
    pruned = pruner.prune(samples, OptinConfig(flops=0.5, probes=8))
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    assert pruned(samples[0][None]).last_hidden_state.shape == (1, 9, 32)
