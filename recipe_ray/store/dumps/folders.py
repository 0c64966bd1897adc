"""What the folders of a dump say: `FIELD=value`, as Spark and Hive partition, is a field's value in every row below."""

import dataclasses
import math
from collections.abc import Generator, Mapping
from urllib.parse import unquote

from recipe_ray.errors import FactError
from recipe_ray.facts import FIELDS, fact_from_record
from recipe_ray.store.dumps.values import BadRow, Columns, FolderValues, Row, raw_object
from recipe_ray.store.files import SourceFile
from recipe_ray.strict_json import JsonError, decode_flat

NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_values(file: SourceFile, columns: Columns) -> FolderValues:
    """Fields that the folders of a file give, those that its source lies in included.

    A folder is `COLUMN=value` where columns were named, else `FIELD=value`; both parts are percent-decoded.

    Raises:
        FactError: a folder below the source gives no field, one gives a value that cannot be the field's, or two give
            the same field.
    """
    field_of = {column: field for field, column in columns.of_field.items()}
    folders = file.uri.split("/")[:-1]
    num_named = len(folders) - file.below.count("/")  # by the source itself, and so nothing that the dump says
    values: dict[str, str | None] = {}
    for number, folder in enumerate(folders):
        name, equals, value = folder.partition("=")
        if not equals or not name:
            continue
        place = f"{file.uri}: folder {folder!r}"
        name, value = _decoded(name, place), _decoded(value, place)
        field = field_of.get(name)
        if field is None:
            if number >= num_named and not columns.named:
                raise FactError(
                    f"{place} gives {name!r}, which is no field ({', '.join(FIELDS)}); say which folders give fields "
                    "with --columns FIELD=NAME (the others are then left out), rename it, or give a source inside it"
                )
            continue
        if field in values:
            raise FactError(f"{place} gives {name!r} a second time; keep one of the two folders")
        values[field] = None if value == NULL else _checked(field, value, place)
    return tuple(sorted(values.items()))


def columns_beside(columns: Columns, values: FolderValues) -> Columns:
    """The columns of a file whose folders give some fields."""
    return dataclasses.replace(columns, in_folders=frozenset(field for field, _ in values)) if values else columns


def told(rows: Generator[Row, None, int], values: FolderValues, columns: Columns | None) -> Generator[Row, None, int]:
    """The rows of a file, of which bad ones say what its folders give: to be ingested again, they lie elsewhere.

    Args:
        rows: of the file.
        values: that its folders give.
        columns: by which it is read; None where a bad row is shown in a form that has no such fields.
    """
    said = ", ".join(f"{field!r} is {value!r}" for field, value in values)
    while True:
        try:
            row = next(rows)
        except StopIteration as end:
            return int(end.value)
        if isinstance(row, BadRow):
            raw = row.raw if columns is None else _completed(row.raw, {columns.of_field[name]: v for name, v in values})
            row = dataclasses.replace(row, reason=f"{row.reason} (by its folder {said})", raw=raw)
        yield row


def _completed(raw: str, given: Mapping[str, str | None]) -> str:
    """A bad row with the values of its folders, where it can be parsed and lacks them."""
    try:
        record = decode_flat(raw)
    except JsonError:  # such as a field twice: nothing of it is to be lost
        return raw
    if not isinstance(record, dict):
        return raw
    lacking = {name: value for name, value in given.items() if record.get(name) in (None, "")}
    return raw_object({**record, **lacking})


def _decoded(text: str, place: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise FactError(f"{place} is not UTF-8 once decoded; write it in UTF-8") from error


def _checked(field: str, value: str, place: str) -> str:
    """A value that can be the field's; which rows it fits is seen with each of them."""
    if not value.strip():
        raise FactError(f"{place} gives {field!r} no value; name the folder by one, or {NULL} where there is none")
    fact_from_record({"id": "x", "statement": "x", field: value}, place=place, max_future_s=math.inf)
    return value
