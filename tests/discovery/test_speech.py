"""Models of speech from end to end: traced, proved, scored on sounds, refitted, saved, loaded, counted."""

from collections import Counter

import pytest
import torch
import transformers as tr
from speech_data import SPEECH
from tiny import perturbed

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.pricing.macs import count_macs, total_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import masks_of

WAVLM = {"num_buckets": 16, "max_bucket_distance": 32}
CONFIGS = {
    "wav2vec2": tr.Wav2Vec2Config(**SPEECH),
    "wav2vec2 with norms first": tr.Wav2Vec2Config(**SPEECH, do_stable_layer_norm=True, feat_extract_norm="layer"),
    "hubert": tr.HubertConfig(**SPEECH),
    "wavlm": tr.WavLMConfig(**SPEECH, **WAVLM),
    "data2vec-audio": tr.Data2VecAudioConfig(**SPEECH),
}
CTC, CLASSES = tr.AutoModelForCTC, tr.AutoModelForAudioClassification
CASES = [*((name, CTC) for name in CONFIGS), ("wav2vec2", CLASSES), ("wavlm", CLASSES)]
PRUNING = OptinConfig(flops=0.6, probes=2, rows=16, batch_size=4, search="ranked")


def waves(count=8):
    """Sounds of 3200 samples, 79 frames."""
    return torch.randn(count, 3200, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "auto"), CASES, ids=[f"{name}, {auto.__name__[9:]}" for name, auto in CASES])
def test_an_encoder_of_speech_goes_all_the_way(name, auto, tmp_path):
    torch.manual_seed(0)
    model = perturbed(auto.from_config(CONFIGS[name]))
    masked = getattr(CONFIGS[name], "feat_extract_norm", "layer") == "layer"
    pruner = OptinPruner(model, tr.Wav2Vec2FeatureExtractor(return_attention_mask=masked), PRUNING)
    groups = proved_groups(model, PRUNING)  # masked and cut models agree
    # torch's own attention, which WavLM goes through, takes heads to be the whole width together
    assert Counter(group.role for group in groups) == {"neurons": 2} | ({} if name == "wavlm" else {"heads": 2})
    sounds = [wave[: len(wave) - 100 * place] for place, wave in enumerate(waves())]
    pruned = pruner.prune(sounds, save_dir=tmp_path)
    assert 0.4 < pruner.report.flops_achieved <= 0.6
    loaded = auto.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        dense, found, expected = (each(waves(2)).logits for each in (model, loaded, pruned))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, dense, rtol=1e-3)
    masks, batch = masks_of(structure_of_model(pruned), groups), probe_batch(model, pruner.report.tokens)
    gone = count_macs(model, batch) - count_macs(pruned, batch)
    whole, left = (total_cost(model, groups, pruner.report.tokens, masks=each) for each in (None, masks))
    assert gone == pytest.approx(whole - left)


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WHISPER = tr.WhisperConfig(
    vocab_size=60,
    num_mel_bins=16,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_source_positions=50,
    max_target_positions=100,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=3,
    begin_suppress_tokens=None,
    suppress_tokens=None,
)
MELS = tr.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
OTHERS = {
    "whisper": (tr.WhisperForConditionalGeneration, WHISPER, MELS, ["encoder", "decoder"]),
    "whisper, classes": (tr.WhisperForAudioClassification, WHISPER, MELS, ["layers"]),
    "AST": (
        tr.ASTForAudioClassification,
        tr.ASTConfig(**WIDTHS, max_length=64, num_mel_bins=32),
        tr.ASTFeatureExtractor(max_length=64, num_mel_bins=32),
        ["layers"],
    ),
    "wav2vec2-BERT": (
        tr.Wav2Vec2BertForCTC,
        tr.Wav2Vec2BertConfig(**WIDTHS, vocab_size=20, feature_projection_input_dim=160),
        tr.SeamlessM4TFeatureExtractor(),
        ["layers"],
    ),
    "SEW": (tr.SEWForCTC, tr.SEWConfig(**SPEECH), tr.Wav2Vec2FeatureExtractor(), ["layers"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_of_sounds_go_all_the_way(name, tmp_path):
    kind, config, extractor, stacks = OTHERS[name]
    torch.manual_seed(0)
    model = perturbed(kind(config))
    pruner = OptinPruner(model, extractor, PRUNING)
    groups = proved_groups(model, PRUNING)
    assert {group.layer.partition(".")[0] for group in groups} >= set(stacks)
    pruned = pruner.prune(list(waves()), save_dir=tmp_path).eval()
    assert 0.4 < pruner.report.flops_achieved <= 0.6
    loaded = kind.from_pretrained(tmp_path).eval()
    inputs = extractor(list(waves(2).numpy()), sampling_rate=16_000, return_tensors="pt", padding=True)
    others = {"decoder_input_ids": torch.tensor([[3, 9, 7]] * 2)} if "decoder" in stacks else {}
    if name == "AST" or "whisper" in name:
        inputs = extractor(list(waves(2).numpy()), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        dense, found, expected = (each(**inputs, **others).logits for each in (model, loaded, pruned))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, dense)
    masks, batch = masks_of(structure_of_model(pruned), groups), probe_batch(model, pruner.report.tokens)
    gone = count_macs(model, batch) - count_macs(pruned, batch)
    whole, left = (total_cost(model, groups, pruner.report.tokens, masks=each) for each in (None, masks))
    assert gone == pytest.approx(whole - left)
    if "decoder" in stacks:
        written = [each.generate(**inputs, max_new_tokens=9, max_length=None) for each in (pruned, loaded)]
        assert torch.equal(*written)
        assert pruner.report.continuations is not None


def test_the_front_end_is_left_whole_and_named():
    model = perturbed(CTC.from_config(CONFIGS["wav2vec2"]))
    left = find_groups(model).left_whole
    front = [name for name, reason in left.items() if "front end that makes tokens of a sound" in reason]
    assert len(front) == 2 and all("feature_extractor.conv_layers" in name for name in front)


def test_heads_of_torchs_own_attention_are_left_whole_and_named():
    groups = find_groups(perturbed(CTC.from_config(CONFIGS["wavlm"])))
    (reason,) = [str(why) for key, why in groups.left_whole.items() if key.endswith("heads")]
    assert "with 2 of 4 units left, it does not run" in reason
