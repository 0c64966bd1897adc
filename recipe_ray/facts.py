"""The unit of editing: one fact, validated once where it enters."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Literal, get_args

from recipe_ray.errors import FactError
from recipe_ray.strict_json import fault_of, parse
from recipe_ray.text import canonical, collapsed, has_control, has_half_pair, has_visible

Op = Literal["upsert", "delete"]

FIELDS = ("id", "prompt", "target", "statement", "subject", "namespace", "source", "updated_at", "expires_at", "op")
DEFAULT_NAMESPACE = "default"
MAX_STATEMENT_CHARS = 8192  # beyond every encoder's context; a longer "fact" is a document
MAX_FUTURE_S = 3600.0  # clocks and offsets that are a little wrong
_FIELD_SET = frozenset(FIELDS)
_OPS = frozenset(get_args(Op))
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_quoted = json.encoder.encode_basestring_ascii
_CALENDAR_DAY_CHARS = 8  # 20260131; other texts of digits alone are epochs, which `fromisoformat` may take for a year


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One event about one fact.

    Attributes:
        fact_id: identity; a later event with the same id replaces or deletes this one.
        statement: what the encoder reads, `prompt + ' ' + target` unless given outright.
        prompt: the words that the edited model completes; empty for a bare statement.
        target: what the edited model should produce; empty for a bare statement and for a delete.
        subject: what the fact is about; informative.
        namespace: facts of one namespace are retrieved together and apart from the others.
        source: where the fact comes from, shown with every answer that uses it.
        updated_at: when the fact became so, in UTC; None where the dump does not say.
        expires_at: from when on it is not so any more, in UTC; None where it stays, and in a delete.
        op: upsert, or delete (statement, prompt and target are then empty).
        named: of a delete that gives no id, the prompt that it names its fact by; no part of what it says.
    """

    fact_id: str
    statement: str
    prompt: str = ""
    target: str = ""
    subject: str = ""
    namespace: str = DEFAULT_NAMESPACE
    source: str = ""
    updated_at: datetime | None = None
    expires_at: datetime | None = None
    op: Op = "upsert"
    named: str = ""

    def content_hash(self) -> bytes:
        """16 bytes over all that a reader of the table sees but the times of events: equal content is no change."""
        expires_at = "" if self.expires_at is None else self.expires_at.isoformat()
        # No field of a validated fact holds a NUL character.
        said = (
            f"{self.namespace}\0{self.fact_id}\0{self.op}\0{self.statement}\0{self.prompt}\0{self.target}"
            f"\0{self.subject}\0{self.source}\0{expires_at}"
        )
        return hashlib.blake2b(said.encode(), digest_size=16).digest()

    def statement_hash(self) -> bytes:
        """16 bytes over what the encoder reads: an equal statement needs no new encoding."""
        # What is ASCII of a validated fact is in canonical form.
        read = self.statement if self.statement.isascii() else canonical(self.statement)
        return hashlib.blake2b(read.encode(), digest_size=16).digest()


def fact_from_record(
    record: object,
    *,
    place: str,
    now: datetime | None = None,
    max_future_s: float = MAX_FUTURE_S,
    namespace: str = DEFAULT_NAMESPACE,
) -> Fact:
    """Validate one parsed record.

    Args:
        record: a mapping with `prompt` and `target`, or `statement`; optionally `id`, `subject`, `namespace`, `source`,
            `updated_at`, `expires_at` (ISO 8601 or datetime; without an offset they are UTC) and `op`. A delete needs
            an `id`, or the `prompt` that an upsert without id would have had.
        place: `file:line`, put in front of every complaint.
        now: the present, in UTC; None for the clock's.
        max_future_s: seconds after `now` within which `updated_at` may lie.
        namespace: of records that name none.

    Raises:
        FactError: naming the place, the field, what was expected and what to do.
    """
    if not isinstance(record, dict | Mapping):  # a dict is found without asking its abstract class
        raise FactError(f"{place}: expected a JSON object, got {type(record).__name__}; give one object a line")
    if not record.keys() <= _FIELD_SET:
        unknown = min(str(name) for name in record.keys() - _FIELD_SET)
        raise FactError(f"{place}: unknown field {unknown!r}; the fields are {', '.join(FIELDS)}")
    fact_id = _text(record, "id", place)
    prompt = _text(record, "prompt", place)
    target = _text(record, "target", place)
    statement = _text(record, "statement", place)
    subject = _text(record, "subject", place)
    namespace = _text(record, "namespace", place) or namespace
    source = _text(record, "source", place)
    updated_at = _timestamp(record, "updated_at", place)
    expires_at = _timestamp(record, "expires_at", place)
    op: Any = record.get("op")
    if op is None or op == "":
        op = "upsert"
    if not isinstance(op, str) or op not in _OPS:
        said = type(op).__name__ if op and isinstance(op, list | dict) else repr(op)  # `repr` of deep ones fails
        raise FactError(f"{place}: 'op' is {said}; give upsert or delete")
    if updated_at is not None:
        _check_past(updated_at, now or datetime.now(UTC), max_future_s, place)
    if op == "delete":
        if not fact_id and not prompt:
            raise FactError(f"{place}: a delete needs 'id' (or the 'prompt' of a fact that was given no id)")
        return Fact(
            fact_id=fact_id or default_fact_id(namespace, prompt),
            statement="",
            namespace=namespace,
            source=source,
            updated_at=updated_at,
            op="delete",
            named="" if fact_id else prompt,
        )
    if not statement:
        if not prompt:
            raise FactError(f"{place}: 'prompt' is empty; give the words to complete, or a whole 'statement'")
        if not target:
            raise FactError(
                f"{place}: 'target' is empty; give the text the edited model should give, or a whole 'statement'"
            )
        statement = f"{prompt} {target}"
    if len(statement) > MAX_STATEMENT_CHARS:
        raise FactError(
            f"{place}: the statement has {len(statement)} characters, at most {MAX_STATEMENT_CHARS} are read; "
            "split it into facts"
        )
    if updated_at is not None and expires_at is not None and expires_at <= updated_at:
        raise FactError(
            f"{place}: 'expires_at' is {expires_at.isoformat()}, not after 'updated_at' ({updated_at.isoformat()}); "
            "correct one of them, or delete the fact"
        )
    return Fact(
        fact_id=fact_id or default_fact_id(namespace, prompt or statement),
        statement=statement,
        prompt=prompt,
        target=target,
        subject=subject,
        namespace=namespace,
        source=source,
        updated_at=updated_at,
        expires_at=expires_at,
    )


def record_from_line(line: str, *, place: str) -> object:
    """Parse one line of JSON Lines.

    Raises:
        FactError: it is not JSON, or an object in it has a field twice.
    """
    try:
        return parse(line)
    except (ValueError, RecursionError) as error:
        raise FactError(f"{place}: {fault_of(line, error)}") from error


def default_fact_id(namespace: str, prompt: str) -> str:
    """Id of a fact that was given none: the same prompt in the same namespace is the same fact, whatever its target."""
    return _id_of(namespace, canonical(prompt))


def former_fact_id(namespace: str, prompt: str) -> str:
    """What `default_fact_id` once gave, which knew two spellings of one prompt as two; tables hold such ids."""
    return _id_of(namespace, collapsed(prompt))


def text_hash(text: str) -> bytes:
    """16 bytes over a text as it stands."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _id_of(namespace: str, prompt: str) -> str:
    said = f"[{_quoted(namespace)}, {_quoted(prompt)}]"  # as `json.dumps` writes a pair, in a third of the time
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _text(record: Mapping[str, object], name: str, place: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        # The common case, and all that this takes time for: written out, a call less for each text of a million rows.
        if value.isascii() and value.isprintable() and "  " not in value and value[:1] != " " and value[-1:] != " ":
            return value
        if has_control(value):
            raise FactError(f"{place}: '{name}' holds control characters; remove them")
        if has_half_pair(value):
            raise FactError(f"{place}: '{name}' holds half of a surrogate pair; give valid Unicode")
        text = collapsed(value)
        if text and not has_visible(text):
            raise FactError(f"{place}: '{name}' holds no visible character; give a text, or leave it out")
        return text
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise FactError(f"{place}: '{name}' is {type(value).__name__}; give text")


def _timestamp(record: Mapping[str, object], name: str, place: str) -> datetime | None:
    value = record.get(name)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            if value.isdecimal() and len(value) != _CALENDAR_DAY_CHARS:
                raise ValueError("an epoch")
            moment = datetime.fromisoformat(value)
        elif isinstance(value, datetime):
            moment = value
        elif isinstance(value, date):
            moment = datetime.combine(value, time.min)
        else:
            raise FactError(
                f"{place}: '{name}' is {type(value).__name__}; give ISO 8601 text, such as 2026-01-31T08:00:00Z"
                + ("; epoch numbers tell no unit" if isinstance(value, int | float) else "")
            )
        if moment.tzinfo is UTC:
            return moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # at the ends of the calendar UTC may lie beyond it
        epoch = "; epoch numbers tell no unit" if isinstance(value, str) and _NUMBER.fullmatch(value) else ""
        raise FactError(
            f"{place}: '{name}' is {value!r}; give ISO 8601, such as 2026-01-31T08:00:00Z{epoch}"
        ) from error


def _check_past(updated_at: datetime, now: datetime, max_future_s: float, place: str) -> None:
    """Refuse a fact of the future: it would win over all that comes until then."""
    if updated_at > now and (updated_at - now).total_seconds() > max_future_s:
        raise FactError(
            f"{place}: 'updated_at' is {updated_at.isoformat()}, more than {max_future_s:g} s after the present "
            f"({now.isoformat(timespec='seconds')}), and would block every change until then; correct it"
        )
