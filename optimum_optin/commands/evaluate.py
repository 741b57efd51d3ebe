"""Measure a model on a task of texts, images or sounds; --dense compares it with another.

--revision and --subfolder are those of --model.
"""

from __future__ import annotations

import argparse

from ..audio_tasks import SpeechRecognition
from ..command_line.arguments import add_comparison, add_loading, load_dense, loading_options, report_to_update
from ..command_line.options import add_options, given
from ..evaluation.comparison import compare, evaluate_model
from ..evaluation.registry import KNOWN, find_task
from ..figures import plain, shown
from ..image_tasks import SemanticSegmentation
from ..inputs.modalities import likely_modality
from ..publishing.rescue import note_figures
from ..storage.loading import load_model, load_processor
from ..text_tasks import Perplexity, Translation

_OPTIONS = ("data", "data_dir", "split", "batch_size", "max_samples")
_GROUPS = {
    "segmentation": (SemanticSegmentation, ("ignore_index", "reduce_labels")),
    "perplexity": (Perplexity, ("block_size", "stride")),
    "speech recognition": (SpeechRecognition, ("exact",)),
    "summarization and translation": (Translation, ("text_columns", "max_new_tokens", "tokenize")),
}
_OF_TASKS = tuple(name for _, names in _GROUPS.values() for name in names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("--task", required=True, help=f"one of {', '.join(KNOWN)}")
    parser.add_argument("--model", required=True, metavar="MODEL", help="local folder or Hub id of the model")
    add_comparison(parser, required=False)
    add_options(parser, evaluate_model, _OPTIONS)
    for title, (task, names) in _GROUPS.items():
        add_options(parser.add_argument_group(title), task, names)
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load the model, or both, and measure."""
    find_task(arguments.task, **given(arguments, _OF_TASKS))  # an unknown one is refused before the model is loaded
    report = report_to_update(arguments)
    loading, options = loading_options(arguments), given(arguments, (*_OPTIONS, *_OF_TASKS))
    model = load_model(arguments.model, None, **loading)
    processor = load_processor(arguments.model, likely_modality(model), **loading)
    pictures = {}
    if arguments.dense is None:
        entry = evaluate_model(model, processor, arguments.task, **options)
        how = f" ({entry['protocol']})" if "protocol" in entry else ""
        lines = [f"{entry['task']}, {entry['split']}, {entry['samples']} samples{how}"]
        for name, measured in entry["metrics"].items():
            lines.append(f"{name}: {shown(name, measured['value'], measured['error'])}")
    else:
        models = {"dense": load_dense(arguments), "pruned": model}
        found = compare(models, processor, arguments.task, **options)
        entry, pictures = found.entry, found.files
        lines = [str(entry)]
    result = {"model": arguments.model, **plain(entry)}, "\n".join(lines)
    if report is not None:
        note_figures(arguments.model, report.evaluated(entry), result, pictures)
    return result
