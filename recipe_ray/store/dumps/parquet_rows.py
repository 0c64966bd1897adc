"""Rows of a Parquet file, some row groups at a time."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_ray.errors import FactError
from recipe_ray.store.dumps.streams import READ_ERRORS, unreadable
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, BadRow, Columns, GoodRow, MakeRow, raw_object, too_long
from recipe_ray.store.files import filesystem

_BATCH_ROWS = 1024
_TIMES = ("updated_at", "expires_at")
_MICROSECONDS = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def split_parquet(uri: str, columns: Columns, *, split_bytes: int) -> list[tuple[int, int]]:
    """Row groups [start, end) of each split of a file, about `split_bytes` of uncompressed columns each.

    Raises:
        FactError: the file cannot be read, lacks columns or has others, or a column is of a type that is no field's.
    """
    try:
        with _open(uri) as file:
            _wanted(file, columns, uri)
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    except READ_ERRORS as error:
        raise unreadable(uri, error, " as Parquet") from error
    splits: list[tuple[int, int]] = []
    start = num_bytes = 0
    for group, size in enumerate(sizes):
        if num_bytes and num_bytes + size > split_bytes:
            splits.append((start, group))
            start, num_bytes = group, 0
        num_bytes += size
    return [*splits, (start, len(sizes))]


def read_parquet(
    uri: str, start: int, end: int | None, columns: Columns, make: MakeRow
) -> Generator[GoodRow | BadRow, None, int]:
    """Read the records of row groups [start, end), all where `end` is None; returns their number.

    Raises:
        FactError: as `split_parquet`, and where the rest of the file is damaged.
    """
    number = 0
    try:
        with _open(uri) as file:
            wanted = _wanted(file, columns, uri)
            groups = range(start, file.metadata.num_row_groups if end is None else end)
            batches = file.iter_batches(
                _BATCH_ROWS, row_groups=groups, columns=list(dict.fromkeys(wanted.values())), use_threads=False
            )
            for batch in batches:
                undecodable: set[int] = set()
                values = [_values(batch.column(column), undecodable) for column in wanted.values()]
                is_large = batch.nbytes > MAX_ROW_BYTES
                for row, cells in enumerate(zip(*values, strict=True)):
                    number += 1
                    record: dict[str, object] = dict(zip(wanted, cells, strict=True))
                    shown = dict(zip(wanted.values(), cells, strict=True)) if columns.named else record
                    if row in undecodable:
                        yield BadRow(number, "not UTF-8; write texts in UTF-8", raw_object(shown))
                    elif is_large and _num_chars(cells) > MAX_ROW_BYTES:
                        yield BadRow(number, too_long(), raw_object(shown))
                    else:
                        yield make(number, record, shown)
    except READ_ERRORS as error:
        raise unreadable(uri, error, f" as Parquet after record {number} of row group {start} on") from error
    return number


@contextmanager
def _open(uri: str) -> Iterator[Any]:
    filesystem_, path = filesystem(uri)
    with filesystem_.open_input_file(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
        yield file


def _wanted(file: Any, columns: Columns, uri: str) -> Mapping[str, str]:
    schema = file.schema_arrow
    found = columns.of_table(schema.names, place=uri)
    for field, column in found.items():
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
            continue
        if field in _TIMES and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            continue
        if field == "id" and pa.types.is_integer(kind):
            continue
        expected = "timestamps or ISO 8601 text; epoch numbers tell no unit" if field in _TIMES else "text"
        raise FactError(f"{uri}: column {column!r} of {field!r} is of type {kind}; give {expected}")
    return found


def _values(column: Any, undecodable: set[int]) -> list[Any]:
    """The values of a column; rows whose text is not UTF-8 are added to `undecodable`."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # Only nanoseconds may be cut; a number that does not fit is damage.
        cast = column.cast(_MICROSECONDS, safe=not (pa.types.is_timestamp(kind) and kind.unit == "ns"))
        return [None if value is None else _moment(value) for value in cast.cast(pa.int64()).to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()).to_pylist()
        for row, value in enumerate(values):
            if value is not None:
                try:
                    values[row] = value.decode()
                except UnicodeDecodeError:
                    values[row] = value.decode("utf-8", "surrogateescape")
                    undecodable.add(row)
    return values


def _moment(microseconds: int) -> datetime | str:
    """A time, or beyond the calendar a text that is refused as none."""
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} microseconds after 1970"


def _num_chars(cells: Iterable[object]) -> int:
    return sum(len(cell) for cell in cells if isinstance(cell, str))
