"""DINOv2 with a linear segmentation head, a model that is not part of transformers but saves and loads as if it were.

A folder that `save_pretrained` writes holds a copy of this file, which imports nothing but transformers and torch:

    AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)

The head gives each patch logits (Oquab et al. 2023, Sec. 7.4, "linear"); train_segmentation_head.py trains it.
"""

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Dinov2PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class Dinov2LinearSegmenter(Dinov2PreTrainedModel):
    """Logits of shape (images, labels, height / patch, width / patch), to be enlarged by who reads them."""

    def __init__(self, config: Dinov2Config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dinov2 = Dinov2Model(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> SemanticSegmenterOutput:
        """Logits, and with labels of shape (images, height, width) the mean loss of their pixels."""
        outputs = self.dinov2(pixel_values, **kwargs)
        patches = outputs.last_hidden_state[:, 1:]  # behind the class token: (images, patches, d)
        rows, columns = (size // self.config.patch_size for size in pixel_values.shape[-2:])
        logits = self.classifier(patches).transpose(1, 2).unflatten(-1, (rows, columns))
        loss = None
        if labels is not None:
            enlarged = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = nn.functional.cross_entropy(enlarged, labels, ignore_index=255)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


Dinov2LinearSegmenter.register_for_auto_class("AutoModelForSemanticSegmentation")
