"""A sample of the coverage benchmark: model types without a row, found, proved, cut, saved and loaded.

The 24 types that have a row are in `tests/discovery/test_discovery.py`; all types are in the page that
`docs/make_supported_models.py` writes.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
from tiny_models.measures import measured

TYPES = """
    albert deberta-v2 layoutlmv3 roberta-prelayernorm nomic_bert gte esm xlnet t5 bart marian gpt2 gpt_neox opt bloom
    falcon llama qwen3 gemma3_text phi3 mixtral qwen3_moe whisper wav2vec2 hubert segformer mask2former detr resnet
    convnext
""".split()
REASONS = {}


@pytest.mark.parametrize("model_type", TYPES)
def test_every_group_is_found_proved_cut_and_loaded(model_type):
    result = measured(model_type)
    assert result["stage"] == "done", result
    for each in result["expected"]:
        if each["kind"] in ("attention", "ffn"):
            assert each["proved"] or REASONS.get(model_type, "-") in each["reason"], each
    assert result["macs"][1] < result["macs"][0]
    assert (result["loaded"], result["unsaved"]) == ("", [])
