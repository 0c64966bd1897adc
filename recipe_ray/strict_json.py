"""JSON in which no object has a field twice: Python would take the last of them without a word."""

import json
from collections.abc import Iterable, Iterator
from typing import Any


class DoubledFieldError(ValueError):
    """Names a field that stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise DoubledFieldError(next(_twice(name for name, _ in pairs)))
    return record


decode = json.JSONDecoder(object_pairs_hook=_object).decode  # made once: `json.loads` makes one a call
"""Parse a text.

Raises:
    json.JSONDecodeError: it is not JSON.
    DoubledFieldError: an object in it has a field twice.
    ValueError: a number has too many digits.
    RecursionError: it is nested too deeply.
"""


class _Pairs(list[tuple[str, Any]]):
    """An object with all its fields, beside the lists of arrays."""


def path_of(doubled: DoubledFieldError, text: str) -> str:
    """Where in a text the first field stands that is there twice, such as `facts.0.target`.

    Its name alone where the text breaks off behind it, or is too deep to be gone through.
    """
    try:
        return ".".join(next(_paths(json.loads(text, object_pairs_hook=_Pairs))))
    except (ValueError, RecursionError):
        return str(doubled)


def _paths(value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, _Pairs):
        for name in _twice(name for name, _ in value):
            yield (name,)
        inner: Iterable[tuple[str, Any]] = value
    elif isinstance(value, list):
        inner = ((str(number), item) for number, item in enumerate(value))
    else:
        return
    for name, item in inner:
        for path in _paths(item):
            yield (name, *path)


def _twice(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)
