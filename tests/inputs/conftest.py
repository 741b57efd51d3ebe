"""A model of images with its processor, and a cache for every test."""

import datasets
import pytest
from tiny import tiny_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model():
    return tiny_model("vit")


@pytest.fixture(scope="module")
def processor():
    from pictures import image_processor  # skips where Pillow is not installed

    return image_processor()
