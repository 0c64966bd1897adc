"""Where a table moved to: a small file beside it, which those who are configured with the old place follow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from recipe_ray.errors import TableError
from recipe_ray.store.files import absolute, join, read_text, write_text
from recipe_ray.store.stored import remove_files

POINTER = "_moved.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a pointer says.

    Attributes:
        to: URI of the table that took the place of this one.
        from_version: the version of this one that the other was made from.
        at: when, UTC.
        previous: where the table had moved before, the last place last.
    """

    to: str
    from_version: int
    at: datetime
    previous: tuple[str, ...] = ()


def read_pointer(uri: str) -> Moved | None:
    """Where the table moved to; None where it is still there.

    Raises:
        TableError: the pointer is damaged.
        OutputError: it cannot be read.
    """
    place = join(absolute(uri), POINTER)
    text = read_text(place)
    if text is None:
        return None
    try:
        found = json.loads(text)
        return Moved(
            to=absolute(str(found["to"])),
            from_version=int(found["from_version"]),
            at=datetime.fromisoformat(found["at"]),
            previous=_places(found.get("previous")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{place}: is damaged ({error!r}); write it anew, or remove it to go back") from error


def _places(said: Any) -> tuple[str, ...]:
    """Places as a pointer has them: a list, and one place or none in pointers of the first release."""
    places = [] if said is None else [said] if isinstance(said, str) else said
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise ValueError(f"previous is {said!r}")
    return tuple(absolute(place) for place in places)


def follow(uri: str) -> str:
    """The place of the table that is configured as `uri`, absolute: one hop on where it moved.

    Raises:
        TableError: the table moved in a circle, or twice, so that the operator has to say which is meant.
    """
    moved = read_pointer(uri)
    if moved is None:
        return absolute(uri)
    if moved.to == absolute(uri):
        raise TableError(f"{uri}: moved to itself; remove {POINTER}")
    onward = read_pointer(moved.to)
    if onward is not None:
        where = "back" if onward.to == absolute(uri) else f"on to {onward.to}"
        raise TableError(
            f"{uri}: moved to {moved.to}, which moved {where}; give the table that is meant, or remove one {POINTER}"
        )
    return moved.to


def write_pointer(uri: str, to: str, *, from_version: int, previous: Sequence[str] = ()) -> None:
    """Let everyone who opens the last version of a table open another table's, from one moment to the next.

    Args:
        uri: of the table.
        to: URI of the other table.
        from_version: the version that the other was made from.
        previous: where the table had moved before, the last place last.

    Raises:
        TableError: the other table is this one, or moved itself.
        OutputError: the place cannot be written.
    """
    if absolute(to) == absolute(uri):
        raise TableError(f"{uri}: cannot move to itself; give another place")
    if (onward := read_pointer(to)) is not None:
        raise TableError(f"{to}: moved to {onward.to}; give a table that stayed where it is")
    said = {
        "to": absolute(to),
        "from_version": from_version,
        "at": datetime.now(UTC).isoformat(),
        "previous": [absolute(place) for place in previous],
    }
    write_text(join(absolute(uri), POINTER), json.dumps(said) + "\n")


def move_back(uri: str) -> Moved | None:
    """Let a table be found where it was before it moved; says from where, None where it never moved.

    Raises:
        TableError: the pointer is damaged.
        OutputError: the pointer cannot be changed.
    """
    moved = read_pointer(uri)
    if moved is None:
        return None
    if not moved.previous:
        remove_files(uri, [POINTER])
    else:
        *earlier, back_to = moved.previous
        remove_files(back_to, [POINTER])  # first: nobody shall be led on from there
        write_pointer(uri, back_to, from_version=moved.from_version, previous=earlier)
    return moved
