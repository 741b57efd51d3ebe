"""Remote code: a saved folder's own `modeling_optin.py`, with which it loads where this package is not installed.

The file is an excerpt of this package's sources, so that there is no second implementation to keep equal: what
`plugin.py` needs to rebuild a skeleton, whatever its architecture. It needs torch and transformers alone.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..digests import listing
from ..storage import plugin
from ..storage.auto_map import REMOTE_FILE, own_code
from ..storage.entry import FORMAT_VERSION, METHOD, OptinStructureConfig
from ..storage.rebuild import rebuild
from ..storage.record import upgraded
from ..storage.tasks import class_named, class_of
from ..version import __version__
from .excerpt import excerpt


def check_remote_code(model: nn.Module) -> None:
    """Raise if a folder with this model, once it is pruned, could not bring the code to load it.

    Raises:
        ValueError: the model's class is not part of transformers (even if its name is), or no Auto class makes it.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"remote_code=True is for models of transformers, and {type(model).__name__} is a plain module, whose code "
            "we cannot bring along: load_pruned(factory, folder) loads what is saved."
        )
    if class_of(model) is None:
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(
            f"remote_code=True needs a model whose class is part of transformers, but {kind} is one of your own, whose "
            "code we cannot bring along: save without it. To have transformers save the class's code, call "
            f"{type(model).__name__}.register_for_auto_class(...) before."
        )
    _auto_classes(model.config, [type(model).__name__])


def write_remote_code(folder: str | os.PathLike) -> None:
    """Add `modeling_optin.py` to a saved pruned model, and name it in `config.json` under `auto_map`.

    Args:
        folder: where the model was saved; every `AutoModel...from_pretrained(folder, trust_remote_code=True)` then
            works with transformers alone.

    Raises:
        ValueError: the folder holds no pruned structure, or a model whose class is not part of transformers, or one
            that no Auto class makes.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = AutoConfig.from_pretrained(folder)
    entry = getattr(config, "quantization_config", None) or {}
    if entry.get("quant_method") != METHOD:
        raise ValueError(
            "remote_code=True needs a pruned structure to rebuild, and this model's config has none: a dense model, or "
            "one pruned with layout='uniform', loads with transformers alone."
        )
    _check_named(config)
    classes = _auto_classes(config, config.architectures or [])
    module = REMOTE_FILE.removesuffix(".py")
    text = _remote_code(set(classes.values()), merging=bool(entry.get("tokens")))
    (folder / REMOTE_FILE).write_text(text, encoding="utf-8")
    data = json.loads(path.read_text(encoding="utf-8"))
    if entry["format_version"] < FORMAT_VERSION:  # which needs to know architectures, as the file does not
        kind = getattr(transformers, (config.architectures or sorted(classes.values()))[0])
        data["quantization_config"] = upgraded(kind, config, OptinStructureConfig(**entry)).to_dict()
    data["auto_map"] = data.get("auto_map", {}) | {auto: f"{module}.{name}" for auto, name in classes.items()}
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_named(config: PreTrainedConfig) -> None:
    """Raise if the class that a saved config names is not one of transformers."""
    for name in config.architectures or []:
        foreign = own_code(config, name)
        if foreign or class_named(name) is None:
            raise ValueError(
                f"remote_code=True needs a model whose class is part of transformers, but this folder's {name} "
                f"{f'is in {next(iter(foreign.values()))}' if foreign else 'is not'}: save without it."
            )


def _auto_classes(config: PreTrainedConfig, made: Sequence[str]) -> dict[str, str]:
    """Each Auto class that knows this config -> the class that it makes, by name; one of `made` if it can."""
    if not type(config).__module__.startswith("transformers."):
        raise ValueError(
            f"remote_code=True needs a model that is part of transformers, but {type(config).__name__} comes from "
            f"{type(config).__module__}: save without it."
        )
    classes = {}
    for name, auto in inspect.getmembers(modeling_auto, inspect.isclass):
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None and type(config) in mapping:
            found = mapping[type(config)]
            found = [each.__name__ for each in (found if isinstance(found, tuple) else (found,))]
            classes[name] = next((each for each in found if each in made), found[0])
    if not classes:
        raise ValueError(
            f"remote_code=True needs an Auto class of transformers that makes {', '.join(made)}, and there is none: "
            "save without it, and load with `import optimum_optin` and that class."
        )
    return classes


def _remote_code(classes: Iterable[str], merging: bool) -> str:
    """The text of `modeling_optin.py`: definitions, merging tokens among them if need be, and subclasses."""
    names = ("OptinStructureConfig", "OptinHfQuantizer", "AUTO_QUANTIZATION_CONFIG_MAPPING", "AUTO_QUANTIZER_MAPPING")
    names += ("save_with_digest",)
    instead = {(listing.__name__, "changes"): _NO_LISTING, (listing.__name__, "write_listing"): _LISTS_NOTHING}
    instead |= {} if merging else {(rebuild.__module__, "_merge"): _NO_MERGING}
    imports, definitions = excerpt([(plugin.__name__, name) for name in names], instead)
    parts = [
        _HEADER.format(version=__version__, imports="\n".join(["import transformers", *imports])),
        *definitions,
        _REGISTRATION,
        _PRUNED,
        *(_SUBCLASS.format(name=name) for name in sorted(classes)),
    ]
    return "\n\n\n".join(parts) + "\n"


_HEADER = '''"""Loads this pruned model with torch and transformers alone.

An excerpt of optimum-optin {version} (Apache-2.0), whose sources have it with full comments. Where that package is
installed, `import optimum_optin` does the same.
"""

from __future__ import annotations

{imports}'''

_REGISTRATION = """# The package or another such file may be there already, and does the same if it is no older.
if getattr(AUTO_QUANTIZATION_CONFIG_MAPPING.get(METHOD), "newest", 0) < READER:
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = OptinStructureConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = OptinHfQuantizer"""

_NO_MERGING = '''def _merge(model, layers, schedule):
    """This file came with a model that merges no tokens."""
    raise ValueError("this model merges tokens: load it with its own remote code, or `import optimum_optin`.")'''

_NO_LISTING = '''def changes(folder, found, digest):
    """The package says which."""
    return "names, types or shapes of tensors are others"'''

_LISTS_NOTHING = '''def write_listing(headers, folder):
    """The package writes it."""'''

_PRUNED = '''class Pruned:
    """What the classes below have beside what transformers' have."""

    optin_rebuild = staticmethod(rebuild)

    @classmethod
    def is_custom_code(cls):
        """No: the modules are those of transformers, so their weights are to be renamed on load as there (ViT)."""
        return False

    def save_pretrained(self, *args, **kwargs):
        """As transformers does, with a digest."""
        save_with_digest(super().save_pretrained, self, *args, **kwargs)'''

_SUBCLASS = '''class {name}(Pruned, transformers.{name}):
    """`transformers.{name}`, pruned."""'''
