"""The bytes of a file, decompressed, piece by piece."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import zstandard

CHUNK = 1 << 20
"""Bytes of a piece."""
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What a file raises that is cut short, or is not what its suffix says."""


class Chunks:
    """The file's bytes in pieces of about CHUNK. Iterating raises any of BROKEN."""

    def __init__(self, path: str, compression: str):
        self._path, self._compression = path, compression
        self.read = 0
        """Bytes of the file itself, as it lies on the disk, that the pieces so far stand for."""

    def __iter__(self) -> Iterator[bytes]:
        with open(self._path, "rb") as file:
            for piece in _zstd(file) if self._compression == ".zst" else _others(file, self._compression):
                self.read = file.tell()
                yield piece


def _others(file: IO[bytes], compression: str) -> Iterator[bytes]:
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    stream = cast(io.BufferedReader, openers[compression](file) if compression else file)
    while piece := stream.read1(CHUNK):  # what comes before a fault is not lost
        yield piece


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame: zstandard's own reader takes a file that is cut short for a whole one."""
    frame = None
    while piece := file.read(CHUNK // 4):
        while piece:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            decompressed = frame.decompress(piece)
            if decompressed:
                yield decompressed
            piece, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends in the middle of a zstd frame")
