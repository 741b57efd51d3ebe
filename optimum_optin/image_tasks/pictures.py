"""Pictures for a model card: a photo and what models see in it, side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

_TALLEST = 320  # pixels
_GAP = 8


def masks_beside(photo: np.ndarray, maps: Sequence[np.ndarray]) -> bytes:
    """A photo and maps of its classes in one row, as the content of a PNG file.

    Args:
        photo: shape (height, width, 3), uint8.
        maps: a class for each pixel, each of shape (height, width).
    """
    from PIL import Image

    colors = palette()
    panels = [Image.fromarray(photo), *(Image.fromarray(colors[np.asarray(each) % len(colors)]) for each in maps)]
    height = min(_TALLEST, photo.shape[0])
    width = max(1, round(photo.shape[1] * height / photo.shape[0]))
    row = Image.new("RGB", (len(panels) * (width + _GAP) - _GAP, height), "white")
    for place, panel in enumerate(panels):
        how = Image.Resampling.BILINEAR if place == 0 else Image.Resampling.NEAREST
        row.paste(panel.resize((width, height), how), (place * (width + _GAP), 0))
    content = io.BytesIO()
    row.save(content, format="PNG", optimize=True)
    return content.getvalue()


def palette() -> np.ndarray:
    """The colour of each class, shape (256, 3): those of PASCAL VOC.

    The bits of a class are spread over the channels in turn, the lowest ones with most weight.
    """
    classes = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for place in range(8):
        bit = (classes >> place) & 1
        colors[:, place % 3] |= (bit << (7 - place // 3)).astype(np.uint8)
    return colors
