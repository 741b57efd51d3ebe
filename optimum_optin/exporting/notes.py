"""Notes of an export: what it was made from and how it was checked, as a JSON file and as a part of the card."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..quoting import code_span
from .agreement import Agreement
from .formats import ExportFormat

EXPORT_FILE = "optin_export.json"
BEGIN, END = "<!-- optimum-optin export: written by export_model -->", "<!-- end of optimum-optin export -->"
_PART = re.compile(f"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)


@dataclass(frozen=True)
class Export:
    """What was exported, and what was found when it was checked.

    Args:
        to: the format.
        quantize: `"int8"`, or `None`.
        model: class of the model.
        pruned: whether it was pruned with optimum-optin.
        made_from: the folder or Hub id that the model was loaded by; empty for a model made in memory.
        samples: `"given"` or `"made up"`.
        check: how far the export is from the model, before it was quantized.
        tolerance: the relative distance that was allowed.
        quantized: how far the quantized export is from the model; `None` if it was not quantized.
        files: name -> bytes of each file that the runtime reads.
        model_bytes: bytes of the model's weights.
        versions: package -> version.
    """

    to: str
    quantize: str | None
    model: str
    pruned: bool
    made_from: str
    samples: str
    check: Agreement
    tolerance: float
    quantized: Agreement | None
    files: Mapping[str, int]
    model_bytes: int
    versions: Mapping[str, str]

    def to_dict(self) -> dict:
        """The fields, as JSON can hold them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def __str__(self) -> str:
        size, before = (number / 1e6 for number in (sum(self.files.values()), self.model_bytes))
        lines = [
            f"{self.model} exported to {self.to}{f', {self.quantize}' if self.quantize else ''}: "
            f"{', '.join(self.files)} ({size:.1f} MB; the model's weights are {before:.1f} MB)",
            f"checked on {self.samples} samples: {self.check}",
        ]
        if self.quantized is not None:
            lines.append(f"in {self.quantize}: {self.quantized}")
        return "\n".join(lines)


def versions(form: ExportFormat) -> dict[str, str]:
    """What wrote an export: package -> version."""
    found = {"python": platform.python_version()}
    for package in ("optimum-optin", "torch", "transformers", *form.needs):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # it is imported from a folder
            continue
    return found


def card_with_note(card: str | None, export: Export, title: str) -> str:
    """The card of the model with a part on the export, in the place of one that is there already.

    Args:
        card: the text of the model's card; `None` for none.
        export: what was exported.
        title: of a card where there is none.
    """
    card = _PART.sub("\n", card) if card else f"# {title}\n"
    return f"{card.rstrip()}\n\n{BEGIN}\n\n{_text(export)}\n{END}\n"


def _text(export: Export) -> str:
    size, before = (number / 1e6 for number in (sum(export.files.values()), export.model_bytes))
    source = f"loaded as {code_span(export.made_from)}" if export.made_from else "made in memory"
    source += ", pruned with optimum-optin" if export.pruned else ""
    rows = [("before quantization", export.check)] if export.quantized else [("the export", export.check)]
    rows += [(export.quantize, export.quantized)] if export.quantized else []
    lines = [
        f"## This export ({export.to}{f', {export.quantize}' if export.quantize else ''})",
        "",
        f"{', '.join(map(code_span, export.files))} ({size:.1f} MB) are an export of a {code_span(export.model)} "
        f"({source}; {before:.1f} MB of weights).",
        "",
        "```python",
        "from transformers.exporters import ExportedModel",
        "",
        'model = ExportedModel.from_pretrained(".")  # this folder; call it with the inputs by name',
        "```",
        "",
        f"It was compared with the model on {export.samples} samples, of several numbers and lengths, with padding:",
        "",
        "| | samples | relative distance of the outputs | same labels |",
        "| --- | --- | --- | --- |",
    ]
    for what, found in rows:
        labels = "" if found.labels is None else f"{100 * found.labels:.2f} % of {found.compared}"
        lines.append(f"| {what} | {found.samples} | {found.distance:.1e} | {labels} |")
    lines += ["", f"Versions: {', '.join(f'{name} {number}' for name, number in export.versions.items())}.", ""]
    return "\n".join(lines)


def write_note(folder: Path, export: Export) -> None:
    """Write what is known of an export into its folder."""
    text = json.dumps(export.to_dict(), indent=2)
    (folder / EXPORT_FILE).write_text(f"{text}\n", encoding="utf-8")
