"""Models of timm through the door for plain modules; it needs torchvision, and these run where both are installed."""

import pytest
import torch
import transformers as tr
from toys import perturbed

from optimum_optin import OptinConfig, OptinPruner, load_pruned

timm = pytest.importorskip("timm", reason="timm needs torchvision")

CONFIG = OptinConfig(flops=0.7, probes=2, scorer="gauss_newton", compensation="none")
SIZES = {"resnet18": 64, "vit_tiny_patch16_224": 224, "mobilenetv3_small_050": 64}


@pytest.mark.parametrize("name", SIZES)
def test_a_model_of_timm_is_pruned_saved_and_loaded(name, tmp_path):
    images = torch.randn(8, 3, SIZES[name], SIZES[name], generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = perturbed(timm.create_model(name, pretrained=False, num_classes=10))
    pruner = OptinPruner.from_model(model, images[:1], config=CONFIG)
    pruned = pruner.prune(images, save_dir=tmp_path)
    assert 0.5 < pruner.report.flops_achieved <= 0.7
    loaded = load_pruned(lambda: timm.create_model(name, pretrained=False, num_classes=10), tmp_path)
    with torch.no_grad():
        assert torch.allclose(loaded(images), pruned(images), atol=1e-6)


def test_a_model_of_timm_inside_transformers_loads_by_its_auto_class(tmp_path):
    images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    config = tr.TimmWrapperConfig(architecture="vit_tiny_patch16_224", num_labels=10, do_pooling=True)
    model = perturbed(tr.TimmWrapperForImageClassification(config))
    pruner = OptinPruner.from_model(model, {"pixel_values": images[:1]}, config=CONFIG)
    pruned = pruner.prune(images, save_dir=tmp_path)
    loaded = tr.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(images).logits, pruned(images).logits, atol=1e-6)
