"""Reading dumps of facts: JSON Lines, CSV and Parquet, in splits that tasks read apart from each other.

A row is a fact or is handed on with what is wrong with it; a file of which the rest cannot be read is an error.
"""

import hashlib
import json
import math
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from recipe_ray.errors import ConfigError, FactError
from recipe_ray.facts import DEFAULT_NAMESPACE, MAX_FUTURE_S, fact_from_record, record_from_line
from recipe_ray.store.dumps.csv_rows import read_csv, read_csv_header
from recipe_ray.store.dumps.folders import columns_beside, folder_values
from recipe_ray.store.dumps.parquet_rows import read_parquet, split_parquet
from recipe_ray.store.dumps.streams import (
    PARQUET_SUFFIXES,
    TooLong,
    check_unpacked,
    compression_of,
    first_bytes,
    hash_file,
    read_lines,
    suffix_of,
)
from recipe_ray.store.dumps.values import (
    BadRow,
    Columns,
    FolderValues,
    GoodRow,
    MakeRow,
    RepeatedHeader,
    Row,
    not_utf8,
    raw_line,
    reason_of,
    row_maker,
    too_long,
    with_values,
)
from recipe_ray.store.files import SourceFile

__all__ = [
    "DATASET_FORMS",
    "BadRow",
    "DumpOptions",
    "GoodRow",
    "RepeatedHeader",
    "Row",
    "Split",
    "form_of",
    "hash_file",
    "make_row",
    "read_split",
    "split_files",
    "values_of",
]

DATASET_FORMS = ("counterfact", "zsre", "ripe", "edits")
"""Forms whose readers lie in `recipe_ray.datasets`; here their files are only listed."""
FORMS = ("auto", "jsonl", "csv", "parquet", *DATASET_FORMS)
SPLIT_BYTES = 16 * 1024 * 1024  # a second of a task: a dump of some files keeps a machine busy
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    **dict.fromkeys(PARQUET_SUFFIXES, "parquet"),
}
_NUM_THREADS = 16  # they wait for storage


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """How a dump is read.

    Attributes:
        form: auto (by each file's name), jsonl, csv, parquet, or the form of a data set of edits.
        columns: FIELD=COLUMN, where the dump has another name for a field.
        namespace: of rows that name none.
        max_future_s: seconds by which `updated_at` may lie in the future.

    Raises:
        ConfigError: a value that cannot be, or columns for the form of a data set.
    """

    form: str = "auto"
    columns: tuple[str, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    max_future_s: float = MAX_FUTURE_S

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"form is {self.form!r}; give one of {', '.join(FORMS)}")
        Columns.parse(self.columns)
        if self.columns and self.form in DATASET_FORMS:
            raise ConfigError(
                f"columns is given with form {self.form}, whose fields have their names; leave columns out, "
                "or give form jsonl, csv or parquet"
            )
        name = self.namespace
        if not name or not name.isprintable() or name != " ".join(name.split()):
            raise ConfigError(f"namespace is {name!r}; give a name of printable characters")
        if not (math.isfinite(self.max_future_s) and self.max_future_s >= 0):
            raise ConfigError(f"max_future_s is {self.max_future_s}; give seconds, 0 or more")

    def digest(self) -> bytes:
        """16 bytes over the options: read otherwise, the same bytes are another dump."""
        said = json.dumps((self.form, sorted(self.columns), self.namespace, float(self.max_future_s)))
        return hashlib.blake2b(said.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A part of a file that one task reads.

    Attributes:
        file: number of the file in the dump.
        uri: of the file.
        part: number of the split in the file.
        start, end: the lines that begin at bytes [start, end) of a plain JSON Lines file, or row groups [start, end) of
            a Parquet file; the whole file where `end` is None.
        values: fields that the folders of the file give.
    """

    file: int
    uri: str
    part: int
    start: int
    end: int | None
    values: FolderValues = ()


def form_of(uri: str, options: DumpOptions) -> str:
    """The form that a file is read in: as asked for, or by its name.

    Raises:
        FactError: its name tells none, or it is Parquet that was compressed as a whole.
    """
    form = options.form
    if form == "auto":
        form = _SUFFIXES.get(suffix_of(uri), "")
    if not form:
        raise FactError(
            f"{uri}: its name tells no form (known are {', '.join(_SUFFIXES)}, all but Parquet with .gz or .zst "
            f"too); give --form, one of {', '.join(FORMS[1:])}, or a source without this file"
        )
    if form == "parquet":
        check_unpacked(uri)
    return form


def split_files(files: Sequence[SourceFile], options: DumpOptions, *, split_bytes: int = SPLIT_BYTES) -> list[Split]:
    """Divide files among tasks, at least one split a file; CSV, compressed files and data sets are not divided.

    Also looks into each file as far as it takes to refuse one that cannot be used, before work is spent on others.

    Args:
        files: of the dump, in its order.
        options: how they are read.
        split_bytes: size of a split: of the file, or in Parquet of the uncompressed row groups.

    Raises:
        FactError: a file's name tells no form; a table lacks columns, or has others; a file cannot be read; its folders
            give no field, or what cannot be one.
    """
    assert split_bytes > 0, split_bytes
    given = [values_of(file, options) for file in files]

    def bounds(file: SourceFile, values: FolderValues) -> Sequence[tuple[int, int | None]]:
        form = form_of(file.uri, options)
        columns = columns_beside(Columns.parse(options.columns), values)
        if form == "parquet":
            return split_parquet(file.uri, columns, split_bytes=split_bytes)
        if form == "csv":
            read_csv_header(file.uri, columns)
        if options.form == "auto" and suffix_of(file.uri) == ".json" and first_bytes(file.uri).startswith(b"["):
            raise FactError(
                f"{file.uri}: holds a JSON array; give --form of a data set ({', '.join(DATASET_FORMS)}), "
                "or one object a line"
            )
        if form == "jsonl" and not compression_of(file.uri):
            starts = range(0, max(file.size_bytes, 1), split_bytes)
            return [(start, min(start + split_bytes, file.size_bytes)) for start in starts]
        return [(0, None)]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        parts = list(pool.map(bounds, files, given))
    return [
        Split(file=number, uri=file.uri, part=part, start=start, end=end, values=values)
        for number, (file, values, found) in enumerate(zip(files, given, parts, strict=True))
        for part, (start, end) in enumerate(found)
    ]


def values_of(file: SourceFile, options: DumpOptions) -> FolderValues:
    """What the folders of a file give, as `folder_values` says."""
    return folder_values(file, Columns.parse(options.columns))


def read_split(split: Split, options: DumpOptions, *, now: datetime) -> Generator[Row, None, int]:
    """Read the rows of a split that is not of a data set's form; `recipe_ray.datasets.dump.read_any` reads every form.

    Args:
        split: as `split_files` made it.
        options: the same.
        now: the present, in UTC.

    Returns:
        The number of lines that the split has, blank ones and headers too (in Parquet, of records).

    Raises:
        FactError: the rest of the file cannot be read, or (CSV and Parquet) its columns do not fit.
    """
    form = form_of(split.uri, options)
    assert form not in DATASET_FORMS, form
    if form == "jsonl":
        return (yield from _read_jsonl(split, options, now))
    columns = columns_beside(Columns.parse(options.columns), split.values)
    if form == "csv":
        return (yield from read_csv(split.uri, columns, make_row(split, options, now)))
    return (yield from read_parquet(split.uri, split.start, split.end, columns, make_row(split, options, now)))


def make_row(split: Split, options: DumpOptions, now: datetime) -> MakeRow:
    """What makes a row of a split out of a record."""
    return row_maker(
        place=split.uri,
        now=now,
        max_future_s=options.max_future_s,
        namespace=options.namespace,
        in_folders=split.values,
    )


def _read_jsonl(split: Split, options: DumpOptions, now: datetime) -> Generator[GoodRow | BadRow, None, int]:
    columns = Columns.parse(options.columns)
    place, namespace, max_future_s = split.uri, options.namespace, options.max_future_s
    number = 0
    for number, line in enumerate(read_lines(split.uri, split.start, split.end), 1):
        if isinstance(line, TooLong):
            yield BadRow(number, too_long(), raw_line(line.start))
            continue
        if not line or line.isspace():
            continue
        try:
            record = record_from_line(line.decode(), place=place)
            if columns.named and isinstance(record, dict):
                record = columns.renamed(record, place=place)
            if split.values and isinstance(record, dict):
                record = with_values(record, split.values, place)
            fact = fact_from_record(record, place=place, now=now, max_future_s=max_future_s, namespace=namespace)
        except UnicodeDecodeError as error:
            yield BadRow(number, not_utf8(error), raw_line(line))
        except FactError as error:
            yield BadRow(number, reason_of(error, place), raw_line(line))
        else:
            yield GoodRow(number, fact)
    return number
