"""The bytes of a dump's file, decompressed by its name, and the lines of a part of it."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO, cast

import pyarrow as pa

from recipe_ray.errors import FactError
from recipe_ray.store.dumps.values import MAX_ROW_BYTES
from recipe_ray.store.files import filesystem

GZIP_SUFFIX = ".gz"
ZSTD_SUFFIXES = (".zst", ".zstd")
PARQUET_SUFFIXES = (".parquet", ".pq")
BOM = b"\xef\xbb\xbf"
BOM_START = BOM[0]
READ_ERRORS = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What opening and reading raise where a file is missing, damaged or cut short."""

_BUFFER_BYTES = 4 * 1024 * 1024  # a request of S3 each
_HASH_BYTES = 8 * 1024 * 1024


def compression_of(uri: str) -> str:
    """The suffix that says how a file is compressed; empty for a plain one."""
    return next((suffix for suffix in (GZIP_SUFFIX, *ZSTD_SUFFIXES) if uri.lower().endswith(suffix)), "")


def suffix_of(uri: str) -> str:
    """The suffix that tells a file's form, in lower case; empty where its name has none."""
    name = uri.lower().rpartition("/")[2].removesuffix(compression_of(uri))
    return "".join(name.rpartition(".")[1:]) if "." in name else ""


def check_unpacked(uri: str) -> None:
    """Refuse a Parquet file that was compressed as a whole.

    Raises:
        FactError: its name says so.
    """
    if compression := compression_of(uri):
        raise FactError(f"{uri}: Parquet cannot be read out of {compression}; unpack it (Parquet compresses itself)")


def open_dump(uri: str, start: int = 0) -> IO[bytes]:
    """Open a file, decompressed where its name says so; a plain one from byte `start` on.

    Raises:
        READ_ERRORS: here and while it is read.
    """
    filesystem_, path = filesystem(uri)
    compression = compression_of(uri)
    if not compression:
        file = filesystem_.open_input_file(path)
        file.seek(start)
        return io.BufferedReader(cast(io.RawIOBase, file), _BUFFER_BYTES)
    assert start == 0, "a compressed file is read whole"
    stream = filesystem_.open_input_stream(path, compression=None, buffer_size=_BUFFER_BYTES)
    if compression == GZIP_SUFFIX:
        unzipped = gzip.GzipFile(fileobj=cast(IO[bytes], stream))
        return io.BufferedReader(cast(io.RawIOBase, unzipped), _BUFFER_BYTES)
    return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(stream, "zstd")), _BUFFER_BYTES)


def without_bom(line: bytes) -> bytes:
    """A line without the byte order marks that it begins with."""
    while line.startswith(BOM):
        line = line[len(BOM) :]
    return line


def hash_file(uri: str) -> bytes:
    """16 bytes over a file as it lies there.

    Raises:
        FactError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    filesystem_, path = filesystem(uri)
    try:
        with filesystem_.open_input_stream(path, compression=None) as stream:
            while part := stream.read(_HASH_BYTES):
                digest.update(part)
    except OSError as error:
        raise unreadable(uri, error) from error
    return digest.digest()


def unreadable(uri: str, error: Exception, at: str = "") -> FactError:
    """Say that a file, or the rest of it, cannot be read; `at` as in ` at line 7`."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return FactError(f"{uri}: cannot be read{at} ({reason}); check that the file is whole and readable")


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line of over MAX_ROW_BYTES: how it begins. The rest was passed over."""

    start: bytes


def read_lines(uri: str, start: int = 0, end: int | None = None) -> Generator[bytes | TooLong, None, None]:
    """Yield the lines that begin at bytes [start, end) of a file, blank ones too, with their ends, without a BOM.

    A BOM may begin any line: files that were joined with `cat` have one in the middle.

    Args:
        uri: of the file.
        start: 0 where it is compressed.
        end: None for the end of the file.

    Raises:
        FactError: the rest of the file cannot be read.
    """
    number = 0
    try:
        # A line that begins at `start` is found by the end of the one before it, which is another split's.
        with open_dump(uri, max(start - 1, 0)) as stream:
            position = start
            if start:
                position = start - 1 + _skip_line(stream)
            while end is None or position < end:
                line = stream.readline(MAX_ROW_BYTES + 1)
                if not line:
                    return
                number += 1
                position += len(line)
                if len(line) <= MAX_ROW_BYTES:
                    yield without_bom(line) if line[0] == BOM_START else line
                    continue
                if not line.endswith(b"\n"):
                    position += _skip_line(stream)
                yield TooLong(line)
    except READ_ERRORS as error:
        part = f" of the part from byte {start} on" if start else ""
        raise unreadable(uri, error, f" at line {number + 1}{part}") from error


def read_pieces(uri: str) -> Generator[bytes, None, None]:
    """Yield all bytes of a file: its lines with their ends, those of over MAX_ROW_BYTES in pieces of about that.

    Raises:
        FactError: the rest of the file cannot be read.
    """
    number = 1
    try:
        with open_dump(uri) as stream:
            while piece := stream.readline(MAX_ROW_BYTES + 1):
                yield piece
                number += len(piece) <= MAX_ROW_BYTES or piece.endswith(b"\n")
    except READ_ERRORS as error:
        raise unreadable(uri, error, f" at line {number}") from error


def first_bytes(uri: str) -> bytes:
    """How a file begins, decompressed, without BOM and white space; empty where its first 64 KiB hold nothing else.

    Raises:
        FactError: it cannot be read.
    """
    try:
        with open_dump(uri) as stream:
            return without_bom(stream.read(64 * 1024)).lstrip()
    except READ_ERRORS as error:
        raise unreadable(uri, error) from error


def _skip_line(stream: IO[bytes]) -> int:
    """Pass over the rest of a line; its length in bytes, with its end."""
    num_bytes = 0
    while part := stream.readline(MAX_ROW_BYTES):
        num_bytes += len(part)
        if part.endswith(b"\n"):
            break
    return num_bytes
