"""JSON as users write it, with what Python's reader would take or change without a word refused.

Refused are a field that stands twice in an object, NaN and Infinity, and values nested too deeply to be worked on.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
"""Levels of a value that is more than parsed: what walks through it, `json.dumps` for one, needs stack for each."""
_BLANKS = re.compile(r"[ \t\n\r]*")
_DEEP = "JSON nested too deeply; give one flat object a line"


class JsonError(ValueError):
    """What is wrong with a text, and what to do."""


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
    faults: list[str] = []
    decoder = _decoder(faults.append)
    try:
        position = _after(text, 0, "[")
        ends = text.startswith("]", position)
        while not ends:
            start = position
            value, position = decoder.raw_decode(text, start)
            if _is_deep(value):
                faults.append(_DEEP)
            yield Fault(faults[0], text[start:position]) if faults else value
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


def _after(text: str, position: int, char: str) -> int:
    """The place behind a character and the blanks around it, which must stand there."""
    position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
    if not text.startswith(char, position):
        raise json.JSONDecodeError(f"Expecting {char!r}", text, position)
    return _BLANKS.match(text, position + 1).end()  # type: ignore[union-attr]


def _decoder(complain: Callable[[str], None]) -> json.JSONDecoder:
    """A decoder that tells of what is refused, and goes on where `complain` returns."""

    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            names = [name for name, _ in pairs]
            doubled = next(name for name in names if names.count(name) > 1)
            complain(f"field {doubled!r} stands twice in an object; give it once")
        return record

    def make_constant(name: str) -> None:
        complain(f"{name} is no JSON; give a number, a text or null")

    def make_integer(digits: str) -> int | None:
        try:
            return int(digits)
        except ValueError:
            complain(_too_many_digits())
            return None

    # Calling back for every number costs time, which lines of facts need not spend: there `int` may raise.
    parse_int = None if complain is _refuse else make_integer
    return json.JSONDecoder(object_pairs_hook=make_object, parse_constant=make_constant, parse_int=parse_int)


def _no_array(reason: str) -> str:
    return f"is no JSON array ({reason}); give an array of records, or one record a line"


def _too_many_digits() -> str:
    return f"not JSON that can be read (a number has over {sys.get_int_max_str_digits()} digits); give it as text"


def _refuse(reason: str) -> None:
    raise JsonError(reason)


def _is_deep(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [one for one in level if isinstance(one, dict | list)]
        if not nested:
            return False
        level = [part for one in nested for part in (one.values() if isinstance(one, dict) else one)]
    return True


parse = _decoder(_refuse).decode  # made once: `json.loads` makes one a call
"""What `decode` does, with the errors of Python's reader; for those who read a million lines."""
