"""Text of files in UTF-8, or in UTF-16 with its mark: read, split into lines, and cleaned of what is no text."""

from __future__ import annotations

import codecs
from pathlib import Path

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NEWLINE = b"\n"


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without its mark, or in UTF-16 with one.

    Raises:
        ValueError: another encoding; names file, line and byte.
    """
    content = file.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        raise ValueError(
            f"{file} is not text in UTF-8: a zero byte in line {content.count(_NEWLINE, 0, content.index(0)) + 1}. If "
            "it is UTF-16 without its mark, convert it first: `iconv -f UTF-16LE -t UTF-8 FILE > NEW`."
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(_NEWLINE, 0, error.start) + 1
        raise ValueError(
            f"{file} is not text in {encoding.removesuffix('-sig').upper()}: byte 0x{content[error.start]:02x} in line "
            f"{line} ({error.reason}). Convert it first, from Latin-1 for instance with "
            "`iconv -f LATIN1 -t UTF-8 FILE > NEW`."
        ) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends. Form feeds, U+2028 and other characters at which `str.splitlines` splits
    stay in the line.
    """
    end = "\n" if "\n" in text else "\r"
    lines = [line.removesuffix("\r") for line in text.split(end)]
    return lines if lines[-1] else lines[:-1]


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair, which no encoding has; both halves make a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
