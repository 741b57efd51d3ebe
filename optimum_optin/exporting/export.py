"""Exports: a model in a folder of its own for another runtime, checked against the model before it is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging

from ..files.folders import atomic_folder, check_folder
from ..inputs.modalities import likely_modality
from ..keeping.doors import keeping
from ..models.identity import device_of, is_of_transformers, name_of
from ..publishing.card import own_card
from ..publishing.hub import CARD_FILE
from ..publishing.origin import Origin
from ..publishing.writing import is_saved_part, save_part
from ..storage.entry import METHOD, noted_in
from ..storage.loading import load_processor
from .agreement import Agreement, agreement, tolerance
from .empty import empty_values
from .formats import ExportFormat, format_named
from .notes import EXPORT_FILE, Export, card_with_note, versions, write_note
from .onnx_files import in_int8
from .programs import exported, quiet
from .samples import given_batches, made_up_batches, to_check_on, traced

logger = logging.get_logger(__name__)

QUANTIZED = ("int8",)
_LEAST_LABELS, _MOST_DISTANCE = 0.97, 0.2  # beyond which quantization is warned of


@keeping("model")
def export_model(
    model: nn.Module,
    save_directory: str | os.PathLike,
    to: str = "onnx",
    *,
    data: Any = None,
    processor: Any = None,
    quantize: str | None = None,
    num_samples: int = 48,
) -> Export:
    """Export a model into a folder, with its processor and card; nothing is left there if it does not do the same.

    Batch and length stay open. The export is loaded from the folder and compared with the model on samples of other
    numbers and lengths than those that it was traced on, with padding among them.

    Args:
        model: of transformers or a plain module, dense or pruned; unchanged.
        save_directory: a new or empty folder, or one with an earlier export to the same format.
        to: `"onnx"`, `"torch-export"` or `"openvino"`.
        data: samples to check on, in whatever form calibration data may have; of a plain module, a batch of its inputs
            by name. `None` makes some up, of which labels say little.
        processor: the model's tokenizer or the like; `None` takes what stands beside its weights.
        quantize: `"int8"` makes weights of 8 bits of the ONNX file afterwards, by ONNX Runtime, with activations
            quantized as they come; the folder then holds that one.
        num_samples: samples of the data to check on at most.

    Returns:
        What was written, and how far it is from the model.

    Raises:
        ImportError: a package is not installed; says how to install it.
        ValueError: an unknown format, samples that do not fit, or an export that does not do what the model does,
            with how far it is off.
        FileExistsError: the folder holds something else.
        OSError: see `check_folder`.

    Example:

        export_model(model, "sst2-onnx", to="onnx", data=["a gripping film", ...], quantize="int8")
    """
    form = check_export(save_directory, to, quantize)
    place = name_of(model) if is_of_transformers(model) else ""
    given = processor is not None
    if not given and place:
        processor = load_processor(place, likely_modality(model))
    batches = made_up_batches(model, processor) if data is None else given_batches(data, model, processor, num_samples)
    batches = [{name: value.to(device_of(model)) for name, value in batch.items()} for batch in batches]
    program = exported(model, traced(batches), to)
    if empty := empty_values(program.program):
        logger.warning(f"the graph has values with a dimension of zero ({', '.join(empty[:3])}): do not quantize it.")
    target = Path(save_directory).resolve()
    with atomic_folder(target) as draft:
        program.save_pretrained(draft)
        check = _checked(model, draft, to_check_on(batches), form)
        quantized = None
        if quantize is not None:
            component = next(iter(program.components.values()))
            component.program = in_int8(component.program)
            program.save_pretrained(draft)
            quantized = _compared(model, draft, to_check_on(batches), form)
            _warn_if_far(quantized, quantize, data is not None)
        made = Export(
            to=to,
            quantize=quantize,
            model=type(model).__name__,
            pruned=_is_pruned(model),
            made_from=place,
            samples="made up" if data is None else "given",
            check=check,
            tolerance=tolerance(model),
            quantized=quantized,
            files=_sizes(draft),
            model_bytes=sum(each.numel() * each.element_size() for each in model.parameters()),
            versions=versions(form),
        )
        if is_saved_part(processor):
            save_part(processor, draft)
        Origin(model, processor_given=given).copy_companions(draft, target, processor)
        write_note(draft, made)
        card = own_card(Path(place)) if place and Path(place).is_dir() else None
        (draft / CARD_FILE).write_text(card_with_note(card, made, target.name), encoding="utf-8")
    return made


def check_export(save_directory: str | os.PathLike, to: str, quantize: str | None = None) -> ExportFormat:
    """Raise if an export cannot be made here, whatever the model; return its format.

    Raises:
        ImportError, ValueError, FileExistsError, OSError: see `export_model`.
    """
    form = format_named(to)
    if quantize is not None and (quantize not in QUANTIZED or to != "onnx"):
        raise ValueError(f"quantize={quantize!r} with to={to!r} must be None, or 'int8' with to='onnx'.")
    form.check()
    folder = check_folder(save_directory, [EXPORT_FILE, CARD_FILE])
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    there = [name for name in there if not name.startswith(".")]
    if there and not (EXPORT_FILE in there and form.file in there):
        raise FileExistsError(
            f"{save_directory} holds {', '.join(there[:3])}, which an export to {to} would mix with: give a new folder."
        )
    return form


def _checked(model: nn.Module, folder: Path, batches: list, form: ExportFormat) -> Agreement:
    """How far the export in a folder is from the model.

    Raises:
        ValueError: farther than rounding explains.
    """
    found, allowed = _compared(model, folder, batches, form), tolerance(model)
    if not found.distance <= allowed:
        raise ValueError(
            f"the export to {form.name} does not do what the model does: the relative distance of their outputs is "
            f"{found.distance:.1e}, and at most {allowed:.0e} comes from rounding. Nothing was saved."
        )
    return found


def _compared(model: nn.Module, folder: Path, batches: list, form: ExportFormat) -> Agreement:
    from transformers.exporters import ExportedModel

    with quiet():
        export = ExportedModel.from_pretrained(folder, device=form.device)
    known = next(iter(export.components.values())).metadata.kwargs
    return agreement(model, lambda batch: export(**{name: batch[name] for name in known if name in batch}), batches)


def _warn_if_far(found: Agreement, quantize: str, given: bool) -> None:
    labels = given and found.labels is not None and found.labels < _LEAST_LABELS
    if labels or not found.distance <= _MOST_DISTANCE:
        logger.warning(
            f"in {quantize} the model is not what it was ({found}): measure it on its task, and compare with the dense "
            "model in the same precision."
        )


def _is_pruned(model: nn.Module) -> bool:
    entry = noted_in(model)
    data = entry if entry is None or isinstance(entry, Mapping) else entry.to_dict()
    return data is not None and data.get("quant_method") == METHOD


def _sizes(folder: Path) -> dict[str, int]:
    return {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix not in (".json", ".md")
    }
