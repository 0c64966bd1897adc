"""Records of a data file: a JSON array, JSON Lines or Parquet, local or `s3://`, plain or `.gz`."""

import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from recipe_ray.errors import FactError
from recipe_ray.store.files import filesystem, list_files, open_lines


def read_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each record of a file, a directory or a glob, with its place: file and record, counted from 1.

    Raises:
        FactError: nothing there, unreadable, or a record that is no object.
    """
    for file in list_files(source):
        records = _parquet(file.uri) if file.uri.endswith(".parquet") else _json(file.uri)
        for number, record in enumerate(records, 1):
            place = f"{file.uri}: record {number}"
            if not isinstance(record, dict):
                raise FactError(f"{place} is {_short(record)}, not an object with named fields")
            yield place, record


def _parquet(uri: str) -> Iterator[Any]:
    filesystem_, path = filesystem(uri)
    try:
        with filesystem_.open_input_file(path) as file:
            for batch in parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FactError(f"{uri}: cannot be read as Parquet ({_line(error)})") from error


def _json(uri: str) -> Iterator[Any]:
    try:
        with open_lines(uri) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig").read()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise FactError(f"{uri}: cannot be read as UTF-8 text, plain or .gz ({_line(error)})") from error
    try:
        if text.lstrip()[:1] == "[":
            yield from json.loads(text)
            return
    except ValueError as error:
        raise FactError(
            f"{uri}: is not JSON ({_line(error)}); give an array of records, or one record a line"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise FactError(f"{uri}: line {number} is not JSON ({_line(error)}); give one record a line") from error


def _short(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
