"""The bytes of a file, decompressed, piece by piece."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import zstandard

CHUNK = 1 << 20
"""Bytes of a piece."""
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What a file raises that is cut short, or is not what its suffix says."""


def chunks(path: str, compression: str) -> Iterator[bytes]:
    """The file's bytes in pieces of about CHUNK. Raises any of BROKEN."""
    if compression == ".zst":
        yield from _zstd(path)
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with cast(IO[bytes], openers.get(compression, open)(path, "rb")) as stream:
        while piece := stream.read(CHUNK):
            yield piece


def _zstd(path: str) -> Iterator[bytes]:
    """Frame by frame: zstandard's own reader takes a file that is cut short for a whole one."""
    frame = None
    with open(path, "rb") as file:
        while piece := file.read(CHUNK // 4):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                decompressed = frame.decompress(piece)
                if decompressed:
                    yield decompressed
                piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends in the middle of a zstd frame")
