"""The text of a model card, as Markdown: what was measured, and nothing that was not."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import ImageProcessingMixin, PreTrainedTokenizerBase

from ..config import BUDGETS, OptinConfig
from ..figures import CalibrationSource, Continuations
from ..files.model_files import MASKS, SWEEP
from ..models.identity import dtype_of, is_of_transformers, type_of
from ..quoting import code_span, in_html, literal, markdown
from ..reasons import reasons_of
from ..report import REPORT_FILE, ROLES, Layers, PruningReport, roles_of
from ..storage.auto_map import REMOTE_FILE
from ..storage.entry import METHOD
from ..storage.tasks import auto_class_of, class_of, task_of
from ..version import __version__
from .module_text import AFTER_LOADING, LIMITS, loading_lines, making_lines

_BAR = 16  # characters
# Class, variable to call it by, and class that loads it.
_PROCESSORS = (
    (PreTrainedTokenizerBase, "tokenizer", "AutoTokenizer"),
    (ImageProcessingMixin, "processor", "AutoImageProcessor"),
)
_OTHER_PROCESSOR = ("processor", "AutoProcessor")


def card_text(
    model: nn.Module,
    report: PruningReport,
    *,
    name: str,
    revision: str | None = None,
    processor: Any = None,
    weights: int | None = None,
    remote_code: bool = False,
    pictures: Collection[str] = (),
) -> str:
    """Our part of the card.

    Args:
        model: the pruned model.
        report: its report.
        name: what the card tells users to load.
        revision: the branch to load from.
        processor: its tokenizer or the like.
        weights: size of the weight files in bytes.
        remote_code: whether the files bring the code to load them.
        pictures: names of the files beside the card that it shows.
    """
    sections = [
        _summary(model, report),
        "## Load it",
        _loading(model, report, name, revision, processor=processor, remote_code=remote_code),
        "## Before and after",
        _comparison(model, report, weights),
        *_accuracy(report),
        *_pictures(report, pictures),
        *_classes(report),
        *_divergence(report),
        "## What is kept",
        _layers(report.layers, report.merges),
        *_left_whole(report),
        "## How it was made",
        _calibration(report),
        _reproduction(model, report),
        "## Limits",
        _LIMITS if is_of_transformers(model) else LIMITS,
        "## Citation",
        _CITATION,
    ]
    return "\n\n".join(sections) + "\n"


def _summary(model: nn.Module, report: PruningReport) -> str:
    base = code_span(report.base.repo_id) if report.base else "a trained model"
    kept = [f"{_kept(report.layers, role)} {ROLES.get(role) or markdown(role)}" for role in roles_of(report.layers)]
    result = (
        "an ordinary `transformers` model" if is_of_transformers(model) else f"a {code_span(type_of(model))} of PyTorch"
    )
    listed = ", ".join([*kept[:-2], " and ".join(kept[-2:])])
    return (
        f"This is {base}, made smaller without training: {listed} are left. The others were removed by optimum-optin, "
        "which implements one-shot pruning with OPTIN (Khaki & Plataniotis, ICLR 2024, "
        "[arXiv 2403.17921](https://arxiv.org/abs/2403.17921)). The result is "
        f"{result} with smaller layers{_merging(report)}."
    )


def _merging(report: PruningReport) -> str:
    if not report.merges:
        return ""
    return (
        f" that merges {sum(report.merges.values())} of {report.tokens} tokens on the way, as ToMe does (Bolya et al., "
        "ICLR 2023, [arXiv 2210.09461](https://arxiv.org/abs/2210.09461)), and has all of them again in the end"
    )


def _loading(
    model: nn.Module,
    report: PruningReport,
    name: str,
    revision: str | None,
    *,
    processor: Any,
    remote_code: bool,
) -> str:
    if not is_of_transformers(model):
        return _code(loading_lines(type_of(model), name, revision)) + AFTER_LOADING
    loaded = {"model": auto_class_of(model)}
    classes = dict(loaded) if class_of(model) else {}
    if processor is not None:
        variable, loader = next((each for kind, *each in _PROCESSORS if isinstance(processor, kind)), _OTHER_PROCESSOR)
        classes[variable] = loaded[variable] = loader
    address = literal(name) if revision is None else f"{literal(name)}, revision={literal(revision)}"
    lines = [
        *([f"from transformers import {', '.join(classes.values())}"] if classes else []),
        *([] if class_of(model) else [f"...  # import {type(model).__name__}, the model's own class"]),
        "",
        *(f"{variable} = {loader}.from_pretrained({address})" for variable, loader in loaded.items()),
    ]
    if report.config.get("layout") == "uniform":
        return _code(lines) + "\n\nEvery layer keeps equally many units, so `transformers` alone loads it."
    text = _code(["import optimum_optin  # lets transformers build the smaller layers", *lines]) + _WITHOUT_IMPORT
    if remote_code:
        trusting = f"model = {loaded['model']}.from_pretrained({address}, trust_remote_code=True)"
        code = _code([f"from transformers import {loaded['model']}", "", trusting])
        text += f"\n\nOr load it without the package, by the code in `{REMOTE_FILE}`:\n\n{code}"
    return text


def _asked(report: PruningReport) -> str:
    if report.flops_requested is not None:
        return f"asked {report.flops_requested:.1%}"
    asked = (f"{name} {report.config[name]}" for name in BUDGETS if report.config.get(name) is not None)
    return markdown(f"asked {', '.join(asked)}")


_WITHOUT_IMPORT = f"""

Without that first line `transformers` warns of an `Unknown quantization type, got {METHOD}` and stops with
``RuntimeError: You set `ignore_mismatched_sizes` to `False` ``: it builds the dense layers, which these weights do
not fit. Install optimum-optin and import it before `from_pretrained`; do not set `ignore_mismatched_sizes=True`, which
would load random weights."""


def _comparison(model: nn.Module, report: PruningReport, weights: int | None) -> str:
    rows = [
        (_counted(report), "", _asked(report), f"{report.flops_achieved:.1%}"),
        _change("MACs of the whole model, counted", report.macs_dense, report.macs_pruned, "M"),
        _change("parameters", report.params_dense, report.params_pruned, "M"),
    ]
    if weights is not None:
        rows.append(_change("weights on disk", report.params_dense * dtype_of(model).itemsize, weights, " MB"))
    sample = "sequence" if is_of_transformers(model) else "sample like the example inputs,"
    note = f"MACs are of one {sample} of {report.tokens} tokens."
    if weights is not None:
        note += f" The dense model's size on disk is its parameters in {_dtype(model)}."
    if report.latency is not None:
        latency = report.latency
        rows.append(
            (
                f"latency, batch of {latency.batch_size} x {latency.tokens} tokens",
                f"{latency.dense_ms:.1f} ms",
                f"{latency.pruned_ms:.1f} ms",
                f"{latency.speedup:.2f}x as fast",
            )
        )
        note += (
            f" Latency is the median of {latency.repeats} runs of both models in turn on "
            f"{markdown(latency.hardware)} ({markdown(latency.device)}), {latency.threads} threads, "
            f"{markdown(latency.dtype)}{'' if latency.backend == 'eager' else ', ' + markdown(latency.backend)}."
        )
    return f"{_table(('', 'dense', 'pruned', 'left'), rows)}\n\n{note}"


def _counted(report: PruningReport) -> str:
    return "MACs of what can be pruned" if report.left_whole else "MACs of the transformer layers"


def _accuracy(report: PruningReport) -> list[str]:
    rows = [
        (
            markdown(entry.task if entry.protocol is None else f"{entry.task}, {entry.protocol}"),
            markdown(entry.split),
            str(entry.samples),
            markdown(metric),
            _spread(value.dense, value.dense_error),
            _spread(value.pruned, value.pruned_error),
        )
        for entry in report.evaluations
        for metric, value in entry.metrics.items()
    ]
    if not rows:
        return []
    table = _table(("task", "split", "samples", "metric", "dense", "pruned"), rows)
    return ["## Accuracy", f"{table}\n\n± is one standard error over the samples."]


def _pictures(report: PruningReport, pictures: Collection[str]) -> list[str]:
    """What both models see in an image, and what other budgets come to; for each file that is there, as a link relative
    to the card."""
    measured = any(entry.task == "semantic-segmentation" for entry in report.evaluations)
    shown = {**({MASKS: _MASKS_SHOW} if measured else {}), SWEEP: _SWEEP_SHOWS}
    return [f"![{text}]({name})\n\n{text}." for name, text in shown.items() if name in pictures]


_MASKS_SHOW = "An image, what the dense model sees in it, and what the pruned one does, a colour for each class"
_SWEEP_SHOWS = "The dense model pruned to several budgets, measured in one run, and what each layer of them keeps"


def _classes(report: PruningReport) -> list[str]:
    """The first metric, class by class, of tasks where it is a mean over classes."""
    parts = []
    for entry in report.evaluations:
        if not entry.classes:
            continue
        metric = next(iter(entry.metrics))
        rows = [
            (markdown(name), _spread(value.dense, None), _spread(value.pruned, None))
            for name, value in entry.classes.items()
        ]
        what = in_html(f"{metric} of {entry.task}, {entry.split}")
        heading = f"<summary>{what}, class by class</summary>"
        parts.append(f"<details>{heading}\n\n{_table(('class', 'dense', 'pruned'), rows)}\n\n</details>")
    return parts


def _divergence(report: PruningReport) -> list[str]:
    found = report.divergence
    if found is None:
        return []
    kind = "samples held out from the refit" if found.held_out else "calibration samples"
    agreed = "" if found.agreement is None else f"; the two agree to {found.agreement:.1%}"
    return [
        f"The outputs' divergence from the dense model's is {found.distance:.4g} on {found.samples} {kind}{agreed}.",
        *_continuations(report.continuations),
    ]


def _continuations(found: Continuations | None) -> list[str]:
    if found is None:
        return []
    kind = "held-out" if found.held_out else "calibration"
    where = f"After {found.prompts} prompts, the first tokens of {kind} samples,"
    tokens = f"{found.tokens} tokens that the dense model writes after each"
    if found.answers:
        where = f"For {found.prompts} {kind} samples,"
        tokens = f"tokens (at most {found.tokens} for each) that the dense model writes"
    return [
        f"{where} it writes {found.agreement:.1%} of the {tokens}. The mean log-likelihood of its own text under "
        f"the dense model is {found.log_likelihood:.2f} nats a token, that of the dense model's text "
        f"{found.dense_log_likelihood:.2f}."
    ]


def _layers(layers: Layers, merges: Mapping[str, int]) -> str:
    listed = roles_of(layers)
    heading = [
        "layer",
        *(name for role in listed for name in (markdown(role), "kept")),
        *["tokens merged after"] * bool(merges),
    ]
    rows = []
    for layer, roles in layers.items():
        counts = (cell(roles, role) for role in listed for cell in (_count, _bar))
        rows.append([markdown(layer), *counts, *[str(merges.get(layer, 0))] * bool(merges)])
    return _table(heading, rows)


def _left_whole(report: PruningReport) -> list[str]:
    """What could not be pruned; for people, so that reasons are cut off where they get long."""
    reasons = reasons_of(report.left_whole)
    if not reasons:
        return []
    lines = []
    for reason in reasons[:_FEW]:
        names = ", ".join(map(code_span, reason.shown))
        more = f" and {reason.more} more" if reason.more else ""
        lines.append(f"- {names}{more}: {markdown(textwrap.shorten(reason.text, _LONG, placeholder=' ...'))}")
    if len(reasons) > _FEW:
        lines.append(f"- {len(reasons) - _FEW} more reasons are in `{REPORT_FILE}`")
    return ["What else was found is left whole:\n\n" + "\n".join(lines)]


_FEW = 8  # reasons
_LONG = 300  # characters of one


def _calibration(report: PruningReport) -> str:
    calibration = report.calibration
    if calibration is None:
        return f"The calibration data are not recorded; their samples have {report.tokens} tokens on average."
    source = " ".join(code_span(name) for name in (calibration.dataset, calibration.config, calibration.split) if name)
    of = f" of {source}" if source else ""
    seed = f", drawn with seed {literal(report.config['seed'])}" if "seed" in report.config else ""
    paired = report.continuations is not None and report.continuations.answers  # whose labels may be texts that count
    without = "" if paired else " without their labels"
    return f"Calibration: {calibration.samples} samples{of}{without}, {report.tokens} tokens on average{seed}."


def _reproduction(model: nn.Module, report: PruningReport) -> str:
    task, base = task_of(model), report.base
    arguments = [literal(base.repo_id if base else "path/to/the/dense/model")]
    arguments += [f"task={literal(task)}"] if task else []
    arguments += [f"revision={literal(base.commit)}"] if base and base.commit else []
    defaults = OptinConfig().to_dict()
    settings = {
        name: value
        for name, value in report.config.items()
        if value is not None and (name == "flops" or value != defaults.get(name))
    }
    if not is_of_transformers(model):
        lines = making_lines(type_of(model), _arguments(settings))
        return f"{_code(lines)}\n\nVersions: {_versions()}."
    lines = [
        "from optimum_optin import OptinConfig, OptinPruner",
        "",
        f"pruner = OptinPruner.from_pretrained({', '.join(arguments)})",
        _calibration_line(report.calibration),
        f"config = OptinConfig({_arguments(settings)})",
        'model = pruner.prune(calibration, config, save_dir="pruned")',
    ]
    return f"{_code(lines)}\n\nVersions: {_versions()}."


def _versions() -> str:
    return (
        f"optimum-optin {__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


_DRAWN = ("split", "num_samples", "seed", "text_columns")


def _calibration_line(calibration: CalibrationSource | None) -> str:
    if calibration is None or calibration.dataset is None:
        return "calibration = ...  # your calibration data: a datasets.Dataset, a list of strings, a DataLoader"
    names = [literal(name) for name in (calibration.dataset, calibration.config) if name]
    options = _arguments({name: calibration[name] for name in _DRAWN if name in calibration})
    return f"calibration = pruner.get_calibration_dataset({', '.join(names)}, {options})"


_LIMITS = """\
- It does what its dense model does, faults and biases included; the calibration data decide what was kept, so check it
  on data of your own.
- MACs are not speed: the gain in time depends on the hardware, the batch and the length of the sequences.
- A layer that lost all its heads has no attention weights: `output_attentions=True` skips it.
- A model made from its config alone (`from_config`) is dense and untrained; use `from_pretrained`."""

_CITATION = """\
```bibtex
@inproceedings{khaki2024need,
  title     = {The Need for Speed: Pruning Transformers with One Recipe},
  author    = {Khaki, Samir and Plataniotis, Konstantinos N.},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}
```"""


def _kept(layers: Layers, role: str) -> str:
    counts = [roles[role] for roles in layers.values() if role in roles]
    return f"{sum(count['kept'] for count in counts):,} of {sum(count['units'] for count in counts):,}"


def _count(roles: Mapping[str, Mapping[str, int]], role: str) -> str:
    return f"{roles[role]['kept']} / {roles[role]['units']}" if role in roles else ""


def _bar(roles: Mapping[str, Mapping[str, int]], role: str) -> str:
    """Unicode blocks: unlike a picture, they show wherever Markdown does, and need no second file."""
    if role not in roles:
        return ""
    full = round(_BAR * roles[role]["kept"] / max(roles[role]["units"], 1))
    return "█" * full + "░" * (_BAR - full)


def _change(what: str, before: int, after: int, unit: str) -> tuple[str, str, str, str]:
    return what, f"{before / 1e6:,.2f}{unit}", f"{after / 1e6:,.2f}{unit}", f"{after / before:.1%}"


def _spread(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _dtype(model: nn.Module) -> str:
    return str(dtype_of(model)).removeprefix("torch.")


def _arguments(values: Mapping[str, Any]) -> str:
    """Arguments of a call, as code.

    Raises:
        ValueError: a name or a value cannot stand there.
    """
    if odd := next((name for name in values if not name.isidentifier()), None):
        raise ValueError(f"the configuration has a field {odd!r:.80}, which is no name of an argument.")
    return ", ".join(f"{name}={literal(value)}" for name, value in values.items())


def _code(lines: Iterable[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines, bar = [header, ["---"] * len(header), *rows], "\\|"
    return "\n".join(f"| {' | '.join(cell.replace('|', bar) for cell in line)} |" for line in lines)
