"""Text files: decompressed and decoded line by line, with the encoding that was detected."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipelines.errors import DataError, Problem
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import charset_normalizer
    import pyarrow as pa
else:  # most jobs have no compressed file and no file in an old encoding
    pa, charset_normalizer = lazy_import("pyarrow"), lazy_import("charset_normalizer")

NumberedRows = Iterator[tuple[int, dict[str, Any]]]
"""Rows by column, each after the line on which it begins (of a file without lines: its index from 1)."""

MAX_LINE_BYTES = 64 << 20
BYTE_ORDER_MARK = "\ufeff"
_SAMPLE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODING_NAMES = {"utf-16": "UTF-16", "utf-32": "UTF-32", "cp1252": "Windows-1252"}


_LATIN_ENCODINGS = ["cp1252", "cp1250", "cp1254", "cp1257"]
"""Encodings that Windows programs use for languages with Latin letters, the most common one first."""


def _open_zstd(path: Path) -> BinaryIO:
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))


def _open_gzip(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb"))


def _open_bz2(path: Path) -> BinaryIO:
    return cast(BinaryIO, bz2.open(path, "rb"))


def _open_xz(path: Path) -> BinaryIO:
    return cast(BinaryIO, lzma.open(path, "rb"))


COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": _open_gzip,
    ".zst": _open_zstd,
    ".bz2": _open_bz2,
    ".xz": _open_xz,
}
"""The suffixes of compressed text files, with the functions that open them for reading."""


def data_suffix(path: Path) -> str:
    """The suffix that names the format, in lower case: that before the suffix of a compression."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed as its suffix says."""
    opener = COMPRESSIONS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def read_error(path: Path, line: int | None = None) -> DataError:
    """The error for a compressed file whose bytes cannot be decompressed any further."""
    kind = path.suffix.lower().removeprefix(".")
    message = f"cannot be decompressed as {kind}"
    return DataError(Problem(f"{message} from here on: it is truncated, damaged or of another format", str(path), line))


DECOMPRESSION_ERRORS = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def is_decompression_error(error: Exception, path: Path) -> bool:
    """Whether reading failed because the compressed bytes are not valid, and not for the disk or permissions."""
    if path.suffix.lower() not in COMPRESSIONS:
        return False
    return isinstance(error, DECOMPRESSION_ERRORS) or (isinstance(error, OSError) and error.errno is None)


@lru_cache(maxsize=64)
def _detect_encoding(path: Path, _modified_ns: int, _size: int, may_guess: bool) -> str:
    with open_bytes(path) as file:
        start = file.read(4)
        for mark, encoding in _BYTE_ORDER_MARKS:
            if start.startswith(mark):
                return encoding
        if b"\0" in start:  # UTF-16 without its mark is valid UTF-8 with a zero between the letters
            return ""
        if not may_guess:
            return "utf-8"
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk, previous = start + file.read(_CHUNK_BYTES), b""
        while chunk:
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return _guess_encoding(previous + chunk + file.read(_SAMPLE_BYTES))
            previous, chunk = chunk, file.read(_CHUNK_BYTES)
    return "utf-8"


def _guess_encoding(sample: bytes) -> str:
    """The encoding of bytes that are not UTF-8, "" if none is plausible."""
    if b"\0" in sample:
        return ""
    non_ascii = sum(byte > 127 for byte in sample)
    letters = sum(bytes([byte]).isalpha() for byte in sample)
    is_latin = non_ascii < 0.3 * (letters + non_ascii)
    matches = charset_normalizer.from_bytes(sample, cp_isolation=_LATIN_ENCODINGS if is_latin else None)
    best = matches.best()
    if best is None:
        return ""
    # A short text does not decide between the encodings of Latin letters: the most common one unless it fits less well.
    common = _LATIN_ENCODINGS[0]
    fitting = (match for match in matches if match.chaos <= best.chaos + 0.1)
    if is_latin and any(common in match.could_be_from_charset for match in fitting):
        return common
    return str(best.encoding)


def detect_encoding(path: Path, *, may_guess: bool) -> str:
    """The encoding of a text file: that of its byte order mark, else UTF-8.

    With `may_guess`, a file that is not UTF-8 has the encoding that its bytes suggest; the caller has to say which.
    Raises DataError if no encoding is plausible.
    """
    status = path.stat()
    try:
        encoding = _detect_encoding(path, status.st_mtime_ns, status.st_size, may_guess)
    except Exception as error:
        if is_decompression_error(error, path):
            raise read_error(path) from None
        raise
    if not encoding:
        raise DataError(
            Problem("is not text in a known encoding (or UTF-16 without its mark); save it as UTF-8", str(path))
        )
    return encoding


def encoding_note(path: Path, *, may_guess: bool) -> str | None:
    """A note on an encoding other than UTF-8, with the first text that it decides on; None for UTF-8."""
    encoding = detect_encoding(path, may_guess=may_guess)
    if encoding == "utf-8":
        return None
    name = _ENCODING_NAMES.get(encoding, encoding)
    if encoding.startswith("utf-"):
        return f"read as {name}"
    for line in text_lines(path, encoding):
        word = next((word for word in line.split() if not word.isascii()), None)
        if word is not None:
            return f"is not UTF-8; read as {name} (as in {word[:30]!r}): if that is wrong, save the file as UTF-8"
    return f"read as {name}"


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yields the lines with their line ends. Byte order marks at the start of the file are removed.

    Raises DataError, with the line, for a line longer than MAX_LINE_BYTES, for bytes that are not of the encoding, and
    for a compressed file that is damaged.
    """
    line_number = 0
    try:
        with open_bytes(path) as file:
            for line in _decoded_lines(file, encoding, path):
                line_number += 1
                yield line.lstrip(BYTE_ORDER_MARK) if line_number == 1 else line
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if is_decompression_error(error, path):
            raise read_error(path, line_number + 1) from None
        raise


def text_chunks(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yields the text in parts of about 1 MB, for a file whose lines may be of any length. Raises as `text_lines`."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, is_first = 1, True
    try:
        with open_bytes(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                text = decoder.decode(chunk)
                yield text.lstrip(BYTE_ORDER_MARK) if is_first else text
                line += text.count("\n")
                is_first = False
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, line + error.object[: error.start].count(b"\n"), encoding) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if is_decompression_error(error, path):
            raise read_error(path, line) from None
        raise


def _decoded_lines(file: BinaryIO, encoding: str, path: Path) -> Iterator[str]:
    if encoding.startswith(("utf-16", "utf-32")):
        yield from _wide_lines(file, encoding, path)
        return
    # The length is limited: a file without line ends would be read into memory completely.
    for line_number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > MAX_LINE_BYTES:
            raise _line_too_long(path, line_number)
        try:
            yield raw.decode(encoding)
        except UnicodeDecodeError:
            raise _wrong_encoding(path, line_number, encoding) from None


def _wide_lines(file: BinaryIO, encoding: str, path: Path) -> Iterator[str]:
    """The lines of a file whose characters have more than one byte, so that bytes cannot be split at a line feed."""
    text = io.TextIOWrapper(file, encoding=encoding, newline="\n")
    line_number = 1
    try:
        while line := text.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise _line_too_long(path, line_number)
            yield line
            line_number += 1
    except UnicodeError:
        raise _wrong_encoding(path, line_number, encoding) from None
    finally:
        text.detach()  # the caller closes the file


def _line_too_long(path: Path, line: int) -> DataError:
    return DataError(Problem(f"exceeds {MAX_LINE_BYTES >> 20} MB; write one row per line", str(path), line))


def _wrong_encoding(path: Path, line: int, encoding: str) -> DataError:
    name = "UTF-8" if encoding == "utf-8" else f"{_ENCODING_NAMES.get(encoding, encoding)}, as the lines before it are"
    return DataError(Problem(f"is not {name}; save the file as UTF-8", str(path), line))
