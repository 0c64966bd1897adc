"""Data sets of edits as dumps of facts: each edit is a fact, and what the data set asks about it is left out."""

from collections.abc import Generator
from datetime import datetime

from recipe_ray.datasets.forms import FACT_FIELDS, FORMS, Fields
from recipe_ray.datasets.reading import Refused, read_file
from recipe_ray.errors import FactError
from recipe_ray.store.dumps.folders import told
from recipe_ray.store.dumps.rows import (
    DATASET_FORMS,
    BadRow,
    DumpOptions,
    GoodRow,
    Row,
    Split,
    form_of,
    make_row,
    read_split,
)
from recipe_ray.store.dumps.values import Columns, raw_object, reason_of


def read_any(split: Split, options: DumpOptions, *, now: datetime) -> Generator[Row, None, int]:
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
    own = FACT_FIELDS.get(options.form, ())
    make = make_row(split, options, now)
    place = split.uri
    number = 0
    for number, record in enumerate(read_file(place), 1):
        if isinstance(record, Refused):
            yield BadRow(number, record.reason, record.raw)
            continue
        try:
            edit = read(Fields(place, record))
        except FactError as error:
            yield BadRow(number, reason_of(error, place), raw_object(record))
            continue
        fact = {"prompt": edit.prompt, "target": edit.target, "subject": edit.subject}
        yield make(number, {**fact, **{name: record.get(name) for name in own}}, record)
    return number
