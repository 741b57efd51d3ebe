"""Tiny random models that generate: decoders, and encoders with a decoder, of two layers or three."""

import torch
import transformers as tr

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    **IDS,
}
GROUPED = {**SHAPE, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
GEMMA = {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 8}
NINE = {**SHAPE, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}  # as SmolLM2 has
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GPT = {"vocab_size": 99, "hidden_size": 32, "n_layer": 3, "n_head": 4, **IDS}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
MPT = {"vocab_size": 99, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2, **IDS}
STACKS = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    **IDS,
}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 1}
GATED = {**T5, "feed_forward_proj": "gated-gelu"}
WHISPER = {**STACKS, "max_source_positions": 8, "max_target_positions": 32, "num_mel_bins": 8}
WHISPER |= {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}

DECODERS = {
    "llama": tr.LlamaConfig(**GROUPED),
    "smollm": tr.LlamaConfig(**NINE, tie_word_embeddings=True),
    "mistral": tr.MistralConfig(**GROUPED, sliding_window=4),
    "qwen3": tr.Qwen3Config(**GROUPED),
    "gemma2": tr.Gemma2Config(**GEMMA),
    "gemma3": tr.Gemma3TextConfig(**GEMMA, layer_types=SLIDING),
    "gpt2": tr.GPT2Config(**{**GPT, "n_inner": 48, "n_positions": 64}),
    "gpt_neox": tr.GPTNeoXConfig(**SHAPE, rotary_pct=0.5),
    "opt": tr.OPTConfig(**SHAPE, **OPT),
    "bloom": tr.BloomConfig(**GPT),
    "mpt": tr.MptConfig(**MPT),
    "phi": tr.PhiConfig(**SHAPE),
}
PAIRED = {
    "t5": tr.T5Config(**T5),
    "t5 gated": tr.T5Config(**GATED),
    "umt5": tr.UMT5Config(**GATED),
    "bart": tr.BartConfig(**STACKS, max_position_embeddings=64, decoder_start_token_id=2),
    "mbart": tr.MBartConfig(**STACKS, scale_embedding=True, max_position_embeddings=64, decoder_start_token_id=2),
    "marian": tr.MarianConfig(**STACKS, max_position_embeddings=64, decoder_start_token_id=0),
    "pegasus": tr.PegasusConfig(**{**STACKS, "eos_token_id": 1}, max_position_embeddings=64, decoder_start_token_id=0),
    "whisper": tr.WhisperConfig(**WHISPER),
}
GENERATORS = {**DECODERS, **PAIRED}
MORE = {  # of which not every test needs to see
    "qwen2": tr.Qwen2Config(**GROUPED),
    "phi3": tr.Phi3Config(**SHAPE),
    "falcon": tr.FalconConfig(**SHAPE, ffn_hidden_size=48, num_kv_heads=2, new_decoder_architecture=True),
    "mt5": tr.MT5Config(**GATED),
}


def auto_of(name):
    """The Auto class that makes a model."""
    if not (GENERATORS | MORE)[name].is_encoder_decoder:
        return tr.AutoModelForCausalLM
    return tr.AutoModelForSpeechSeq2Seq if name == "whisper" else tr.AutoModelForSeq2SeqLM


def generator(name, seed=0):
    """A model in evaluation mode, with weights so large that each unit matters to what it writes."""
    torch.manual_seed(seed + (name == "mbart"))  # with the first seed, it says one word whatever it is cut to
    model = auto_of(name).from_config((GENERATORS | MORE)[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad and name == "marian":
                continue  # its class makes these positions again when it is loaded
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def prompts(name, lengths=(9, 6), seed=0):
    """Inputs of `generate` for a batch of texts, padded at the left; of sounds for Whisper."""
    drawn = torch.Generator().manual_seed(seed)
    if name == "whisper":
        return {"input_features": torch.randn(len(lengths), 8, 16, generator=drawn)}
    ids = torch.randint(5, 95, (len(lengths), max(lengths)), generator=drawn)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : max(lengths) - length] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def real(output, inputs):
    """The rows of real tokens, of an output of (batch, tokens, ...): what padding gets depends on the kernel."""
    mask = inputs.get("attention_mask")
    return output if mask is None or mask.shape != output.shape[:2] else output[mask.bool()]
