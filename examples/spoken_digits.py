"""Spoken digits: sequences read by voices of eSpeak NG, in noise, as folders of WAV files with their transcripts.

    pip install --no-deps espeakng-loader==0.2.4
    python examples/spoken_digits.py --save-dir path/to/spoken_digits

The package brings the library and its voices (GPL-3.0; nothing of it is part of optimum-optin), which is called
through `ctypes`. Each utterance has three to seven digits, a voice, a speed, a pitch, a loudness and white noise of
its own, all drawn with the seed. Voices, speeds and pitches are the same in all splits; what is said, and the noise, is
not. `metadata.csv` has the columns file_name and transcription ("3 1 4"), as `datasets` reads it.
"""

import argparse
import csv
import ctypes
import math
import random
import wave
from pathlib import Path

import numpy as np

CACHE = Path.home() / ".cache" / "optimum-optin" / "spoken_digits"
SPLITS = {"train": 3000, "validation": 200, "test": 500}
RATE = 8000
WORDS = "zero one two three four five six seven eight nine".split()
VOICES = ("en-us", "en-gb", "en-us+f1", "en-us+f2", "en-us+f3", "en-us+m1", "en-us+m3", "en-gb+f4", "en-gb+m5")
WORDS_A_MINUTE, PITCH, SIGNAL_TO_NOISE = (130, 230), (25, 75), (0, 20)  # the last in decibels

_SYNCHRONOUS, _CHARS_UTF8 = 2, 1
_SPEED, _PITCH = 1, 3  # espeak_PARAMETER
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """eSpeak NG: says words with a voice, a speed and a pitch."""

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _CHARS_UTF8
        )
        self._parts: list[np.ndarray] = []
        self._callback = _Callback(self._take)  # kept, as the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, words: str, voice: str, speed: int, pitch: int) -> np.ndarray:
        """The wave of some words at `RATE`, from -1 to 1."""
        from scipy.signal import resample_poly

        self._parts.clear()
        self._library.espeak_SetVoiceByName(voice.encode())
        self._library.espeak_SetParameter(_SPEED, speed, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        text = words.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
        sound = np.concatenate(self._parts) / 2**15
        common = math.gcd(RATE, self._rate)
        return resample_poly(sound, RATE // common, self._rate // common)

    def _take(self, samples, count: int, events) -> int:
        if samples and count:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def utterances(speaker: Speaker, count: int, seed: str):
    """Pairs: wave and transcript."""
    drawn, noise = random.Random(seed), np.random.default_rng(list(seed.encode()))
    for _ in range(count):
        digits = [drawn.randrange(10) for _ in range(drawn.randint(3, 7))]
        said = " ".join(WORDS[digit] for digit in digits)
        sound = speaker.say(said, drawn.choice(VOICES), drawn.randint(*WORDS_A_MINUTE), drawn.randint(*PITCH))
        level = np.sqrt(np.mean(sound**2)) * 10 ** (-drawn.uniform(*SIGNAL_TO_NOISE) / 20)
        sound = sound + level * noise.standard_normal(len(sound))
        yield sound * (drawn.uniform(0.2, 0.9) / np.abs(sound).max()), " ".join(map(str, digits))


def write_split(speaker: Speaker, folder: Path, count: int, seed: str) -> None:
    """Write WAV files of 16 bits and their transcripts into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "transcription"))
        for number, (sound, transcript) in enumerate(utterances(speaker, count, seed)):
            name = f"{number:05}.wav"
            with wave.open(str(folder / name), "wb") as output:
                output.setnchannels(1)
                output.setsampwidth(2)
                output.setframerate(RATE)
                output.writeframes((sound * (2**15 - 1)).astype("<i2").tobytes())
            rows.writerow((name, transcript))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-dir", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    speaker = Speaker()
    for split, count in SPLITS.items():
        write_split(speaker, arguments.save_dir / split, count, f"{split} {arguments.seed}")
        print(f"{count} utterances in {arguments.save_dir / split}")


if __name__ == "__main__":
    main()
