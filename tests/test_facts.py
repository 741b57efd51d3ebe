"""What is measured once is measured again when the model has changed in place."""

import copy

from tiny import tiny_batch, tiny_model
from transformers.models.vit.modeling_vit import ViTEmbeddings

from optimum_optin.media.vision import image_tokens


def test_tokens_of_an_image_after_its_patches_have_changed():
    model = tiny_model("vit")
    batch = tiny_batch(model)
    assert image_tokens(model, batch) == 1 + 16
    config = copy.deepcopy(model.config)
    config.patch_size = 8
    model.vit.embeddings = ViTEmbeddings(config)
    assert image_tokens(model, batch) == 1 + 4


def test_what_has_not_changed_is_not_run_again(monkeypatch):
    model = tiny_model("vit")
    assert image_tokens(model, tiny_batch(model)) == 17
    monkeypatch.setattr(type(model), "forward", None)
    assert image_tokens(model, tiny_batch(model, seed=1)) == 17
