"""Run by tests in a process of its own: load saved models as a user would, and write down what they compute.

    python load_alone.py without|late results.safetensors batch.safetensors folder...

`without`: there is no optimum_optin. `late`: it is imported after the first folder was loaded. Every folder is
loaded through Auto classes, with its remote code if it has any, then trained for a step, saved and loaded again.
"""

import importlib.util
import inspect
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Blocker(MetaPathFinder):
    """Makes the package look as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optimum_optin":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def auto_class(folder):
    """The name of the Auto class for a saved model, or its own where no Auto class makes it."""
    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    for task in ("SequenceClassification", "ImageClassification"):
        if f"For{task}" in name:
            return f"AutoModelFor{task}"
    return name if name == "SiglipTextModel" else "AutoModel"


def used(outputs):
    """What the model is used for."""
    if "image_embeds" in outputs and "text_embeds" in outputs:
        import torch

        return torch.cat([outputs.image_embeds, outputs.text_embeds])
    names = ("logits", "pooler_output", "last_hidden_state")
    return next(outputs[name] for name in names if name in outputs)


def _in_half(batch):
    return {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}


def main(mode, results, batch, *folders):
    """Load each folder; the results' names are `folder name.what`."""
    if mode == "without" and importlib.util.find_spec("optimum_optin"):  # installed among its dependencies
        sys.meta_path.insert(0, Blocker())

    import torch
    import transformers as tr
    from safetensors.torch import load_file, save_file

    inputs = load_file(batch)
    outputs = {}
    for folder in map(Path, folders):
        trust = {"trust_remote_code": True} if (folder / "modeling_optin.py").exists() else {}
        auto = getattr(tr, auto_class(folder))
        model = auto.from_pretrained(folder, **trust)
        half = auto.from_pretrained(folder, dtype=torch.bfloat16, **trust)
        accepted = inspect.signature(model.forward).parameters
        batch = {name: value for name, value in inputs.items() if name in accepted}
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            outputs[f"{folder.name}.logits"] = used(model(**batch))
            outputs[f"{folder.name}.half"] = used(half(**_in_half(batch))).float()
            base = model if auto is type(model) else tr.AutoModel.from_pretrained(folder, **trust)
            if base.main_input_name == model.main_input_name:  # that of CLIP's classifier of images has both towers
                outputs[f"{folder.name}.hidden"] = base(**batch)[0]

        (used(model(**batch)) - 1).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        model.save_pretrained(folder / "tuned")
        again = auto.from_pretrained(folder / "tuned", **trust)
        with torch.no_grad():
            outputs[f"{folder.name}.tuned"] = used(model(**batch))
            outputs[f"{folder.name}.tuned again"] = used(again(**batch))
        if mode == "late":
            import optimum_optin  # noqa: F401
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, results)
    assert ("optimum_optin" in sys.modules) == (mode == "late")


if __name__ == "__main__":
    main(*sys.argv[1:])
