"""Rows of a Parquet file, some row groups at a time; and its columns as any reader of users' files wants them."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_ray.errors import FactError
from recipe_ray.store.dumps.arrow_values import is_integer, is_text, is_time, moment, python_values
from recipe_ray.store.dumps.streams import READ_ERRORS, unreadable
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, BadRow, Columns, GoodRow, MakeRow, raw_object, too_long
from recipe_ray.store.files import filesystem

NOT_UTF8 = "not UTF-8; write texts in UTF-8"
_BATCH_ROWS = 1024
_TIMES = ("updated_at", "expires_at")


def split_parquet(uri: str, columns: Columns, *, split_bytes: int) -> list[tuple[int, int]]:
    """Row groups [start, end) of each split of a file, about `split_bytes` of uncompressed columns each.

    Raises:
        FactError: the file cannot be read, lacks columns or has others, or a column is of a type that is no field's.
    """
    try:
        with open_parquet(uri) as source:
            _wanted(source, columns, uri)
            sizes = source.group_sizes()
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
        with open_parquet(uri) as source:
            wanted = _wanted(source, columns, uri)
            for batch in source.batches(list(dict.fromkeys(wanted.values())), start, end):
                values = [batch.values[column] for column in wanted.values()]
                for row, cells in enumerate(zip(*values, strict=True)):
                    number += 1
                    record: dict[str, object] = dict(zip(wanted, cells, strict=True))
                    shown = dict(zip(wanted.values(), cells, strict=True)) if columns.named else record
                    if row in batch.undecodable:
                        yield BadRow(number, NOT_UTF8, raw_object(shown))
                    elif batch.is_large and _num_chars(cells) > MAX_ROW_BYTES:
                        yield BadRow(number, too_long(), raw_object(shown))
                    else:
                        yield make(number, record, shown)
    except READ_ERRORS as error:
        raise unreadable(uri, error, f" as Parquet after record {number} of row group {start} on") from error
    return number


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a file.

    Attributes:
        values: of each column, as `python_values` gives them.
        undecodable: rows with a text that is not UTF-8.
        is_large: whether a row may have over MAX_ROW_BYTES.
    """

    values: Mapping[str, list[Any]]
    undecodable: set[int]
    is_large: bool


class ParquetSource:
    """A file, open to be read.

    Times of 96 bits (Spark, Hive and Impala write them) are read as microseconds, which reach 290,000 years; as
    nanoseconds, Arrow's default, they would begin again in 2262. Beyond that they are found by their milliseconds.
    """

    def __init__(self, source: Any, file: Any) -> None:
        self._source, self._file = source, file
        columns = [file.schema.column(place) for place in range(len(file.schema))]
        self._int96 = [column.path for column in columns if column.physical_type == "INT96"]

    @property
    def schema(self) -> Any:
        """Arrow's, of the columns."""
        return self._file.schema_arrow

    def group_sizes(self) -> list[int]:
        """Bytes of each row group, uncompressed."""
        groups = self._file.metadata
        return [groups.row_group(group).total_byte_size for group in range(groups.num_row_groups)]

    def batches(self, columns: Sequence[str], start: int = 0, end: int | None = None) -> Iterator[Batch]:
        """Columns of row groups [start, end), to the last where `end` is None, _BATCH_ROWS rows at a time.

        Raises:
            READ_ERRORS: the rest of the file cannot be read.
        """
        groups = list(range(self._file.num_row_groups)[start:end])
        chosen = {"batch_size": _BATCH_ROWS, "row_groups": groups, "use_threads": False}
        coarse_columns = [column for column in columns if column in self._int96]
        coarse: Iterable[Any] = itertools.repeat(None)
        if coarse_columns:
            coarse = _parquet_file(self._source, "ms").iter_batches(columns=coarse_columns, **chosen)
        for batch, rough in zip(self._file.iter_batches(columns=columns, **chosen), coarse, strict=False):
            undecodable: set[int] = set()
            values = {column: python_values(batch.column(column), undecodable) for column in columns}
            for column in coarse_columns:
                _mark_wrapped(values[column], batch.column(column), rough.column(column))
            yield Batch(values, undecodable, batch.nbytes > MAX_ROW_BYTES)


@contextmanager
def open_parquet(uri: str) -> Iterator[ParquetSource]:
    """Open a file.

    Raises:
        READ_ERRORS: it is missing or no Parquet.
    """
    filesystem_, path = filesystem(uri)
    with filesystem_.open_input_file(path) as source, _parquet_file(source, "us") as file:
        yield ParquetSource(source, file)


def _parquet_file(source: Any, int96_unit: str) -> Any:
    return pq.ParquetFile(source, page_checksum_verification=True, coerce_int96_timestamp_unit=int96_unit)


def _mark_wrapped(values: list[Any], exact: Any, rough: Any) -> None:
    """Put a text that is no time in place of one whose microseconds do not fit 64 bits."""
    pairs = zip(exact.cast(pa.int64()).to_pylist(), rough.cast(pa.int64()).to_pylist(), strict=True)
    for row, (microseconds, milliseconds) in enumerate(pairs):
        if microseconds is not None and microseconds // 1000 != milliseconds:
            values[row] = moment(milliseconds, "ms")


def _wanted(source: ParquetSource, columns: Columns, uri: str) -> Mapping[str, str]:
    schema = source.schema
    found = columns.of_table(schema.names, place=uri)
    for field, column in found.items():
        kind = schema.field(column).type
        if is_text(kind) or pa.types.is_null(kind):
            continue
        if field in _TIMES and is_time(kind):
            continue
        if field == "id" and is_integer(kind):
            continue
        expected = "timestamps or ISO 8601 text; epoch numbers tell no unit" if field in _TIMES else "text"
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
            expected += "; bytes tell no encoding, write the column as strings"
        raise FactError(f"{uri}: column {column!r} of {field!r} is of type {kind}; give {expected}")
    return found


def _num_chars(cells: Iterable[object]) -> int:
    return sum(len(cell) for cell in cells if isinstance(cell, str))
