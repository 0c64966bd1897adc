"""JSON as users write it, with what Python's reader would take or change without a word refused.

Refused are a field that stands twice in an object, NaN and Infinity, and values nested too deeply to be worked on.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
"""Levels of a value that is more than parsed: what walks through it, `json.dumps` for one, needs stack for each."""
_BLANKS = re.compile(r"[ \t\n\r]*")
_DEEP = "JSON nested too deeply; give one flat object a line"


class JsonError(ValueError):
    """What is wrong with a text, and what to do."""


class DoubledFieldError(JsonError):
    """A field that stands twice in one object, of which Python would take the last: its `name`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"field {name!r} stands twice in an object; give it once")
        self.name = name


@dataclass(frozen=True, slots=True)
class Fault:
    """What stands in place of an array's element that is refused: what is wrong with it, and how it is written."""

    reason: str
    text: str


def decode(text: str) -> object:
    """Parse one value.

    Raises:
        JsonError: it is not JSON, or what this module refuses; of nesting, only what Python cannot parse.
    """
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise JsonError(fault_of(text, error)) from error


def fault_of(text: str, error: Exception) -> str:
    """What is wrong with a text on which `parse` failed, and what to do."""
    if isinstance(error, json.JSONDecodeError):
        lines = "; end lines with LF, not CR alone" if "\r" in text.strip() else ""
        return f"not JSON ({error.msg} at column {error.colno}); give one object a line{lines}"
    if isinstance(error, RecursionError):
        return _DEEP
    return str(error) if isinstance(error, JsonError) else _too_many_digits()


def decode_flat(text: str) -> object:
    """Parse one value of at most MAX_DEPTH levels.

    Raises:
        JsonError: as `decode`, and where it is nested more deeply.
    """
    value = decode(text)
    if _is_deep(value):
        raise JsonError(_DEEP)
    return value


def decode_array(text: str) -> Iterator[object]:
    """Yield the elements of an array one by one, a `Fault` for one that is refused.

    Raises:
        JsonError: the text is no array, or the rest of it is not JSON.
    """
    faults: list[JsonError] = []
    decoder = _decoder(faults.append)
    try:
        position = _after(text, 0, "[")
        ends = text.startswith("]", position)
        while not ends:
            start = position
            value, position = decoder.raw_decode(text, start)
            if _is_deep(value):
                faults.append(JsonError(_DEEP))
            yield Fault(str(faults[0]), text[start:position]) if faults else value
            faults.clear()
            position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
            ends = text.startswith("]", position)
            position = position if ends else _after(text, position, ",")
        if (position := _after(text, position, "]")) < len(text):
            raise json.JSONDecodeError("Extra data", text, position)
    except json.JSONDecodeError as error:
        raise JsonError(_no_array(str(error))) from error
    except RecursionError as error:
        raise JsonError(_no_array("nested too deeply to be read")) from error


class _Pairs(list[tuple[str, Any]]):
    """An object with all its fields, beside the lists of arrays."""


def path_of(doubled: DoubledFieldError, text: str) -> str:
    """Where in a text the first field stands that is there twice, such as `facts.0.target`.

    Its name alone where the text breaks off behind it, or is too deep to be gone through.
    """
    try:
        return ".".join(next(_paths(json.loads(text, object_pairs_hook=_Pairs))))
    except (ValueError, RecursionError):
        return doubled.name


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


def _after(text: str, position: int, char: str) -> int:
    """The place behind a character and the blanks around it, which must stand there."""
    position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
    if not text.startswith(char, position):
        raise json.JSONDecodeError(f"Expecting {char!r}", text, position)
    return _BLANKS.match(text, position + 1).end()  # type: ignore[union-attr]


def _decoder(complain: Callable[[JsonError], None]) -> json.JSONDecoder:
    """A decoder that tells of what is refused, and goes on where `complain` returns."""

    def make_constant(name: str) -> None:
        complain(JsonError(f"{name} is no JSON; give a number, a text or null"))

    def make_integer(digits: str) -> int | None:
        try:
            return int(digits)
        except ValueError:
            complain(JsonError(_too_many_digits()))
            return None

    # Calling back for every number costs time, which lines of facts need not spend: there `int` may raise.
    parse_int = None if complain is _refuse else make_integer
    return json.JSONDecoder(
        object_pairs_hook=_object_maker(complain), parse_constant=make_constant, parse_int=parse_int
    )


def _object_maker(complain: Callable[[JsonError], None]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            complain(DoubledFieldError(next(_twice(name for name, _ in pairs))))
        return record

    return make_object


def _no_array(reason: str) -> str:
    return f"is no JSON array ({reason}); give an array of records, or one record a line"


def _too_many_digits() -> str:
    return f"not JSON that can be read (a number has over {sys.get_int_max_str_digits()} digits); give it as text"


def _refuse(error: JsonError) -> None:
    raise error


def _is_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [one for one in level if isinstance(one, dict | list)]
        if not nested:
            return False
        level = [part for one in nested for part in (one.values() if isinstance(one, dict) else one)]
    return True


# Made once: `json.loads` makes one a call.
parse = _decoder(_refuse).decode
"""What `decode` does, with the errors of Python's reader; for those who read a million lines."""
parse_body = json.JSONDecoder(object_pairs_hook=_object_maker(_refuse)).decode
"""The same of a request, in which NaN and Infinity are left to whoever knows the field."""
