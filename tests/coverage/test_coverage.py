"""A sample of the coverage benchmark: model types without a row, found, proved, cut, saved and loaded.

The 24 types that have a row are in `tests/discovery/test_discovery.py`; all types are in the page that
`docs/make_supported_models.py` writes.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))
from tiny_models.measures import measured
from tiny_models.summary import BAR

TYPES = """
    albert deberta-v2 layoutlmv3 roberta-prelayernorm nomic_bert gte esm xlnet t5 bart marian gpt2 gpt_neox opt bloom
    falcon llama qwen3 gemma3_text phi3 mixtral qwen3_moe whisper wav2vec2 hubert segformer detr resnet
    convnext
""".split()
CONVOLUTIONS = {"resnet": 16}  # neither attention nor feed-forward networks, but so many groups of channels


@pytest.mark.parametrize("model_type", TYPES)
def test_every_group_is_found_proved_cut_and_loaded(model_type):
    result = measured(model_type)
    assert result["stage"] == "done", result
    asked = [each for each in result["expected"] if each["kind"] in BAR and not each["apart"]]
    others = [each["reason"] for each in asked if not each["proved"]]  # Mask2Former's: test_pruner_dense.py
    assert asked or model_type in CONVOLUTIONS
    assert not others
    proved = sum(group["cut"] is None for group in result["groups"].values())
    assert proved >= CONVOLUTIONS.get(model_type, len(result["groups"]))
    assert result["macs"][1] < result["macs"][0]
    assert (result["loaded"], result["unsaved"]) == ("", [])
