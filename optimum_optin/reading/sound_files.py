"""Sounds as waves: files, their content, arrays with a sampling rate, and what `datasets` makes of them."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .kinds import begins_like_sound, has_sound_suffix

_ARRAYS = ("array", "raw")  # what `datasets` and pipelines of transformers call a wave beside its `sampling_rate`
_RATES = ("sampling_rate", "sample_rate")
_MOST_RATE = 1_000_000
_UNDECODED = {"bytes", "path"}  # how `datasets` keeps a file


@dataclass(frozen=True)
class Wave:
    """A sound.

    Args:
        values: float32, shape (samples,).
        rate: samples per second; `None` if nobody said.
    """

    values: np.ndarray
    rate: int | None = None


def is_sound(value: Any) -> bool:
    """Whether something is a sound beyond doubt: a file by its suffix or its content, a wave with its rate."""
    if isinstance(value, Mapping):
        if set(value) == _UNDECODED:
            content = value["bytes"]
            return begins_like_sound(content[:32]) if content else has_sound_suffix(value["path"] or "")
        return any(name in value for name in _ARRAYS) and any(name in value for name in _RATES)
    if hasattr(value, "get_all_samples"):  # a decoder of torchcodec
        return True
    if isinstance(value, bytes):
        return begins_like_sound(value[:32])
    return isinstance(value, (str, os.PathLike)) and has_sound_suffix(os.fspath(value))


def open_sound(value: Any) -> Wave:
    """The wave of a sound in whatever form; a file is read and closed.

    Args:
        value: a path or the content of a file, also as `datasets` keeps it; a dict with `array` (or `raw`) and
            `sampling_rate`; a decoder of torchcodec; or an array of one dimension. Files of several channels are mixed
            to one. Whole numbers are brought from -1 to 1 by the range of their type.

    Raises:
        OSError: it cannot be read, or its numbers are no wave of one channel.
        ImportError: a file that is no WAV needs soundfile.
    """
    if hasattr(value, "get_all_samples"):
        found = value.get_all_samples()
        return Wave(_mixed(_numbers(found.data).T), _rate(found.sample_rate))
    if isinstance(value, Mapping) and set(value) != _UNDECODED:
        array = next((value[name] for name in _ARRAYS if name in value), None)
        rate = next((value[name] for name in _RATES if value.get(name) is not None), None)
        return Wave(_one_channel(_numbers(array)), None if rate is None else _rate(rate))
    if isinstance(value, (str, os.PathLike, bytes, Mapping)):
        return _of_file(value)
    return Wave(_one_channel(_numbers(value)))


def resampled(wave: Wave, rate: int) -> np.ndarray:
    """The values of a wave at another rate, by SciPy's polyphase filter; as they are if nobody said what theirs is."""
    if wave.rate in (None, rate):
        return wave.values
    from scipy.signal import resample_poly  # slow to import

    common = math.gcd(wave.rate, rate)
    return resample_poly(wave.values, rate // common, wave.rate // common).astype(np.float32)


def sound_problem(values: np.ndarray) -> str | None:
    """What is wrong with a wave, if anything is."""
    if len(values) == 0:
        return "it is empty"
    if not np.isfinite(values).all():
        return "some of its values are NaN or infinite"
    return "it is silent" if (values == values[0]).all() else None


def _of_file(value: Any) -> Wave:
    place = value
    if isinstance(value, Mapping):
        place = value["path"] if value["bytes"] is None else value["bytes"]
        if place is None:
            raise OSError("there is neither a path nor content")
    if not isinstance(place, bytes) and not os.path.exists(place):
        if not isinstance(value, Mapping):
            raise FileNotFoundError("there is no such file")
        return _by_datasets(value)
    content = place
    if not isinstance(place, bytes):
        with open(place, "rb") as file:
            content = file.read()
    if content[:4] in (b"RIFF", b"RIFX"):
        return _wav(content)
    try:
        import soundfile
    except ImportError as error:
        if not begins_like_sound(content[:32]):
            raise OSError("it is no sound of a kind that is known") from error
        raise ImportError(
            f"{_called(value)} is no WAV file, and sounds of other kinds are read by soundfile: pip install soundfile, "
            "or convert them to WAV."
        ) from error
    try:
        values, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:  # soundfile.SoundFileError is a RuntimeError
        raise OSError(str(error)) from error
    return Wave(_mixed(values), _rate(rate))


def _wav(content: bytes) -> Wave:
    from scipy.io import wavfile  # slow to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are not understood
            rate, values = wavfile.read(io.BytesIO(content))
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # ValueError, struct.error, UnboundLocalError, ... for damaged files
        raise OSError(str(error) or type(error).__name__) from error
    return Wave(_mixed(_numbers(values)), _rate(rate))


def _by_datasets(value: Mapping[str, Any]) -> Wave:
    """The wave of a file somewhere on the Hub, or in an archive."""
    from datasets import Audio  # slow to import

    try:
        return open_sound(Audio().decode_example(dict(value)))
    except ImportError as error:
        raise ImportError(
            f"{_called(value)} is not on this machine, and `datasets` reads such sounds by torchcodec: pip install "
            "torchcodec, or download the files first."
        ) from error
    except Exception as error:  # whatever a decoder or the network may raise
        raise OSError(str(error) or type(error).__name__) from error


def _numbers(values: Any) -> np.ndarray:
    """Values as float32; whole numbers from -1 to 1, those of eight bits without a sign around 128 as in WAV files."""
    try:
        array = values.detach().cpu().float().numpy() if _is_of_floats(values) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise OSError(f"{type(values).__name__} is no wave: {error}") from error
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        return (array / 2.0 ** (8 * array.itemsize - 1)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise OSError(f"a wave must be floating-point numbers, int16 or int32, got {array.dtype}")
    return array.astype(np.float32)


def _is_of_floats(values: Any) -> bool:
    return isinstance(values, Tensor) and values.is_floating_point()


def _mixed(values: np.ndarray) -> np.ndarray:
    """One channel of several; shape (samples,) or (samples, channels)."""
    return values if values.ndim == 1 else values.mean(1)


def _one_channel(values: np.ndarray) -> np.ndarray:
    values = values[0] if values.ndim == 2 and len(values) == 1 else values
    if values.ndim != 1:
        raise OSError(
            f"a wave must have one channel, shape (samples,), got {values.shape}: mix channels to one, e.g. by the "
            "mean over them"
        )
    return values


def _rate(rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or int(rate) != rate:
        raise OSError(f"its sampling rate must be a whole number, got {rate!r:.40}")
    if not 0 < rate <= _MOST_RATE:
        raise OSError(f"its sampling rate is {rate}")
    return int(rate)


def _called(value: Any) -> str:
    if isinstance(value, Mapping):
        return value["path"] or "a sound"
    return "a sound" if isinstance(value, bytes) else os.fspath(value)
