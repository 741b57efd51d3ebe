"""Speech recognition: word and character error rates, with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..annotations.labels import check_kind
from ..annotations.samples import SOUNDS, AnnotatedSamples, check_there, read_annotated
from ..figures import Measurement
from ..media.frames import frames_that_are_real
from ..media.sounds import feature_extractor
from ..reading.samples import is_missing
from ..running.batch import Batch
from ..running.forward import logits_of, run_model
from .errors import characters, edits, error_rate, plain_text, words
from .passes import passed

_TARGETS = ("transcription", "transcript", "text", "sentence", "normalized_text")
_CTC, _WRITES = "ForCTC", "ForConditionalGeneration"


class SpeechRecognition:
    """Word and character error rates of a recognizer of speech.

    Samples come from a folder of sound files with a `metadata.csv` of the columns `file_name` and `transcription`, or
    of such below `validation` and the like; or from a data set with columns `audio` and `transcription` or `text`.

    A model with CTC is read greedily, frame by frame; one that writes (Whisper) by its own `generate`. Both rates are
    edits over all utterances, divided by what was said in them.

    Args:
        exact: compare transcripts with their case and punctuation, too.
    """

    name = "automatic-speech-recognition"

    def __init__(self, exact: bool = False):
        if not isinstance(exact, bool):
            raise ValueError(f"exact={exact!r} must be True or False.")
        self._exact = exact

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> AnnotatedSamples:
        """The sounds with their transcripts; see `read_annotated`."""
        found = read_annotated(self.name, _TARGETS, SOUNDS, data=data, data_dir=data_dir, split=split)
        return found.drawn(max_samples)

    def check(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: another kind of model, no processor with a tokenizer and a feature extractor, or samples
                without a transcript.
        """
        check_kind(model, processor, self.name, (_CTC, _WRITES), needs="processor")
        feature_extractor(processor)
        if getattr(processor, "tokenizer", None) is None:
            raise ValueError(
                f"{self.name} needs a processor with a tokenizer, which says what the model's outputs spell, got "
                f"{type(processor).__name__}: pass AutoProcessor.from_pretrained(...) as processor=."
            )
        targets = samples.targets()
        for place, target in enumerate(targets):
            if is_missing(target):
                check_there(target, samples.name(place), "transcript")
            if not isinstance(target, str):
                raise ValueError(
                    f"{samples.name(place)} has the transcript {target!r:.40}: it must be text, in a column of strings."
                )
        if not any(self._compared(target) for target in targets):
            raise ValueError(f"all transcripts of {samples.source} are empty: there is no rate of errors.")

    def check_each(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Transcripts were checked with the model; a sound that cannot be read shows when it is its turn."""

    def measure(self, model: nn.Module, processor: Any, samples: AnnotatedSamples, batch_size: int) -> Measurement:
        """The error rates.

        Raises:
            ValueError: outputs that are no logits by frame, or not finite; or a sound that cannot be read.
        """
        heard: list[str] = [""] * len(samples)
        for each in passed(
            model, processor, samples, batch_size, task=self.name, ask=lambda batch: _spelled(model, processor, batch)
        ):
            for place, text in zip(each.places, each.outputs, strict=True):
                heard[place] = text
        pairs = [
            (self._compared(said), self._compared(text)) for said, text in zip(samples.targets(), heard, strict=True)
        ]
        metrics = {}
        for name, parts in (("wer", words), ("cer", characters)):
            units = [(parts(said), parts(text)) for said, text in pairs]
            metrics[name] = error_rate([edits(*unit) for unit in units], [len(said) for said, _ in units])
        how = "as they are" if self._exact else "without case and punctuation"
        return Measurement(metrics, described={"protocol": f"transcripts compared {how}"})

    def show(self, samples: AnnotatedSamples, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a transcript."""
        return {}

    def _compared(self, text: str) -> str:
        return " ".join(text.split()) if self._exact else plain_text(text)


def _spelled(model: nn.Module, processor: Any, batch: Batch) -> list[str]:
    """What a model makes of each sound of a batch, as text."""
    if not any(kind.__name__.endswith(_CTC) for kind in type(model).__mro__) and hasattr(model, "generate"):
        written = model.generate(**batch, do_sample=False, num_beams=1)
        return processor.tokenizer.batch_decode(written, skip_special_tokens=True)
    logits = logits_of(run_model(model, batch))
    if logits is None or logits.dim() != 3:
        shape = None if logits is None else tuple(logits.shape)
        raise ValueError(
            f"{SpeechRecognition.name} needs logits of shape (batch, frames, signs), {type(model).__name__} gives "
            f"{shape}."
        )
    if not logits.isfinite().all():
        raise ValueError(f"the model's outputs on {SpeechRecognition.name} are not finite: its weights are damaged.")
    real = frames_that_are_real(model, batch, logits.shape[1])
    return [processor.tokenizer.decode(_greedy(each, mask)) for each, mask in zip(logits, real, strict=True)]


def _greedy(logits: Tensor, real: Tensor) -> list[int]:
    """The likeliest sign of every real frame; the tokenizer takes repeated ones and blanks together."""
    return logits[real.to(logits.device)].argmax(-1).tolist()
