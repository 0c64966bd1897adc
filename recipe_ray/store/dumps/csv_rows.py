"""Rows of a CSV file with a header: RFC 4180, and a record that is given up is given up to its own end.

No maintained reader does that. Of a text behind a closing quote pyarrow.csv 26 makes another text, DuckDB 2.0 drops it
or refuses the file, Polars 2.1 refuses the file; lines inside such a record become rows of pyarrow's. Python's `csv`
takes up the middle of a quote as a new record where it gives one up, at a length that is set for the whole process.
So `csv` splits what it takes without complaint, and all else is read again by `_Quotes`, which follows quotes through
any number of bytes.
"""

import csv
import re
import string
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from recipe_ray.errors import FactError
from recipe_ray.facts import FIELDS
from recipe_ray.store.dumps.streams import BOM_START, read_pieces, without_bom
from recipe_ray.store.dumps.values import (
    MAX_ROW_BYTES,
    BadRow,
    Columns,
    MakeRow,
    RepeatedHeader,
    Row,
    raw_object,
    too_long,
)

_MORE = "fields beyond the header"
_AROUND_NAMES = f"{string.whitespace}\ufeff"
_ADVICE = "; quote texts as RFC 4180 says"
_FIELDS = re.compile(r'(?:\A|,)(?:"([^"]*+(?:""[^"]*+)*+)"|([^,]*))')
_BLANKS_AND_QUOTE = re.compile(rb'[ \t]+"')
_AFTER_COMMA, _AT_START = re.compile(r',[ \t]+"'), re.compile(r'[ \t]+"')
_QUOTES = re.compile(rb'((?:\A(?:\xef\xbb\xbf)*|,)[ \t]*)?("+)(?=([ \t]*(?:[,\r\n]|\Z))?)')


def read_csv_header(uri: str, columns: Columns) -> None:
    """See that a file has the columns that are wanted.

    Raises:
        FactError: it has not, or cannot be read.
    """
    for _ in read_csv(uri, columns, lambda line, *_: BadRow(line, "", "")):
        return


def read_csv(uri: str, columns: Columns, make: MakeRow) -> Generator[Row, None, int]:
    """Read the rows of a file; returns the number of its physical lines.

    Files that were joined with `cat` have a header in the middle: the rows behind it are read as it says.

    Raises:
        FactError: a header is not one, lacks columns or has others; or the rest of the file cannot be read.
    """
    records = _Records(uri)
    header: _Header | None = None
    for values in records.read():
        if isinstance(values, _GivenUp):
            if header is None:
                raise FactError(
                    f"{uri}:{records.first}: the header is {values.reason}; give a file with a header of column names"
                )
            yield BadRow(records.first, values.reason, raw_object({"csv": values.text}))
        elif header is None:
            header = _Header(values, columns, place=uri)
        elif (len(values) != header.width or _folded(values[header.place]) in header.names) and header.is_again(values):
            header = header.again(values, place=f"{uri}:{records.first}")
            yield RepeatedHeader(records.first)
        elif len(values) != header.width:
            reason = f"{len(values)} fields under a header of {header.width}{records.span()}"
            yield BadRow(records.first, f"{reason}; quote texts that hold commas", raw_object(header.shown(values)))
        else:
            record = {field: values[place] for field, _, place in header.wanted}
            shown = {column: values[place] for _, column, place in header.wanted} if columns.named else record
            yield make(records.first, record, shown)
    return records.last


class _Header:
    """What the header of a file says.

    Attributes:
        width: how many columns there are.
        wanted: field, column and place in a record of what is read.
        place: of the first column that is read.
        names: what may stand there in a header, folded.
    """

    def __init__(self, values: Sequence[str], columns: Columns, *, place: str) -> None:
        self._names = [name.strip() for name in values]
        self._columns = columns
        found = columns.of_table(self._names, place=place)
        self.width = len(values)
        self.wanted = [(field, column, self._names.index(column)) for field, column in found.items()]
        self.place = self.wanted[0][2]
        self._field_of = {_folded(column): field for field, column in columns.of_field.items()}
        self._own = self._field_of.keys() | map(_folded, self._names)
        self.names = self._own | set(FIELDS)

    def shown(self, values: Sequence[str]) -> Mapping[str, object]:
        """A record of another width by the columns' names."""
        more = {_MORE: values[self.width :]} if len(values) > self.width else {}
        return {**dict(zip(self._names, values, strict=False)), **more}

    def is_again(self, values: Sequence[str]) -> bool:
        """Whether a record is a header too: names alone, each once, among them what a fact needs.

        They are columns of this header or wanted ones, or else they all are fields (where columns were named). Columns
        that are not read may have other names, where all others stand as they do here.
        """
        if len(values) == self.width and all(values[place].strip() == column for _, column, place in self.wanted):
            return True
        said = {_folded(value) for value in values}
        if len(said) < len(values):
            return False
        if said <= self._own:
            return self._make_facts({field for name, field in self._field_of.items() if name in said})
        return said <= set(FIELDS) and self._make_facts(said)

    def again(self, values: Sequence[str], *, place: str) -> "_Header":
        """The header that a record is.

        Raises:
            FactError: it does not fit.
        """
        exact = {*self._names, *self._columns.of_field.values()}
        other = [value for value in values if value.strip() not in exact and _folded(value) in self._field_of]
        if other:
            raise FactError(
                f"{place}: looks like a header again in other letters ({', '.join(map(repr, other))}); write it as the "
                "first one, or remove it"
            )
        return _Header(values, self._columns, place=f"{place}: a header again")

    def _make_facts(self, fields: AbstractSet[str]) -> bool:
        try:
            Columns.parse(()).of_table([*(fields | self._columns.in_folders)], place="")
        except FactError:
            return False
        return True


def _folded(name: str) -> str:
    """A column's name without blanks, a BOM and its case."""
    return name.strip(_AROUND_NAMES).casefold()


class _TooLongError(Exception):
    """The lines of one record have over MAX_ROW_BYTES."""


@dataclass(frozen=True, slots=True)
class _GivenUp:
    """A record that cannot be read: why, and how it begins."""

    reason: str
    text: str


class _Records:
    """The records of a file: the values of one, or why it is given up; blank lines are none.

    It is also what gives `csv` the lines of a record.

    Attributes:
        first, last: the physical lines of the present record, counted from 1.
    """

    def __init__(self, uri: str) -> None:
        self._pieces = read_pieces(uri)
        self._ahead: deque[bytes] = deque()
        self._given: list[str] = []
        self._num_bytes = 0
        self._seen: list[bool] = []  # which lines from `_seen_from` on end inside a quote, where looking ahead told
        self._seen_from = 0
        self.first = self.last = 0

    def read(self) -> Iterator[list[str] | _GivenUp]:
        """The records."""
        by_csv, given = csv.reader(self, strict=True), self._given
        while True:
            given.clear()
            self.first = self.last + 1
            try:
                values = next(by_csv)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError, _TooLongError):
                yield self._again()
                continue
            self.last += len(given)
            text = given[0] if len(given) == 1 else "".join(given)
            if '"' in text and (' "' in text or "\t" in text) and (_AFTER_COMMA.search(text) or _AT_START.match(text)):
                yield self._again()
            elif len(values) > 1 or (values and not text.isspace()):
                yield values

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> str:
        piece = self._ahead.popleft() if self._ahead else next(self._pieces)
        if self._given:
            self._num_bytes += len(piece)
        else:
            piece = without_bom(piece) if piece[0] == BOM_START else piece
            self._num_bytes = len(piece)
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            self._given.append(piece.decode("utf-8", "surrogateescape"))
            raise
        self._given.append(text)
        if self._num_bytes > MAX_ROW_BYTES:
            raise _TooLongError
        return text

    def span(self) -> str:
        """Which lines the record takes, where they are several."""
        return f", lines {self.first} to {self.last} of the file" if self.last > self.first else ""

    def _again(self) -> list[str] | _GivenUp:
        """The record that `csv` was given, read again."""
        first, *more = (text.encode("utf-8", "surrogateescape") for text in self._given)
        self._ahead.extendleft(reversed(more))
        self.last = self.first
        return self._through(first)

    def _take(self) -> bytes:
        return self._ahead.popleft() if self._ahead else next(self._pieces, b"")

    def _through(self, piece: bytes) -> list[str] | _GivenUp:
        """A record piece by piece to its end, of which no more than MAX_ROW_BYTES are held."""
        quotes = _Quotes()
        begin: list[bytes] = []
        num_bytes = 0
        while True:
            num_bytes += len(piece)
            if num_bytes <= MAX_ROW_BYTES or not begin:
                begin.append(piece)
            quotes.follow(piece, self.last)
            ends_line = piece.endswith(b"\n")
            if ends_line and quotes.is_misplaced:
                quotes.set_open(self._is_inside())
            if ends_line and not quotes.is_open:
                break
            piece = self._take()
            if not piece:
                break
            self.last += ends_line
        whole = b"".join(begin)
        if quotes.is_open:
            reason = f"not CSV (unexpected end of data: the quote that opens in line {quotes.line} never closes)"
            return self._give_up(whole, f"{reason}{self.span()}{_ADVICE}")
        if num_bytes > MAX_ROW_BYTES:
            return self._give_up(whole, too_long(self.span()))
        if quotes.fault:
            return self._give_up(whole, f"not CSV ({quotes.fault}){self.span()}{_ADVICE}")
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            return self._give_up(whole, f"{self._not_utf8(whole, error)}{self.span()}; write the file in UTF-8")
        return _values(text)

    def _is_inside(self) -> bool:
        """Whether what follows the present line reads as the inside of a quote and not as new records."""
        if self.last - self._seen_from >= len(self._seen):
            self._seen_from, self._seen = self.last, self._look_ahead()
        return self._seen[self.last - self._seen_from]

    def _look_ahead(self) -> list[bool]:
        """Whether the present line ends inside a quote, and those behind it; for where a quote was out of place.

        Both readings are followed until one of them meets a quote that cannot stand where it stands, or to the end of
        what a record may hold: there the reading is wrong in which a quote is still open. An even number of quotes says
        nothing: inside they are doubled ones, outside a field as it stands may hold them, or another row is broken.

        One decision holds for all that was seen, so that of many quotes out of place not each looks ahead: for half of
        what a record may hold, and the lines behind that are judged by as much again.
        """
        inside, num_bytes = True, 0  # what the first reading is by now; the second is always the opposite
        line_ends = [inside]
        for piece in self._coming():
            for match in _QUOTES.finditer(piece):
                opens, run, closes = match[1] is not None, match[2], match[3] is not None
                if len(run) % 2 == 0:
                    continue
                if opens != closes:
                    return [end == (inside == closes) for end in line_ends]
                if opens:
                    inside = not inside
            num_bytes += len(piece)
            if piece.endswith(b"\n") and num_bytes <= MAX_ROW_BYTES // 2:
                line_ends.append(inside)
        return [end != inside for end in line_ends]

    def _coming(self) -> Iterator[bytes]:
        """What comes next, MAX_ROW_BYTES of it at most; it stays to be taken."""
        num_bytes = 0
        for piece in self._ahead:
            yield piece
            num_bytes += len(piece)
            if num_bytes >= MAX_ROW_BYTES:
                return
        while num_bytes < MAX_ROW_BYTES and (piece := next(self._pieces, b"")):
            self._ahead.append(piece)
            yield piece
            num_bytes += len(piece)

    def _give_up(self, whole: bytes, reason: str) -> _GivenUp:
        return _GivenUp(reason, whole.decode("utf-8", "backslashreplace").rstrip("\r\n"))

    def _not_utf8(self, whole: bytes, error: UnicodeDecodeError) -> str:
        line_start = whole.rfind(b"\n", 0, error.start) + 1
        line = self.first + whole.count(b"\n", 0, error.start)
        return f"not UTF-8 ({error.reason} at byte {error.start - line_start} of line {line})"


class _Quotes:
    """Follows the quotes of one record through its bytes, in pieces that end anywhere.

    Attributes:
        is_open: whether a quote is open.
        line: where the last one opened.
        fault: what was out of place first; empty where nothing was.
        is_misplaced: whether a quote was out of place, so that `is_open` may be wrong, since `set_open` was told.
    """

    def __init__(self) -> None:
        self.is_open = self.is_misplaced = False
        self.line = 0
        self.fault = ""
        self._begins_field, self._closed = True, False

    def set_open(self, is_open: bool) -> None:
        """Go on inside a quote, or outside."""
        self.is_open, self.is_misplaced = is_open, False
        self._begins_field = self._closed = False

    def follow(self, piece: bytes, line: int) -> None:
        """Go through some more bytes, of one line."""
        position = 0
        while position < len(piece):
            if self.is_open:
                position = piece.find(b'"', position) + 1
                if not position:
                    return
                self.is_open, self._closed = False, True
            elif piece.startswith(b'"', position) and (self._begins_field or self._closed):
                self.line = line if self._begins_field else self.line
                self.is_open, self._begins_field, self._closed = True, False, False
                position += 1
            else:
                comma = piece.find(b",", position)
                self._check(piece[position:comma] if comma >= 0 else piece[position:].rstrip(b"\r\n"))
                self._begins_field, self._closed = comma >= 0, False
                position = comma + 1 or len(piece)

    def _check(self, text: bytes) -> None:
        """Look at what stands outside quotes, up to the end of its field."""
        if self._closed and text:
            self.is_misplaced = True
            self.fault = self.fault or "',' expected after '\"'"
        elif self._begins_field and _BLANKS_AND_QUOTE.match(text):
            self.is_misplaced = True
            self.fault = self.fault or "a blank before '\"'"
        elif b"\r" in text:
            self.fault = self.fault or "a CR outside quotes; lines end in LF or CR LF"


def _values(record: str) -> list[str]:
    """The values of a record that is well formed."""
    found = _FIELDS.findall(record.rstrip("\r\n"))
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in found]
