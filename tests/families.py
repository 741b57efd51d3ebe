"""Tiny random models of further families of dense prediction, for a test from end to end: two layers, few channels."""

import torch
import transformers as tr
from dense import LABELS, SWIN
from torch import nn

VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NECK = {"neck_hidden_sizes": [4, 4], "reassemble_factors": [2, 1], "fusion_hidden_size": 12, "num_labels": LABELS}
NECK |= {"head_in_index": -1, "use_auxiliary_head": False}


def sam():
    config = tr.SamVisionConfig(
        hidden_size=32,
        output_channels=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        mlp_dim=48,
        window_size=2,
        global_attn_indexes=[1],
    )
    return tr.SamVisionModel(config)


def sam2():
    hiera = tr.Sam2HieraDetConfig(
        hidden_size=16,
        num_attention_heads=2,
        image_size=[32, 32],
        blocks_per_stage=[1, 1],
        embed_dim_per_stage=[16, 32],
        num_attention_heads_per_stage=[2, 4],
        window_size_per_stage=[4, 2],
        global_attention_blocks=[],
        num_query_pool_stages=1,
        window_positional_embedding_background_size=[4, 4],
    )
    config = tr.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[32, 16],
        backbone_feature_sizes=[[8, 8], [4, 4]],
        num_feature_levels=2,
        fpn_top_down_levels=[1],
        fpn_hidden_size=8,
    )
    return tr.Sam2VisionModel(config)


def upernet():
    swin = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "out_features": ["stage1", "stage2"]}
    config = tr.UperNetConfig(
        backbone_config=tr.SwinConfig(**{**SWIN, **swin}),
        hidden_size=8,
        pool_scales=[1],
        num_labels=LABELS,
        use_auxiliary_head=False,
    )
    return tr.UperNetForSemanticSegmentation(config)


def dpt():
    config = tr.DPTConfig(**VIT, **NECK, intermediate_size=48, backbone_out_indices=[0, 1], is_hybrid=False)
    return tr.DPTForSemanticSegmentation(config)


def dpt_dinov2():
    backbone = tr.Dinov2Config(**VIT, mlp_ratio=2, out_features=["stage1", "stage2"], reshape_hidden_states=False)
    model = tr.DPTForDepthEstimation(tr.DPTConfig(backbone_config=backbone, **NECK))
    nn.init.constant_(model.head.head[-2].bias, 1.0)  # depths are positive; of random weights, most are cut off at 0
    return model


FAMILIES = {each.__name__: each for each in (sam, sam2, upernet, dpt, dpt_dinov2)}


def family(name):
    """One of these models in evaluation mode, with weights so large that their inputs are still seen in the outputs."""
    torch.manual_seed(0)
    model = FAMILIES[name]()
    with torch.no_grad():
        for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() > 1 and tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) * (2 / tensor[0].numel()) ** 0.5)
            elif tensor_name.endswith("running_var"):
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor))
    return model.eval()
