"""Seconds and memory that measuring the costs of units takes, of models of real sizes with random weights (Linux)."""

import argparse
import time
from pathlib import Path

import transformers as tr

from optimum_optin import find_groups
from optimum_optin.media.vision import image_tokens, usual_image
from optimum_optin.pricing.macs import cost_tables
from optimum_optin.pricing.tensors import count_parameters

MODELS = {
    "BERT-base": (tr.BertForSequenceClassification, tr.BertConfig()),
    "ModernBERT-base": (tr.ModernBertForSequenceClassification, tr.ModernBertConfig()),
    "ViT-base": (tr.ViTForImageClassification, tr.ViTConfig()),
    "Swin-tiny": (tr.SwinForImageClassification, tr.SwinConfig()),
    "CLIP ViT-B/32": (tr.CLIPModel, tr.CLIPConfig()),
    "ViT of 1.2 billion": (
        tr.ViTModel,
        tr.ViTConfig(hidden_size=1792, num_hidden_layers=32, num_attention_heads=16, intermediate_size=7168),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    for name in parser.parse_args().models:
        model_class, config = MODELS[name]
        model = model_class(config).eval()
        images = model.main_input_name == "pixel_values"
        tokens = image_tokens(model, usual_image(model)) if images else min(128, _most_tokens(model))
        groups = find_groups(model)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before, started = _memory("VmRSS"), time.perf_counter()
        cost_tables(model, groups, tokens)
        seconds, peak = time.perf_counter() - started, _memory("VmHWM") - before
        parameters = count_parameters(model) / 1e6
        print(f"| {name} | {parameters:.0f}M | {tokens} | {seconds:.2f} | +{peak:.0f} MiB |", flush=True)


def _most_tokens(model) -> int:
    return model.config.get_text_config().max_position_embeddings


def _memory(name: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
