"""Data sets of edits as dumps of facts: each edit is a fact, and what the data set asks about it is left out."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime

import pyarrow.parquet as pq

from recipe_ray.datasets.forms import FORMS, Fields
from recipe_ray.errors import FactError
from recipe_ray.facts import record_from_line
from recipe_ray.store.dumps.folders import told
from recipe_ray.store.dumps.rows import (
    DATASET_FORMS,
    BadRow,
    DumpOptions,
    GoodRow,
    Split,
    form_of,
    make_row,
    read_split,
)
from recipe_ray.store.dumps.streams import BOM, READ_ERRORS, TooLong, first_bytes, open_dump, read_lines, unreadable
from recipe_ray.store.dumps.values import Columns, not_utf8, raw_line, raw_object, reason_of, shortened, too_long
from recipe_ray.store.files import filesystem

_BATCH_ROWS = 256


def read_any(split: Split, options: DumpOptions, *, now: datetime) -> Generator[GoodRow | BadRow, None, int]:
    """Read the rows of a split of any form; see `recipe_ray.store.dumps.rows.read_split`.

    Raises:
        FactError: the rest of the file cannot be read, or its columns do not fit.
    """
    is_dataset = form_of(split.uri, options) in DATASET_FORMS
    rows = (read_edits_split if is_dataset else read_split)(split, options, now=now)
    if split.values:
        rows = told(rows, split.values, None if is_dataset else Columns.parse(options.columns))
    return (yield from rows)


def read_edits_split(split: Split, options: DumpOptions, *, now: datetime) -> Generator[GoodRow | BadRow, None, int]:
    """Read a file of a data set: a JSON array, JSON Lines or Parquet; returns the number of its records.

    A record that is not of the form is a bad row, shown as it is.

    Raises:
        FactError: the file cannot be read, or is an array that is not JSON.
    """
    read = FORMS[options.form]
    make = make_row(split, options, now)
    place = split.uri
    number = 0
    for number, record in enumerate(_records(place), 1):
        if isinstance(record, _Refused):
            yield BadRow(number, record.reason, record.raw)
        elif not isinstance(record, dict):
            reason = f"expected an object with named fields, got {type(record).__name__}"
            yield BadRow(number, reason, shortened(json.dumps(record, ensure_ascii=False)))
        else:
            try:
                edit = read(Fields(place, record))
            except FactError as error:
                yield BadRow(number, reason_of(error, place), raw_object(record))
                continue
            yield make(number, {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}, record)
    return number


@dataclass(frozen=True, slots=True)
class _Refused:
    """A line of JSON Lines that is no record."""

    reason: str
    raw: str


def _records(uri: str) -> Iterator[object]:
    """The records of a file; of one on a line of its own what is wrong with it, where it cannot be parsed."""
    if uri.lower().endswith((".parquet", ".pq")):
        yield from _parquet(uri)
    elif first_bytes(uri).startswith(b"["):
        yield from _array(uri)
    else:
        for line in read_lines(uri):
            if isinstance(line, TooLong):
                yield _Refused(too_long(), raw_line(line.start))
            elif line and not line.isspace():
                yield _parsed(line, uri)


def _parsed(line: bytes, uri: str) -> object:
    try:
        return record_from_line(line.decode(), place=uri)
    except UnicodeDecodeError as error:
        return _Refused(not_utf8(error), raw_line(line))
    except FactError as error:
        return _Refused(reason_of(error, uri), raw_line(line))


def _parquet(uri: str) -> Iterator[object]:
    filesystem_, path = filesystem(uri)
    try:
        with filesystem_.open_input_file(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except (*READ_ERRORS, UnicodeDecodeError) as error:
        raise unreadable(uri, error, " as Parquet") from error


def _array(uri: str) -> Iterator[object]:
    """The records of a JSON array, which is held whole."""
    try:
        with open_dump(uri) as stream:
            records = json.loads(stream.read().removeprefix(BOM))
    except READ_ERRORS as error:
        raise unreadable(uri, error) from error
    except (ValueError, RecursionError) as error:
        raise FactError(f"{uri}: is no JSON array ({error}); give an array of records, or one record a line") from error
    yield from records
