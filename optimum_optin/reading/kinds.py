"""What is in a file: told by its content where that speaks for itself, else by its suffix."""

from __future__ import annotations

import re
from pathlib import Path

# Suffix -> kind.
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jfif .jpe .png .apng .bmp .gif .webp .tif .tiff .avif .heic .heif .jp2 .jxl .ico .ppm .pgm".split()
)
SOUND_SUFFIXES = tuple(".wav .wave .flac .ogg .oga .opus .mp3 .m4a .aac .aif .aiff .au .wma".split())
# How the content of a file begins.
_IMAGES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM.{4}\0\0\0\0|\0\0\x01\0[^\0]\0|"
    rb"....ftyp(?:avif|avis|heic|heix|hevc|mif1|msf1)|\0\0\0\x0cjP  |\0\0\0\x0cJXL |\xff\x0a",
    re.DOTALL,
)
_SOUNDS = re.compile(
    rb"RIFF....WAVE|RIFX....WAVE|RF64....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfb]|FORM....AIF[FC]|\.snd|....ftypM4A",
    re.DOTALL,
)
_PARQUET = b"PAR1"
_PACKED = (b"\x1f\x8b\x08", b"PK\3\4")  # by gzip, zip
_POINTER = b"version https://git-lfs."


def kind_of(file: Path) -> str | None:
    """`"csv"`, `"tsv"`, `"json"`, `"parquet"`, `"text"`, `"image"`, `"sound"`, or `None` for what is not read.

    A file that begins like an image, a sound or like Parquet is one, whatever it is called. A file with an image's or a
    sound's suffix counts as one even if it cannot be read.

    Raises:
        ValueError: its suffix is one that is read, but it is packed, or a pointer of Git LFS.
    """
    with file.open("rb") as content:
        start = content.read(32)
    if _IMAGES.match(start):
        return "image"
    if start.startswith(_PARQUET):
        return "parquet"
    if _SOUNDS.match(start):
        return "sound"
    if has_image_suffix(file):
        return "image"
    if has_sound_suffix(file):
        return "sound"
    kind = SUFFIXES.get(file.suffix.lower())
    if kind and start.startswith(_PACKED):
        raise ValueError(f"{file} is packed: unpack it first.")
    if kind and start.startswith(_POINTER):
        raise ValueError(f"{file} is a pointer of Git LFS, not the file that it stands for: run `git lfs pull`.")
    return kind


def has_image_suffix(name: str | Path) -> bool:
    """Whether a name has an image's suffix."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def has_sound_suffix(name: str | Path) -> bool:
    """Whether a name has the suffix of a sound."""
    return Path(name).suffix.lower() in SOUND_SUFFIXES


def begins_like_sound(content: bytes) -> bool:
    """Whether the content of a file begins like that of a sound."""
    return bool(_SOUNDS.match(content))
