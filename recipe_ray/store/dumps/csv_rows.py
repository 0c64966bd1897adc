"""Rows of a CSV file with a header: RFC 4180, read line by line."""

import csv
from collections.abc import Generator, Iterator

from recipe_ray.errors import FactError
from recipe_ray.store.dumps.streams import TooLong, read_lines
from recipe_ray.store.dumps.values import MAX_ROW_BYTES, BadRow, Columns, GoodRow, MakeRow, raw_object, too_long

_MORE = "fields beyond the header"


def read_csv_header(uri: str, columns: Columns) -> None:
    """See that a file has the columns that are wanted.

    Raises:
        FactError: it has not, or cannot be read.
    """
    for _ in read_csv(uri, columns, lambda line, *_: BadRow(line, "", "")):
        return


def read_csv(uri: str, columns: Columns, make: MakeRow) -> Generator[GoodRow | BadRow, None, int]:
    """Read the rows of a file; returns the number of its physical lines.

    Raises:
        FactError: the header is not one, lacks columns or has others; or the rest of the file cannot be read.
    """
    lines = _Lines(read_lines(uri))
    header: list[str] = []
    wanted: list[tuple[str, str, int]] = []
    records = csv.reader(lines, strict=True)
    while True:
        lines.begin_record()
        reason = ""
        values: list[str] = []
        try:
            values = next(records)
        except StopIteration:
            return lines.number
        except csv.Error as error:
            reason = f"not CSV ({error}){lines.span()}; quote texts as RFC 4180 says"
        except _TooLongError:
            reason = too_long()
        reason = reason or lines.undecodable
        if not header and reason:
            raise FactError(f"{uri}:{lines.first}: the header is {reason}; give a file with a header of column names")
        if reason:
            yield BadRow(lines.first, reason, raw_object({"csv": lines.text()}))
        elif lines.is_blank():
            continue
        elif not header:
            header = [name.strip() for name in values]
            found = columns.of_table(header, place=uri)
            wanted = [(field, column, header.index(column)) for field, column in found.items()]
        elif len(values) != len(header):
            reason = f"{len(values)} fields under a header of {len(header)}; quote texts that hold commas"
            shown: dict[str, object] = dict(zip(header, values, strict=False))
            if len(values) > len(header):
                shown[_MORE] = values[len(header) :]
            yield BadRow(lines.first, reason, raw_object(shown))
        else:
            record = {field: values[place] for field, _, place in wanted}
            yield make(
                lines.first, record, {column: values[place] for _, column, place in wanted} if columns.named else record
            )


class _TooLongError(Exception):
    """A line or the lines of one record have over MAX_ROW_BYTES."""


class _Lines:
    """A file's lines as `csv.reader` takes them, which knows those of the present record.

    Attributes:
        number: of lines taken.
        first: number of the record's first line, counted from 1.
        undecodable: why the record is not UTF-8; empty where it is.
    """

    def __init__(self, lines: Iterator[bytes | TooLong]) -> None:
        self._lines = lines
        self._texts: list[str] = []
        self._num_bytes = 0
        self.number = 0
        self.first = 1
        self.undecodable = ""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        start = line.start if isinstance(line, TooLong) else line
        try:
            text = start.decode()
        except UnicodeDecodeError as error:
            text = start.decode("utf-8", "backslashreplace")
            self.undecodable = f"not UTF-8 ({error.reason} at byte {error.start} of line {self.number})"
        self._texts.append(text)
        self._num_bytes += len(start)
        if self._num_bytes > MAX_ROW_BYTES:
            raise _TooLongError
        return text

    def begin_record(self) -> None:
        self.first = self.number + 1
        self._texts = []
        self._num_bytes = 0
        self.undecodable = ""

    def text(self) -> str:
        """The record as it stands in the file."""
        return "".join(self._texts).rstrip("\r\n")

    def is_blank(self) -> bool:
        return len(self._texts) == 1 and (not self._texts[0] or self._texts[0].isspace())

    def span(self) -> str:
        """Which lines the record took, where they are several: a quote left open takes the lines after it."""
        return f", lines {self.first} to {self.number} of the file" if self.number > self.first else ""
