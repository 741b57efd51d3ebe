"""Companions: files beside the weights of a dense model that belong to the pruned one as well.

These are vocabularies and other settings of processors, custom code, licences, and the further modules of
sentence-transformers with their weights; never the model's own weights in any format, what a training left, or pickles.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from safetensors.torch import save_file
from transformers.utils import logging

from ..files.links import stays_inside
from ..files.model_files import OLD_TOKENIZER_FILES, is_model_file
from ..hub_id import is_hub_id

logger = logging.get_logger(__name__)

_MODULES = "modules.json"
_OF_PROCESSORS = re.compile(
    r"[\w.-]*(tokenizer|processor)[\w.-]*\.json|(special_tokens_map|added_tokens|normalizer)\.json|[\w.-]*vocab[\w.-]*|"
    r"merges\.txt|bpe\.codes|dict\.txt|[\w.-]*(spiece|sentencepiece|tokenizer|bpe)[\w.-]*\.model|"
    r"[\w.-]+\.(spm|tiktoken|jinja)|chat_template\.json"
)
_OTHERS = re.compile(
    r"(modules|config_sentence_transformers|sentence_\w+_config|generation_config)\.json|"
    r"(LICEN[SC]E|NOTICE|COPYING|COPYRIGHT|USE_POLICY)[\w.-]*",
    re.IGNORECASE,
)
# Weights of this or another format, what a training left, what we write ourselves: left without a warning.
_NOT_NEEDED = re.compile(
    r"config\.json|README.*|optin_.*|\..*|__pycache__|"
    r".*\.(safetensors|bin|h5|msgpack|onnx|onnx_data|onnx\.data|gguf|tflite|mlmodel|mlpackage|ot|pt|pth|ckpt|index)|"
    r".*\.(safetensors|bin|h5|msgpack)\.index.*\.json|"
    r"(onnx|openvino|openvino_model|coreml|original|runs|logs|global_step\d+|checkpoint-\d+)|openvino_.*|"
    r"(trainer_state|training_args|all_results|eval_results|train_results|test_results)\.json|.*tfevents.*|.*\.log"
)
_PICKLED_WEIGHTS = "pytorch_model.bin"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_CODE_NAMED_IN = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", _MODULES)


@dataclass(frozen=True)
class Companions:
    """The companions of a model.

    Args:
        files: name in the saved folder -> the file, or its content.
        left: names in the model's folder that are not taken along, without weights and what a training left.
    """

    files: Mapping[str, Path | bytes]
    left: tuple[str, ...] = ()


def find_companions(
    model: str | os.PathLike,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    **_: Any,
) -> Companions:
    """The companions of a model in a folder or on the Hub; those on the Hub are downloaded.

    Args:
        model: local folder or Hub id.
        subfolder: where in it the model is.
        revision, token, cache_dir, local_files_only: as for `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder or repository, or it cannot be reached.
    """
    folder, subfolder = Path(model), subfolder or ""
    if not folder.is_dir():
        if not is_hub_id(str(model)):
            raise FileNotFoundError(f"{model} is no folder")
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        try:
            folder = _download(str(model), subfolder, options, local_files_only)
        except Exception as error:  # of many kinds, from the network to the cache
            raise FileNotFoundError(f"{model} cannot be read: {error}") from error
    root = (folder / subfolder).resolve()
    if not (root / "config.json").is_file():
        raise FileNotFoundError(f"{root} holds no model")
    for above in [folder.resolve()] if subfolder else [root.parent]:
        for module in _modules(above) if above != root else ():
            if (above / module["path"]).resolve() == root:
                return _of_first_module(above, root)
        if above != root and _modules(above):  # a part of a module, such as one way of a Router: we cannot put it back
            own = _companions(root)
            others = [f"../{entry.name}" for entry in sorted(above.iterdir()) if entry != root and entry.is_dir()]
            return Companions(own.files, (*own.left, *others))
    return _companions(root)


def copy_companions(companions: Companions, draft: Path, target: Path, *, processor_files: bool = True) -> None:
    """Add companions to a saved model that lacks them.

    Args:
        companions: the dense model's companions.
        draft: the folder that the model was saved to.
        target: the folder that it will be moved to; files that are there already are not copied onto themselves.
        processor_files: whether to copy files of a tokenizer or the like.
    """
    for name, content in companions.files.items():
        file, there = draft / name, target / name
        if file.exists() or (not processor_files and _OF_PROCESSORS.fullmatch(name)):
            continue
        try:
            # Saved to the model's own folder, they stay there. Old tokenizer files would be deleted unless written.
            if name not in OLD_TOKENIZER_FILES and _is_same(content, there):
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            _copy(content, file)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            file.unlink(missing_ok=True)  # what cannot be read is no reason to lose the model
            logger.warning(f"{content} cannot be copied, and {name} is missing beside the pruned model: {error}")


def _copy(content: Path | bytes, file: Path) -> None:
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content.name == _PICKLED_WEIGHTS:
        tensors = torch.load(content, map_location="cpu", weights_only=True)
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)
    else:
        shutil.copyfile(content, file)


def _is_same(content: Path | bytes, there: Path) -> bool:
    return isinstance(content, Path) and content.exists() and there.exists() and there.samefile(content)


def _companions(root: Path) -> Companions:
    code, files, left = _names_code(root), {}, []
    others = [module for module in _modules(root) if not _is_transformer(module)]
    folders = [module["path"] for module in others if _is_inside(module["path"])]
    # A normalisation has no settings, and in older versions no files.
    needed = [module["path"] for module in others if not str(module.get("type")).endswith("Normalize")]
    left += [f"{path}/" for path in needed if path in folders and not (root / path).is_dir()]
    for entry in sorted(root.iterdir()):
        name = entry.name
        if entry.is_dir():
            if not _NOT_NEEDED.fullmatch(name) and all(PurePosixPath(path).parts[0] != name for path in folders):
                left.append(f"{name}/")
        elif _is_taken(name, code) and entry.is_file() and stays_inside(entry, root):
            files[name] = entry
        elif not is_model_file(name) and not _NOT_NEEDED.fullmatch(name):
            left.append(name)
    for file in (file for path in folders for file in sorted((root / path).rglob("*")) if file.is_file()):
        inside = file.relative_to(root)
        if any(part.startswith(".") for part in inside.parts):
            continue
        weights = file.with_name("model.safetensors")
        if not stays_inside(file, root):
            left.append(inside.as_posix())
        elif file.name == _PICKLED_WEIGHTS:  # from an older sentence-transformers
            if not weights.exists():
                files[inside.with_name(weights.name).as_posix()] = file
        elif file.suffix in _PICKLES:
            left.append(inside.as_posix())
        else:
            files[inside.as_posix()] = file
    return Companions(files, tuple(left))


def _of_first_module(above: Path, root: Path) -> Companions:
    """The companions of a model that is the first of several modules and has a folder of its own among them."""
    whole, own = _companions(above), _companions(root)
    modules = _modules(above)
    for module in modules:
        if (above / module["path"]).resolve() == root:
            module["path"] = ""
    inside = root.relative_to(above).as_posix() + "/"
    files = {name: file for name, file in whole.files.items() if not name.startswith(inside)}
    left = [name for name in whole.left if not name.startswith(inside)]
    return Companions(
        files | own.files | {_MODULES: json.dumps(modules, indent=2).encode()}, tuple(dict.fromkeys([*left, *own.left]))
    )


def _download(repo_id: str, subfolder: str, options: dict, local_files_only: bool) -> Path:
    """The cached snapshot of a repository, with its companions in it."""
    try:
        if local_files_only:
            raise FileNotFoundError
        names = HfApi(token=options["token"]).list_repo_files(repo_id, revision=options["revision"])
    except Exception:  # no network: what was downloaded with the model is better than nothing
        place = {"cache_dir": options["cache_dir"], "revision": options["revision"]}
        if try_to_load_from_cache(repo_id, _MODULES, **place) is None:  # it is unknown whether there are modules
            logger.warning(
                f"only files of {repo_id} that the cache holds are saved along with the weights, since the Hub was not "
                "asked: modules of sentence-transformers or a licence may be missing."
            )
        return Path(snapshot_download(repo_id, local_files_only=True, **options))
    above = [name for name in names if "/" not in name]
    beside = [name for name in names if subfolder and PurePosixPath(name).parent == PurePosixPath(subfolder)]
    wanted = [name for name in above + beside if _is_taken(PurePosixPath(name).name, code=True)]
    folder = Path(snapshot_download(repo_id, allow_patterns=[*wanted, "config.json"], **options))
    paths = {module["path"] for module in _modules(folder) if _is_inside(module["path"])} - {subfolder}
    inside = [name for name in names if any(PurePosixPath(name).is_relative_to(path) for path in paths)]
    if inside:
        snapshot_download(repo_id, allow_patterns=inside, **options)
    return folder


def _modules(folder: Path) -> list[dict]:
    """The entries of sentence-transformers' `modules.json`; empty without it."""
    try:
        modules = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    whole = isinstance(modules, list) and all(
        isinstance(module, dict) and isinstance(module.get("path"), str) for module in modules
    )
    return modules if whole else []


def _is_transformer(module: Mapping[str, Any]) -> bool:
    return str(module.get("type")).rpartition(".")[2] == "Transformer"


def _names_code(root: Path) -> bool:
    """Whether the model's files name code of its own, which then stands beside them."""
    for name in _CODE_NAMED_IN:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        if '"auto_map"' in text:
            return True
    types = (str(module.get("type")) for module in _modules(root))
    return any(not kind.startswith("sentence_transformers.") for kind in types)


def _is_taken(name: str, code: bool) -> bool:
    if name.startswith(".") or PurePosixPath(name).suffix in _PICKLES or name == "modeling_optin.py":
        return False
    named = _OF_PROCESSORS.fullmatch(name) or _OTHERS.fullmatch(name)
    return bool(named) or (code and name.endswith(".py"))


def _is_inside(path: str) -> bool:
    """Whether a path in `modules.json` stays below its folder; that file is not ours, so it may say anything."""
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path
