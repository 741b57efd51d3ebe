"""Frames of sounds: how many, which are real, and sounds made up to have so many."""

import pytest
import torch
import transformers as tr
from speech_data import SPEECH, extractor, speech_model, waves
from tiny import perturbed

from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens, probe_batch
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.media.frames import frames_of, frames_that_are_real, least_samples

LENGTHS = (3200, 3300, 5000, 2900)


def _run(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_real_frames_are_those_that_each_sound_has_by_itself():
    """Brute force: each sound alone, without padding; its frames are the real ones, and say the same."""
    model = speech_model(masked=True)
    (batch,) = calibration_batches(waves(*LENGTHS), model, extractor(masked=True))
    together = _run(model, batch)
    (mask,) = token_masks(model, batch).values()
    assert mask.shape == together.shape[:2] and not mask.all()
    assert torch.equal(frames_that_are_real(model, batch, together.shape[1]), mask)
    for place, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = _run(model, {name: value[place : place + 1, :length] for name, value in batch.items()})
        assert mask[place].tolist() == [True] * alone.shape[1] + [False] * (mask.shape[1] - alone.shape[1])
        torch.testing.assert_close(together[place][mask[place]], alone[0], rtol=1e-4, atol=1e-5)
    counted = [_run(model, {"input_values": batch["input_values"][:1, :length]}).shape[1] for length in LENGTHS]
    assert mean_tokens([batch], model) == round(sum(counted) / 4)


def test_an_adapter_leaves_fewer_frames_of_the_output():
    model = speech_model(masked=True, add_adapter=True, num_adapter_layers=1, output_hidden_size=32)
    (batch,) = calibration_batches(waves(3200, 5000), model, extractor(masked=True))
    frames = _run(model, batch).shape[1]
    mask = token_masks(model, batch)["layers"]
    real = frames_that_are_real(model, batch, frames)
    assert real.shape == (2, frames) and mask.shape[1] > frames
    assert real[1].all() and not real[0].all()


def test_the_least_samples_for_so_many_frames():
    model = speech_model()
    for frames in (1, 2, 10):
        least = least_samples(model, frames)
        assert frames_of(model, least) == frames == _run(model, {"input_values": torch.randn(1, least)}).shape[1]
        assert frames_of(model, least - 1) == frames - 1


FAMILIES = {
    "wav2vec2": speech_model,
    "hubert": lambda: perturbed(tr.HubertForCTC(tr.HubertConfig(**SPEECH))),
    "sew, whose layers read two frames as one": lambda: perturbed(tr.SEWForCTC(tr.SEWConfig(**SPEECH))),
    "features in time": lambda: perturbed(
        tr.Wav2Vec2BertForCTC(
            tr.Wav2Vec2BertConfig(
                vocab_size=20,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                feature_projection_input_dim=16,
            )
        )
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_is_made_up_of_any_number_of_frames(family):
    model = FAMILIES[family]()
    for tokens in (5, 37):
        assert next(iter(token_masks(model, probe_batch(model, tokens)).values())).shape == (1, tokens)


def test_a_model_of_one_length_takes_no_other():
    torch.manual_seed(0)
    config = tr.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        num_mel_bins=16,
        max_source_positions=50,
        classifier_proj_size=16,
    )
    model = perturbed(tr.WhisperForAudioClassification(config))
    assert probe_batch(model, 50)["input_features"].shape == (1, 16, 100)
    with pytest.raises(ValueError, match="tokens=40 is not what this model makes of a sound: 50"):
        probe_batch(model, 40)
