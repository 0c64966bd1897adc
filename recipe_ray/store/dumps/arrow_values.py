"""What Arrow arrays hold, as Python values: the same for every type that says the same."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SINCE_EPOCH: Mapping[str, tuple[str, Callable[[int], timedelta]]] = {
    "d": ("days", lambda number: timedelta(days=number)),
    "s": ("seconds", lambda number: timedelta(seconds=number)),
    "ms": ("milliseconds", lambda number: timedelta(milliseconds=number)),
    "us": ("microseconds", lambda number: timedelta(microseconds=number)),
    "ns": ("nanoseconds", lambda number: timedelta(microseconds=number // 1000)),
}


def is_text(kind: Any) -> bool:
    """Whether values of an Arrow type are texts, in whatever form it holds them."""
    kind = _plain(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_time(kind: Any) -> bool:
    """Whether values of an Arrow type are points in time."""
    kind = _plain(kind)
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def is_integer(kind: Any) -> bool:
    """Whether values of an Arrow type are whole numbers."""
    return pa.types.is_integer(_plain(kind))


def python_values(array: Any, undecodable: set[int]) -> list[Any]:
    """The values of an array; those with a text that is not UTF-8 are added to `undecodable`.

    Times are datetimes in UTC, cut to microseconds; one that is beyond the calendar is a text that is none.
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return python_values(array.storage, undecodable)
    if pa.types.is_dictionary(kind):
        return _looked_up(array, undecodable)
    if is_text(kind):
        return _texts(array, undecodable)
    if is_time(kind):
        unit = kind.unit if pa.types.is_timestamp(kind) else "d" if pa.types.is_date32(kind) else "ms"
        numbers = array.cast(pa.int32() if unit == "d" else pa.int64()).to_pylist()
        return [None if number is None else moment(number, unit) for number in numbers]
    if pa.types.is_map(kind):
        pairs = pa.struct([pa.field("key", kind.key_type, nullable=False), pa.field("value", kind.item_type)])
        return python_values(array.cast(pa.list_(pairs)), undecodable)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        columns = [python_values(part, undecodable) for part in array.flatten()]
        rows = zip(*columns, strict=True) if columns else [()] * len(array)
        there = array.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if is_there else None for row, is_there in zip(rows, there, strict=True)
        ]
    if hasattr(array, "flatten"):
        return _lists(array, undecodable)
    if pa.types.is_temporal(kind):  # of a day, or between two times: Python has no nanoseconds
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    values: list[Any] = array.to_pylist()
    return values


def moment(number: int, unit: str) -> datetime | str:
    """A time so many units after 1970, or beyond the calendar a text that says so."""
    name, since_epoch = _SINCE_EPOCH[unit]
    try:
        return _EPOCH + since_epoch(number)
    except OverflowError:
        return f"{number} {name} after 1970"


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _looked_up(array: Any, undecodable: set[int]) -> list[Any]:
    """The values of a dictionary's array; Arrow itself cannot decode all of them."""
    bad: set[int] = set()
    values = python_values(array.dictionary, bad)
    places = array.indices.to_pylist()
    if bad:
        undecodable.update(row for row, place in enumerate(places) if place in bad)
    return [None if place is None else values[place] for place in places]


def _texts(array: Any, undecodable: set[int]) -> list[Any]:
    try:
        values: list[Any] = array.to_pylist()
    except UnicodeDecodeError:
        values = [None] * len(array)
        for row, text in enumerate(array):
            if text.is_valid:
                content = text.as_buffer().to_pybytes()
                values[row] = content.decode("utf-8", "surrogateescape")
                if values[row].encode("utf-8", "replace") != content:
                    undecodable.add(row)
    return values


def _lists(array: Any, undecodable: set[int]) -> list[Any]:
    bad: set[int] = set()
    parts = python_values(array.flatten(), bad)  # without those of lists that are null
    values: list[Any] = []
    start = 0
    for row, (length, is_there) in enumerate(
        zip(pc.list_value_length(array).to_pylist(), array.is_valid().to_pylist(), strict=True)
    ):
        end = start + length if is_there else start
        values.append(parts[start:end] if is_there else None)
        if not bad.isdisjoint(range(start, end)):
            undecodable.add(row)
        start = end
    return values
