"""Run by tests in a process of its own: load saved models as a user would, and write down what they compute.

    python load_alone.py without|late results.safetensors batch.safetensors folder...

`without`: there is no optimum_optin. `late`: it is imported after the first folder was loaded. Every folder is
loaded through Auto classes, with its remote code if it has any, then trained for a step, saved and loaded again.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Blocker(MetaPathFinder):
    """Makes the package look as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "optimum_optin":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(mode, results, batch, *folders):
    """Load each folder; the results' names are `folder name.what`."""
    if mode == "without" and importlib.util.find_spec("optimum_optin"):  # installed among its dependencies
        sys.meta_path.insert(0, Blocker())

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModel, AutoModelForSequenceClassification

    batch = load_file(batch)
    outputs = {}
    for folder in map(Path, folders):
        trust = {"trust_remote_code": True} if (folder / "modeling_optin.py").exists() else {}
        model = AutoModelForSequenceClassification.from_pretrained(folder, **trust)
        half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16, **trust)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        with torch.no_grad():
            outputs[f"{folder.name}.logits"] = model(**batch).logits
            outputs[f"{folder.name}.half"] = half(**batch).logits.float()
            outputs[f"{folder.name}.hidden"] = AutoModel.from_pretrained(folder, **trust)(**batch)[0]

        model(**batch).logits.square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
        model.save_pretrained(folder / "tuned")
        again = AutoModelForSequenceClassification.from_pretrained(folder / "tuned", **trust)
        with torch.no_grad():
            outputs[f"{folder.name}.tuned"] = model(**batch).logits
            outputs[f"{folder.name}.tuned again"] = again(**batch).logits
        if mode == "late":
            import optimum_optin  # noqa: F401
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, results)
    assert ("optimum_optin" in sys.modules) == (mode == "late")


if __name__ == "__main__":
    main(*sys.argv[1:])
