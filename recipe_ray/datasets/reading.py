"""Records of users' files: a JSON array, JSON Lines or Parquet, for training, evaluation and ingest alike.

What a file is, its name tells (`.parquet`, `.pq`) or its first bytes; JSON may be packed (`.gz`, `.zst`, `.zstd`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recipe_ray.errors import FactError
from recipe_ray.store.dumps.parquet_rows import NOT_UTF8, open_parquet
from recipe_ray.store.dumps.streams import (
    PARQUET_SUFFIXES,
    READ_ERRORS,
    TooLong,
    check_unpacked,
    first_bytes,
    open_dump,
    read_lines,
    suffix_of,
    unreadable,
    without_bom,
)
from recipe_ray.store.dumps.values import not_utf8, raw_line, raw_object, shortened, too_long
from recipe_ray.store.files import list_files
from recipe_ray.strict_json import Fault, JsonError, decode_array, decode_flat

_PARQUET_BYTES = b"PAR1"


@dataclass(frozen=True, slots=True)
class Refused:
    """What stands in a file in place of a record.

    Attributes:
        place: `line 7` or `record 7`, counted from 1.
        reason: what is wrong with it and what to do.
        raw: its text on one line, as in `BadRow`.
    """

    place: str
    reason: str
    raw: str


def read_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a file, a directory or a glob, with its place: file and record, counted from 1.

    Raises:
        FactError: nothing there, unreadable, or a record that is refused or no object.
    """
    for file in list_files(source):
        for number, record in enumerate(read_file(file.uri), 1):
            if isinstance(record, Refused):
                raise FactError(f"{file.uri}: {record.place}: {record.reason}")
            yield f"{file.uri}: record {number}", record


def read_file(uri: str) -> Iterator[dict[str, Any] | Refused]:
    """The records of a file; in place of one that is none, or cannot be read, what is wrong with it.

    Raises:
        FactError: the rest of the file cannot be read.
    """
    if suffix_of(uri) in PARQUET_SUFFIXES:
        check_unpacked(uri)
        return _parquet(uri)
    begin = first_bytes(uri)
    if begin.startswith(_PARQUET_BYTES):
        check_unpacked(uri)
        return _parquet(uri)
    return _array(uri) if begin.startswith(b"[") else _lines(uri)


def _parquet(uri: str) -> Iterator[dict[str, Any] | Refused]:
    number = 0
    try:
        with open_parquet(uri) as source:
            names = source.schema.names
            if doubled := next((name for name in names if names.count(name) > 1), None):
                raise FactError(f"{uri}: column {doubled!r} stands there twice; give each column one name")
            for batch in source.batches(names):
                for row, cells in enumerate(zip(*batch.values.values(), strict=True)):
                    number += 1
                    record = dict(zip(names, cells, strict=True))
                    is_good = row not in batch.undecodable
                    yield record if is_good else Refused(f"record {number}", NOT_UTF8, raw_object(record))
    except READ_ERRORS as error:
        raise unreadable(uri, error, " as Parquet") from error


def _array(uri: str) -> Iterator[dict[str, Any] | Refused]:
    """The records of a JSON array, whose text is held whole."""
    try:
        with open_dump(uri) as stream:
            text = without_bom(stream.read()).decode()
    except READ_ERRORS as error:
        raise unreadable(uri, error) from error
    except UnicodeDecodeError as error:
        raise FactError(f"{uri}: {not_utf8(error)}") from error
    try:
        for number, record in enumerate(decode_array(text), 1):
            if isinstance(record, Fault):
                raw = shortened(" ".join(record.text.splitlines()))
                yield Refused(f"record {number}", record.reason, raw)
            else:
                yield _object(record, f"record {number}")
    except JsonError as error:
        raise FactError(f"{uri}: {error}") from error


def _lines(uri: str) -> Iterator[dict[str, Any] | Refused]:
    for number, line in enumerate(read_lines(uri), 1):
        place = f"line {number}"
        if isinstance(line, TooLong):
            yield Refused(place, too_long(), raw_line(line.start))
        elif line and not line.isspace():
            try:
                yield _object(decode_flat(line.decode()), place)
            except UnicodeDecodeError as error:
                yield Refused(place, not_utf8(error), raw_line(line))
            except JsonError as error:
                yield Refused(place, str(error), raw_line(line))


def _object(value: object, place: str) -> dict[str, Any] | Refused:
    if isinstance(value, dict):
        return value
    reason = f"expected an object with named fields, got {type(value).__name__}"
    return Refused(place, reason, shortened(json.dumps(value, ensure_ascii=False)))
