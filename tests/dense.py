"""Tiny random models of dense prediction: segmenters, detectors, depth."""

import torch
import transformers as tr
from tiny import perturbed
from torch import nn

LABELS = 5
QUERIES = 11
SIZE = 32  # of images
SWIN = {
    "image_size": SIZE,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "window_size": 4,
    "mlp_ratio": 1.5,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
VIT = {
    "image_size": SIZE,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_labels": LABELS,
}
QUERYING = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": QUERIES,
    "num_labels": LABELS,
    "use_timm_backbone": False,
}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}


class LinearSegmenter(tr.Dinov2PreTrainedModel):
    """DINOv2 with a linear head for every patch, and maps as large as the image."""

    def __init__(self, config):
        super().__init__(config)
        self.dinov2 = tr.Dinov2Model(config)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, 1)
        self.post_init()

    def forward(self, pixel_values):
        patches = self.dinov2(pixel_values).last_hidden_state[:, 1:]
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        maps = self.classifier(patches.transpose(1, 2).reshape(len(patches), -1, rows, columns))
        logits = nn.functional.interpolate(maps, size=pixel_values.shape[-2:], mode="bilinear")
        return tr.modeling_outputs.SemanticSegmenterOutput(logits=logits)


def segformer():
    shape = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "mlp_ratios": [2, 2, 2]}
    strides = {"patch_sizes": [7, 3, 3], "strides": [4, 2, 2], "sr_ratios": [2, 1, 1]}
    config = tr.SegformerConfig(
        num_encoder_blocks=3, depths=[1, 1, 1], decoder_hidden_size=32, num_labels=LABELS, **shape, **strides
    )
    return tr.SegformerForSemanticSegmentation(config)


def dinov2():
    return LinearSegmenter(tr.Dinov2Config(mlp_ratio=2, **VIT))


def beit():
    config = tr.BeitConfig(
        **{**VIT, "num_hidden_layers": 4, "intermediate_size": 48},
        out_features=["stage1", "stage2", "stage3", "stage4"],
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        layer_scale_init_value=0.5,
        drop_path_rate=0.0,
    )
    return tr.BeitForSemanticSegmentation(config)


def depth():
    config = tr.GLPNConfig(
        hidden_sizes=[16, 24, 32],
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        num_attention_heads=[2, 2, 4],
        sr_ratios=[2, 1, 1],
        mlp_ratios=[2, 2, 2],
        patch_sizes=[7, 3, 3],
        strides=[4, 2, 2],
        decoder_hidden_size=16,
        drop_path_rate=0.0,
    )
    return tr.GLPNForDepthEstimation(config)


def mask2former():
    config = tr.Mask2FormerConfig(
        backbone_config=tr.SwinConfig(**SWIN),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=48,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=QUERIES,
        num_labels=LABELS,
    )
    return tr.Mask2FormerForUniversalSegmentation(config)


def eomt():
    config = tr.EomtConfig(
        **{**VIT, "num_hidden_layers": 4},
        mlp_ratio=2,
        num_upscale_blocks=1,
        num_blocks=2,
        num_queries=QUERIES,
        num_register_tokens=2,
    )
    return tr.EomtForUniversalSegmentation(config)


def detr():
    return tr.DetrForObjectDetection(
        tr.DetrConfig(backbone_config=tr.ResNetConfig(**RESNET, out_features=["stage2"]), **QUERYING)
    )


def conditional_detr():
    config = tr.ConditionalDetrConfig(backbone_config=tr.ResNetConfig(**RESNET, out_features=["stage2"]), **QUERYING)
    return tr.ConditionalDetrForObjectDetection(config)


def yolos():
    config = tr.YolosConfig(
        **{**VIT, "image_size": [SIZE, SIZE]},
        intermediate_size=48,
        num_detection_tokens=QUERIES,
        use_mid_position_embeddings=False,
    )
    return tr.YolosForObjectDetection(config)


DENSE = {
    each.__name__: each for each in (segformer, dinov2, beit, depth, mask2former, eomt, detr, conditional_detr, yolos)
}


def dense_model(name):
    """One of these models in evaluation mode, with perturbed weights: at initialisation wrong code can look right."""
    torch.manual_seed(0)
    return perturbed(DENSE[name]())


def images(count, height=SIZE, width=SIZE, seed=0):
    """Pixel values of shape (count, 3, height, width)."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
