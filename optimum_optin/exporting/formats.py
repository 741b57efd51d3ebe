"""Formats: the table of what a model can be exported to, and what each needs to be installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

_HOME = "transformers.exporters"


@dataclass(frozen=True)
class ExportFormat:
    """What a model can be exported to.

    Args:
        name: what users call it.
        module: where transformers has its exporter.
        kind: the start of the names of its exporter's class and of its configuration's.
        needs: packages that write and run it, beside PyTorch.
        extra: our extra that brings them; empty for none.
        file: the file of a whole model.
        device: what it is run on when it is checked; `None` for where it was traced.
    """

    name: str
    module: str
    kind: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    file: str = ""
    device: str | None = "cpu"

    def check(self) -> None:
        """Raise if it cannot be written and run here.

        Raises:
            ImportError: names the packages, and says how to install them.
        """
        if missing := [package for package in self.needs if find_spec(package) is None]:
            raise ImportError(
                f"to={self.name!r} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                f"installed: pip install 'optimum-optin[{self.extra}]'."
            )
        if find_spec(_HOME) is None:
            import transformers

            raise ImportError(
                f"to={self.name!r} needs the exporters of transformers, which version {transformers.__version__} does "
                "not have: pip install -U 'transformers>=5.23'."
            )

    def exporter(self) -> Any:
        """A new exporter of transformers."""
        return getattr(importlib.import_module(f"{_HOME}.{self.module}"), f"{self.kind}Exporter")()

    def config(self, **options: Any) -> Any:
        """A configuration of that exporter."""
        return getattr(importlib.import_module(_HOME), f"{self.kind}Config")(**options)


_ONNX, _OPENVINO = ("onnx", "onnxscript", "onnxruntime"), ("openvino",)
FORMATS = {
    each.name: each
    for each in (
        ExportFormat("onnx", "exporter_onnx", "Onnx", _ONNX, "onnx", "model.onnx"),
        ExportFormat("torch-export", "exporter_dynamo", "Dynamo", file="model.pt2", device=None),
        ExportFormat("openvino", "exporter_openvino", "OpenVINO", _OPENVINO, "openvino", "openvino_model.xml"),
    )
}
"""Name -> format."""


def format_named(name: str) -> ExportFormat:
    """A format by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FORMATS:
        raise ValueError(f"to={name!r} must be one of {', '.join(FORMATS)}.")
    return FORMATS[name]
