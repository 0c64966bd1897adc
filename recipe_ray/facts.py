"""The unit of editing: one fact, validated once where it enters."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from recipe_ray.errors import FactError

Op = Literal["upsert", "delete"]

FIELDS = ("id", "prompt", "target", "statement", "subject", "namespace", "source", "updated_at", "op")
DEFAULT_NAMESPACE = "default"
MAX_STATEMENT_CHARS = 8192  # beyond every encoder's context; a longer "fact" is a document


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
        op: upsert, or delete (statement, prompt and target are then empty).
    """

    fact_id: str
    statement: str
    prompt: str = ""
    target: str = ""
    subject: str = ""
    namespace: str = DEFAULT_NAMESPACE
    source: str = ""
    updated_at: datetime | None = None
    op: Op = "upsert"

    def content_hash(self) -> bytes:
        """16 bytes over what the fact says, not when or from where it came: equal content needs no new encoding."""
        parts = (self.namespace, self.fact_id, self.op, self.statement, self.prompt, self.target, self.subject)
        return _digest(parts)


def fact_from_record(record: object, *, place: str) -> Fact:
    """Validate one parsed JSON record.

    Args:
        record: a mapping with `prompt` and `target`, or `statement`; optionally `id`, `subject`, `namespace`, `source`,
            `updated_at` (ISO 8601; without an offset it is UTC) and `op`. A delete needs an `id`, or the `prompt` that
            an upsert without id would have had.
        place: `file:line`, put in front of every complaint.

    Raises:
        FactError: naming the place, the field, what was expected and what to do.
    """
    if not isinstance(record, Mapping):
        raise FactError(f"{place}: expected a JSON object, got {type(record).__name__}; give one object a line")
    unknown = sorted(str(name) for name in record.keys() - set(FIELDS))
    if unknown:
        raise FactError(f"{place}: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    text = {name: _text(record, name, place) for name in FIELDS if name not in ("updated_at", "op")}
    op = record.get("op")
    if op is None or op == "":
        op = "upsert"
    if op not in get_args(Op):
        raise FactError(f"{place}: 'op' is {op!r}; give upsert or delete")
    namespace = text["namespace"] or DEFAULT_NAMESPACE
    updated_at = _timestamp(record.get("updated_at"), place)
    if op == "delete":
        if not text["id"] and not text["prompt"]:
            raise FactError(f"{place}: a delete needs 'id' (or the 'prompt' of a fact that was given no id)")
        return Fact(
            fact_id=text["id"] or default_fact_id(namespace, text["prompt"]),
            statement="",
            namespace=namespace,
            source=text["source"],
            updated_at=updated_at,
            op="delete",
        )
    if text["statement"]:
        statement = text["statement"]
    else:
        for name, purpose in (("prompt", "the words to complete"), ("target", "the text the edited model should give")):
            if not text[name]:
                raise FactError(f"{place}: '{name}' is empty; give {purpose}, or a whole 'statement'")
        statement = f"{text['prompt']} {text['target']}"
    if len(statement) > MAX_STATEMENT_CHARS:
        raise FactError(
            f"{place}: the statement has {len(statement)} characters, at most {MAX_STATEMENT_CHARS} are read; "
            "split it into facts"
        )
    return Fact(
        fact_id=text["id"] or default_fact_id(namespace, text["prompt"] or statement),
        statement=statement,
        prompt=text["prompt"],
        target=text["target"],
        subject=text["subject"],
        namespace=namespace,
        source=text["source"],
        updated_at=updated_at,
    )


def fact_from_line(line: str, *, place: str) -> Fact:
    """Parse and validate one line of JSON Lines; see `fact_from_record`."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise FactError(f"{place}: not JSON ({error.msg} at column {error.colno}); give one object a line") from error
    except ValueError as error:
        raise FactError(f"{place}: not JSON that can be read ({error}); give one object a line") from error
    except RecursionError as error:
        raise FactError(f"{place}: JSON nested too deeply; give one flat object a line") from error
    return fact_from_record(record, place=place)


def default_fact_id(namespace: str, prompt: str) -> str:
    """Id of a fact that was given none: the same prompt in the same namespace is the same fact, whatever its target."""
    return _digest((namespace, " ".join(prompt.split()))).hex()


def _digest(parts: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def _text(record: Mapping[str, object], name: str, place: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise FactError(f"{place}: '{name}' is {type(value).__name__}; give text")
    if any(ord(char) < 32 and char not in "\t\n\r" for char in value):
        raise FactError(f"{place}: '{name}' holds control characters; remove them")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FactError(f"{place}: '{name}' holds half of a surrogate pair; give valid Unicode") from error
    return " ".join(value.split())


def _timestamp(value: object, place: str) -> datetime | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise FactError(f"{place}: 'updated_at' is {type(value).__name__}; give ISO 8601 text")
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # at the ends of the calendar UTC may lie beyond it
        raise FactError(f"{place}: 'updated_at' is {value!r}; give ISO 8601, such as 2026-01-31T08:00:00Z") from error
