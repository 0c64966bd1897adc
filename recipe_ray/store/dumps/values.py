"""What the readers of dumps hand on: rows that are facts, rows that are none, and which column gives which field."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.facts import FIELDS, Fact, fact_from_record

MAX_ROW_BYTES = 1024 * 1024  # far beyond the longest fact; bounds what a file without line ends can take
RAW_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class GoodRow:
    """A row that is a fact.

    Attributes:
        line: within the split, counted from 1: the physical line of a text file (its first, where a row has several),
            else the number of the record.
        fact: what it says.
    """

    line: int
    fact: Fact


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no fact.

    Attributes:
        line: as in `GoodRow`.
        reason: what is wrong with it and what to do.
        raw: its text on one line, at most RAW_BYTES of UTF-8, to be repaired and ingested again as JSON Lines: a line
            of JSON Lines as it is, another row as one JSON object of the columns that were read; each with what its
            folders give. What is not UTF-8 is shown as an escape that is refused until it is repaired.
    """

    line: int
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class RepeatedHeader:
    """A header in the middle of a CSV file, as joining files with `cat` leaves it: no row, passed over and counted.

    Attributes:
        line: as in `GoodRow`.
    """

    line: int


Row = GoodRow | BadRow | RepeatedHeader
"""What the lines of a dump are."""
MakeRow = Callable[[int, Mapping[str, object], Mapping[str, object]], GoodRow | BadRow]
"""Makes a row of its line, its values by field, and the record to show where it is no fact."""


FolderValues = tuple[tuple[str, str | None], ...]
"""Fields that the folders of a file give, sorted, and their values; None where a folder says that there is none."""


def row_maker(
    *, place: str, now: datetime, max_future_s: float, namespace: str, in_folders: FolderValues = ()
) -> MakeRow:
    """Make rows of records, as `fact_from_record` takes them, and of what the folders of their file give."""

    def make(line: int, record: Mapping[str, object], shown: Mapping[str, object]) -> GoodRow | BadRow:
        try:
            if in_folders:
                record = with_values(record, in_folders, place)
            fact = fact_from_record(record, place=place, now=now, max_future_s=max_future_s, namespace=namespace)
        except FactError as error:
            return BadRow(line, reason_of(error, place), raw_object(shown))
        return GoodRow(line, fact)

    return make


def with_values(record: Mapping[str, object], values: FolderValues, place: str) -> Mapping[str, object]:
    """A record by field, with what its folders give.

    Raises:
        FactError: the record gives one of these fields too.
    """
    for field, value in values:
        if record.get(field) not in (None, ""):
            raise FactError(
                f"{place}: {field!r} is given by the row and by its folder ({value!r}); leave one of them out"
            )
    return {**record, **dict(values)}


def reason_of(error: FactError, place: str) -> str:
    """What a complaint says without the place, which a quarantined row has columns for."""
    return str(error).removeprefix(f"{place}: ")


def raw_object(record: Mapping[str, object]) -> str:
    """A record as one JSON object, at most RAW_BYTES long."""
    return shortened(json.dumps(record, ensure_ascii=False, default=str))


def shortened(text: str) -> str:
    """The first RAW_BYTES of a text; a surrogate becomes its JSON escape."""
    return text.encode("utf-8", "backslashreplace")[:RAW_BYTES].decode("utf-8", "ignore")


def raw_line(line: bytes) -> str:
    """A line as it stands; a byte that is not UTF-8 becomes an escape that no JSON reader takes."""
    return shortened(line.decode("utf-8", "backslashreplace").rstrip("\r\n"))


def not_utf8(error: UnicodeDecodeError) -> str:
    """The reason of a line that cannot be decoded."""
    return f"not UTF-8 ({error.reason} at byte {error.start}); write the file in UTF-8"


def too_long(where: str = "") -> str:
    """The reason of a row of over MAX_ROW_BYTES."""
    return f"the row has over {MAX_ROW_BYTES} bytes{where}; give one fact a row"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column of a dump gives which field.

    Attributes:
        of_field: the column of each field; a field whose own name is another field's column has none.
        named: whether the user named columns; then a table's other columns are left out.
        in_folders: fields that the folders of the file give.
    """

    of_field: Mapping[str, str]
    named: bool
    in_folders: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, columns: Sequence[str]) -> "Columns":
        """Read FIELD=COLUMN texts.

        Raises:
            ConfigError: a text of another shape, an unknown field, or a field twice.
        """
        given: dict[str, str] = {}
        for text in columns:
            field, equals, column = text.partition("=")
            if not equals or not field or not column:
                raise ConfigError(f"columns has {text!r}; give FIELD=COLUMN, such as prompt=question")
            if field not in FIELDS:
                raise ConfigError(f"columns has {text!r}, of an unknown field; the fields are {', '.join(FIELDS)}")
            if field in given:
                raise ConfigError(f"columns names {field!r} twice ({given[field]!r} and {column!r}); give one column")
            given[field] = column
        taken = set(given.values())
        own = {field: field for field in FIELDS if field not in given and field not in taken}
        return cls(of_field={**given, **own}, named=bool(columns))

    def renamed(self, record: Mapping[str, object], *, place: str) -> Mapping[str, object]:
        """The values of a JSON record by field.

        Raises:
            FactError: it has a name that gives no field.
        """
        if not self.named:
            return record
        if unknown := record.keys() - set(self.of_field.values()):
            raise FactError(
                f"{place}: unknown field {min(unknown)!r}; the fields are {', '.join(self.of_field.values())}"
            )
        return {field: record[column] for field, column in self.of_field.items() if column in record}

    def of_table(self, names: Sequence[str], *, place: str) -> dict[str, str]:
        """The column of each field that a table with these columns gives.

        Raises:
            FactError: a column twice, a wanted one missing, one that gives no field, or too few for a fact.
        """
        there = ", ".join(map(repr, names)) or "none"
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise FactError(f"{place}: column {doubled[0]!r} stands there twice; give each column one name")
        found = {field: column for field, column in self.of_field.items() if column in names}
        if doubled := sorted(self.in_folders & found.keys()):
            raise FactError(
                f"{place}: column {found[doubled[0]]!r} is given by the file and by its folder; leave it out of the "
                "file, or rename the folder"
            )
        for field, column in self.of_field.items():
            if field != column and column not in names and field not in self.in_folders:
                raise FactError(
                    f"{place}: no column {column!r} for {field!r}; it has {there}; correct --columns {field}={column}"
                )
        needed = ({"statement"}, {"prompt", "target"}, {"op", "id"}, {"op", "prompt"})
        if not any(fields <= found.keys() | self.in_folders for fields in needed):
            raise FactError(
                f"{place}: no columns 'prompt' and 'target', nor 'statement' (for deletes 'op' and 'id'); it has "
                f"{there}; say which they are with --columns, such as --columns prompt=COLUMN target=COLUMN"
            )
        unknown = [name for name in names if name not in self.of_field.values()]
        if unknown and not self.named:
            raise FactError(
                f"{place}: columns {', '.join(map(repr, unknown))} are no fields ({', '.join(FIELDS)}); name what is "
                "to be read with --columns FIELD=COLUMN (the others are then left out), or remove them"
            )
        return found
