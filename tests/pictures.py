"""Images of random numbers, and what is made of them."""

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

Image = pytest.importorskip("PIL.Image")

ARRAYS = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(array) for array in ARRAYS]


def image_processor():
    """That of the tiny models."""
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def pixels_in(batches):
    """All images, in an order of their own."""
    images = torch.cat([batch["pixel_values"] for batch in batches])
    return images[images.flatten(1).sum(1).argsort()]
