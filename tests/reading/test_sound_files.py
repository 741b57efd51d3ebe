"""Sounds as waves: every form of WAV, arrays and dicts, and what cannot be read."""

import io
import sys
import wave

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from optimum_optin.reading.sound_files import Wave, is_sound, open_sound, resampled, sound_problem
from optimum_optin.reading.sources import read_calibration

TONE = (0.5 * np.sin(np.arange(400) / 7)).astype(np.float32)


def _packed(width):
    """The bytes of a PCM file of so many bytes for each number, written by Python's own module."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(8000)
        whole = np.round(TONE.astype(np.float64) * 2 ** (8 * width - 1)).astype(np.int64)
        if width == 1:
            file.writeframes((whole + 128).astype(np.uint8).tobytes())
        else:
            file.writeframes(b"".join(int(each).to_bytes(width, "little", signed=True) for each in whole))
    return content.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_any_width_are_the_same_wave(width):
    found = open_sound(_packed(width))
    assert found.rate == 8000 and found.values.dtype == np.float32
    np.testing.assert_allclose(found.values, TONE, atol=2.0 ** -(8 * width - 1))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floating_point_files_are_taken_as_they_are(kind, tmp_path):
    wavfile.write(tmp_path / "a.wav", 16_000, TONE.astype(kind))
    for given in (tmp_path / "a.wav", str(tmp_path / "a.wav"), {"bytes": None, "path": str(tmp_path / "a.wav")}):
        found = open_sound(given)
        assert found.rate == 16_000
        np.testing.assert_array_equal(found.values, TONE)


def test_channels_of_a_file_are_mixed_to_one(tmp_path):
    wavfile.write(tmp_path / "a.wav", 16_000, np.stack([TONE, -TONE / 2], axis=1))
    np.testing.assert_allclose(open_sound(tmp_path / "a.wav").values, TONE / 4, atol=1e-7)


def test_arrays_and_dicts():
    whole = np.round(TONE * 2**15).astype(np.int16)
    given = [
        TONE,
        torch.tensor(TONE),
        torch.tensor(TONE)[None],
        TONE.tolist(),
        {"array": TONE, "sampling_rate": 8000, "path": None},
        {"raw": TONE.astype(np.float64), "sampling_rate": 8000.0},
        {"array": whole, "sampling_rate": 8000},
    ]
    for each in given:
        found = open_sound(each)
        np.testing.assert_allclose(found.values, TONE, atol=2**-15)
        assert found.rate == (8000 if isinstance(each, dict) else None)


def test_a_decoder_of_torchcodec_is_read():
    class Samples:
        data, sample_rate = torch.tensor(np.stack([TONE, TONE])), 8000

    class Decoder:
        def get_all_samples(self):
            return Samples

    found = open_sound(Decoder())
    assert found.rate == 8000 and is_sound(Decoder())
    np.testing.assert_array_equal(found.values, TONE)


def test_what_is_a_sound(tmp_path):
    assert is_sound("a.wav") and is_sound(tmp_path / "b.FLAC") and is_sound(_packed(2))
    assert is_sound({"bytes": _packed(2), "path": None}) and is_sound({"bytes": None, "path": "x/a.mp3"})
    assert not is_sound("a story") and not is_sound(b"\x89PNG\r\n") and not is_sound({"bytes": None, "path": "a.png"})
    assert not is_sound({"array": TONE}) and not is_sound(TONE)


def test_resampling_keeps_what_is_heard():
    seconds = np.arange(8000) / 8000
    low = Wave(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), 8000)
    found = resampled(low, 16_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(found) == 16_000
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=0.01)
    assert resampled(Wave(TONE), 16_000) is TONE, "nobody said what its rate is"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"RIFF\x10\0\0\0WAVEfmt ", "."),
        (b"nothing of the kind", "no sound of a kind"),
        (np.zeros((2, 400), np.float32), r"one channel.*\(2, 400\).*mean"),
        (np.zeros(400, np.int64), "floating-point numbers, int16 or int32, got int64"),
        ({"array": TONE, "sampling_rate": 0}, "sampling rate is 0"),
        ({"array": TONE, "sampling_rate": "16k"}, "must be a whole number, got '16k'"),
        ({"bytes": None, "path": None}, "neither a path nor content"),
        ("there/is/no.wav", "no such file"),
    ],
    ids=["cut off", "no sound", "channels", "whole numbers", "rate of 0", "rate in words", "nothing", "no file"],
)
def test_what_cannot_be_read(given, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(OSError, match=message):
        open_sound(given)


def test_other_files_need_soundfile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "a.flac").write_bytes(b"fLaC and so on")
    with pytest.raises(ImportError, match=r"a\.flac is no WAV file.*pip install soundfile"):
        open_sound(tmp_path / "a.flac")


def test_problems_of_waves():
    bad = TONE.copy()
    bad[3] = np.nan
    assert "empty" in sound_problem(TONE[:0]) and "silent" in sound_problem(np.zeros(9)) and "NaN" in sound_problem(bad)
    assert sound_problem(TONE) is None


def test_a_folder_of_sounds_with_transcripts(tmp_path):
    for name in ("a", "b"):
        wavfile.write(tmp_path / f"{name}.wav", 16_000, TONE)
    (tmp_path / "metadata.csv").write_text("file_name,transcription\nb.wav,bee\na.wav,ay\n")
    rows = read_calibration(tmp_path)
    assert rows.column_names == ["audio", "transcription"] and rows["transcription"][:] == ["ay", "bee"]
    (tmp_path / "metadata.csv").write_text("name\nb\n")
    with pytest.raises(ValueError, match="must have a column file_name that names the sounds"):
        read_calibration(tmp_path)


def test_folders_are_classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        wavfile.write(tmp_path / name / "1.wav", 16_000, TONE)
    rows = read_calibration(tmp_path)
    assert rows.features["label"].names == ["cat", "dog"] and list(rows["label"]) == [0, 1]


def test_sounds_beside_images_are_refused(tmp_path):
    wavfile.write(tmp_path / "a.wav", 16_000, TONE)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="of one kind of"):
        read_calibration(tmp_path)
