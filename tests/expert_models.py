"""Tiny language models with a mixture of experts, whose weights are so large that each unit matters."""

import torch
import transformers as tr

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "mixtral": tr.MixtralConfig(**SHAPE, intermediate_size=24, num_local_experts=4),
    "qwen3_moe": tr.Qwen3MoeConfig(**SHAPE, moe_intermediate_size=24, num_experts=4, head_dim=8),
    "olmoe": tr.OlmoeConfig(**SHAPE, intermediate_size=24, num_experts=4),
    "gpt_oss": tr.GptOssConfig(**SHAPE, intermediate_size=24, num_local_experts=4, head_dim=8),
    "nemotron_h": tr.NemotronHConfig(  # experts without a gate
        **{**SHAPE, "head_dim": 8, "hybrid_override_pattern": "*E"},
        n_routed_experts=4,
        moe_intermediate_size=24,
        moe_shared_expert_intermediate_size=16,
    ),
}


def expert_model(name, seed=0, **changes):
    """A model in evaluation mode; `changes` are those of its config."""
    torch.manual_seed(seed)
    config = CONFIGS[name].__class__(**{**CONFIGS[name].to_diff_dict(), **changes})
    model = tr.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 1.2 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def token_batches(count=6, samples=2, tokens=16, seed=0):
    """Batches of drawn tokens."""
    drawn = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(5, 95, (samples, tokens), generator=drawn)} for _ in range(count)]
