"""A tiny language model whose predictions are far from uniform."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from words import word_tokenizer


def language_model(seed=0, **changes):
    """A tiny Llama for the tests' tokenizer, whose weights are perturbed."""
    torch.manual_seed(seed)
    shape = {"vocab_size": len(word_tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **changes}
    model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model
