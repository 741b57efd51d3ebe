"""Further families of dense prediction from end to end: proved, scored, refitted, saved, loaded, counted."""

from collections import Counter

import pytest
import torch
import transformers as tr
from families import FAMILIES, family

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.media.vision import image_size
from optimum_optin.pricing.macs import count_macs, total_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import masks_of
from optimum_optin.storage.tasks import maker_of

CONFIG = OptinConfig(flops=0.6, probes=4, rows=16, batch_size=4, search="ranked")
NECK = {"stream_channels": 4, "channels": 3, "residual_layer2_channels": 1, "projection_channels": 1}
PYRAMID = (
    "channels",
    "lateral_convs_0_conv_channels",
    "fpn_convs_0_batch_norm_channels",
    "fpn_bottleneck_conv_channels",
)
ROLES = {
    "sam": {"heads": 2, "neurons": 2},
    "sam2": {"heads": 2, "neurons": 2},
    "upernet": {"heads": 2, "neurons": 2, **dict.fromkeys(PYRAMID, 1)},
    "dpt": {"heads": 2, "neurons": 2, **NECK},
    "dpt_dinov2": {"heads": 2, "neurons": 2, **NECK, "2_channels": 1},
}
# Sam2MultiScaleAttention multiplies heads by heads, which grows with their square, and drops what comes out.
COUNTED_ROUGHLY = {"sam2": 0.05}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_all_the_way(name, tmp_path):
    model = family(name)
    pruner = OptinPruner(model, config=CONFIG)
    groups = proved_groups(model, CONFIG)  # masked and cut models agree
    assert Counter(group.role for group in groups) == ROLES[name]
    images = torch.randn(8, 3, *image_size(model), generator=torch.Generator().manual_seed(0))
    pruned = pruner.prune([{"pixel_values": image} for image in images], save_dir=tmp_path)
    assert 0.4 < pruner.report.flops_achieved < 0.62
    loaded = maker_of(model).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    with torch.no_grad():
        dense, found, expected = (each(images[:2]) for each in (model, loaded, pruned))
    assert not torch.allclose(expected[0], dense[0], rtol=1e-3)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    masks, batch = masks_of(structure_of_model(pruned), groups), probe_batch(model, pruner.report.tokens)
    gone = count_macs(model, batch) - count_macs(pruned, batch)
    whole, left = (total_cost(model, groups, pruner.report.tokens, masks=each) for each in (None, masks))
    assert gone == pytest.approx(whole - left, rel=COUNTED_ROUGHLY.get(name, 1e-9))


def test_a_normalisation_over_all_channels_leaves_nothing_and_says_so():
    """ConvNeXt V2: how large a channel is stands beside how large all are."""
    shape = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    model = tr.ConvNextV2ForImageClassification(tr.ConvNextV2Config(**shape))
    with pytest.raises(ValueError, match="nothing of this 'convnextv2' model can be pruned: .* normalised as a whole"):
        OptinPruner(model).check()
