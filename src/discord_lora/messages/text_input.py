"""Bytes to text without losing any: UTF-8, UTF-16, and whatever an old tool wrote."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

CHUNK_BYTES = 1 << 20
_FALLBACK = "discord_lora.fallback"


def _read_as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Invalid UTF-8 in a chat log is nearly always one old Windows tool's cp1252."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    if not error.encoding.startswith("utf-8"):
        return "\ufffd", error.end
    piece = error.object[error.start : error.end]
    try:
        return piece.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return piece.decode("latin-1"), error.end


codecs.register_error(_FALLBACK, _read_as_cp1252)


def detect_encoding(head: bytes) -> str:
    """The encoding that `head`, the first bytes of a file, speaks for: UTF-8 unless shown."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark, the zero byte of every ASCII character gives UTF-16 away.
    sample = head[:400]
    if len(sample) >= 4 and sample[1::2].count(0) > len(sample) // 3 and 0 not in sample[:1]:
        return "utf-16-le"
    if len(sample) >= 4 and sample[::2].count(0) > len(sample) // 3 and 0 not in sample[1:2]:
        return "utf-16-be"
    return "utf-8"


def decode(data: bytes) -> str:
    """All of `data` as text; never fails."""
    return data.decode(detect_encoding(data[:400]), errors=_FALLBACK)


def decode_utf8(data: bytes) -> str:
    """`data` as UTF-8 text, with bytes that are none read as cp1252; never fails."""
    return data.decode("utf-8", errors=_FALLBACK)


def chunks_of(stream: BinaryIO, encoding: str) -> Iterator[str]:
    """`stream` as text in pieces of about a million characters; never fails on a byte."""
    decoder = codecs.getincrementaldecoder(encoding)(errors=_FALLBACK)
    while data := stream.read(CHUNK_BYTES):
        if text := decoder.decode(data):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def lines_of(stream: BinaryIO, encoding: str) -> Iterator[str]:
    """`stream` as lines that keep their line ends; never fails on a byte."""
    rest = ""
    for chunk in chunks_of(stream, encoding):
        *whole, rest = (rest + chunk).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest
