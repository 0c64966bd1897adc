"""A table of a release that told texts apart by their spelling, brought to their canonical form.

Such a table may hold keys made of another text than the encoder reads now, and facts of one prompt under several ids.
The keys are made again, in the files where they lie; of such facts the last one stays. Ids stay as they are, since
users hold them: a row without one is written under the id that its prompt's fact has, and with the spelling that this
id was made of, by which it is known for what it is. Where a row cannot stand any more, it goes where it has lost.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.facts import Fact, default_fact_id, former_fact_id, text_hash
from recipe_ray.store.delta import CommitConflictError, retrying
from recipe_ray.store.order import last_events
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.schema import FILE_SCHEMA, identity_hash, microseconds, shard_of, vectors_to_cells
from recipe_ray.store.snapshot import read_events
from recipe_ray.store.stored import remove_files
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.deletion import Selection, delete_facts
from recipe_ray.store.writing import Encode
from recipe_ray.text import canonical, collapsed, normalized

logger = logging.getLogger(__name__)

_SPELLED_COLUMNS = ["statement", "prompt"]
_COLUMNS = ["fact_id", "op", "statement", "prompt", "content_hash", "statement_hash"]
_MADE = "^[0-9a-f]{32}$"  # as ids are that were made of a prompt

Id = tuple[str, str]
"""Namespace and id."""
Spellings = dict[str, dict[bytes, str]]
"""Of ids that were made of a prompt's spelling, this spelling by the hash of what was said under the id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renewal did, and what writers must know.

    Attributes:
        version: of the table that tells it; the last one where there was nothing to do.
        is_canonical: the table was made in this form, and no version of it needs a renewal.
        num_encoded: events whose keys and prompts were made again.
        num_joined: facts deleted because a later one of the same prompt stands.
        going_on: of prompts of which the table holds a spelling, by the id that they give now: under which id their
            fact goes on, and the spelling that this id was made of.
        since_us: of ids that were made of a spelling, and of those deleted: as of when what stands of them is so.
    """

    version: int
    is_canonical: bool = False
    num_encoded: int = 0
    num_joined: int = 0
    going_on: Mapping[Id, tuple[str, str]] = field(default_factory=dict)
    since_us: Mapping[Id, int] = field(default_factory=dict)

    def under_its_id(self, fact: Fact, *, dated: datetime) -> Fact:
        """The fact under the id that its prompt's fact has in the table.

        That is the id under which it goes on. What cannot stand any more goes where it has lost already: to the id of
        its own spelling, so that what was said before changes nothing, and nothing deleted comes back.

        Args:
            fact: one that was given no id; others stay as they are.
            dated: as of when it is so, where it does not say.
        """
        said = fact.prompt or fact.statement or fact.named
        known = self.going_on.get((fact.namespace, fact.fact_id))
        if (known is None and said.isascii()) or fact.fact_id != default_fact_id(fact.namespace, said):
            return fact
        goes_on, spelling = known or (fact.fact_id, said)
        at_us = microseconds(fact.updated_at or dated)
        for own in dict.fromkeys((collapsed(said), normalized(said, "NFC"), normalized(said, "NFD"))):
            own_id = former_fact_id(fact.namespace, own)
            if known is not None and own_id == goes_on:
                break
            if at_us <= self.since_us.get((fact.namespace, own_id), at_us - 1):
                return _renamed(fact, own_id, own)
        return fact if goes_on == fact.fact_id else _renamed(fact, goes_on, spelling)


def _renamed(fact: Fact, fact_id: str, spelling: str) -> Fact:
    if fact.op == "delete":
        return replace(fact, fact_id=fact_id)
    if not fact.prompt:
        return replace(fact, fact_id=fact_id, statement=spelling)
    is_made = fact.statement == f"{fact.prompt} {fact.target}"
    statement = f"{spelling} {fact.target}" if is_made else fact.statement
    return replace(fact, fact_id=fact_id, prompt=spelling, statement=statement)


def renew(uri: str, encode: Encode, *, now: datetime | None = None) -> Renewal:
    """Bring a table to the canonical form of texts; one that a release of this form made is left alone.

    Content, times and ids of the facts that stay are the same before and after.

    Args:
        uri: of the table, where it lies.
        encode: encodes statements; is asked only where there are keys to make again.
        now: the clock's time if not given; what has expired by then does not take the place of what is live.

    Raises:
        CommitConflictError: other writers never pause.
        TableError: a file is missing or damaged.
        OutputError: the place cannot be written.
    """
    table = FactTable.open(uri, moved=False)
    if table.is_canonical:
        return Renewal(version=table.version, is_canonical=True)
    now_us = microseconds(now or datetime.now(UTC))
    num_encoded = num_joined = 0
    while True:  # until there is a version that has nothing to renew: others may write, or roll back, meanwhile
        table, num_renewed, num_now = retrying(lambda: _encode_again(uri, encode))
        num_encoded += num_now
        if num_renewed:
            continue
        settled = _settle(table, now_us)
        for namespace, ids in settled.others.items():
            selection = Selection(fact_ids=tuple(ids), namespace=namespace)
            num_joined += delete_facts(uri, selection, never_so=True, missing_ok=True, num_first=0).num_deleted
        if not settled.others:
            break
    return Renewal(
        version=table.version,
        num_encoded=num_encoded,
        num_joined=num_joined,
        going_on=settled.going_on,
        since_us=settled.since_us,
    )


def _encode_again(uri: str, encode: Encode) -> tuple[FactTable, int, int]:
    """Write the files again that hold keys of other texts; the table, and how many events were renewed and encoded."""
    table = FactTable.open(uri, moved=False)
    removed: list[DataFile] = []
    added: list[DataFile] = []
    num_renewed = num_encoded = 0
    for file in table.files():
        if not any(_is_stale(row) for row in _spelled_rows(table, file.path)):
            continue
        rows, num_changed, num_in_file = _renewed_rows(table, file.path, encode)
        if not num_changed:
            continue
        namespace, shard = file.partition["namespace"], int(file.partition["shard"])
        rows = rows.append_column("namespace", pa.repeat(namespace, len(rows)))
        rows = rows.append_column("shard", pa.repeat(pa.scalar(shard, pa.int32()), len(rows)))
        added += write_events(table.uri, rows)
        removed.append(file)
        num_renewed += num_changed
        num_encoded += num_in_file
    if removed:
        try:
            table.replace(removed, added, operation="renew", counts={"encoded": num_encoded}, data_change=True)
        except CommitConflictError:  # after other faults of a commit the files may be part of the table
            remove_files(table.uri, [file.path for file in added])
            raise
    return table, num_renewed, num_encoded


def _spelled_rows(table: FactTable, path: str) -> Iterator[dict[str, Any]]:
    """The upserts in a file whose texts may not be in canonical form: of ASCII texts only those with DEL may not be."""
    texts = pa.Table.from_batches(read_batches(table.uri, path, _SPELLED_COLUMNS))
    if not pc.any(_may_be_spelled(texts)).as_py():
        return
    for batch in read_batches(table.uri, path, _COLUMNS):
        yield from batch.filter(_may_be_spelled(batch)).to_pylist()


def _may_be_spelled(rows: Any) -> Any:
    found: Any = pa.scalar(False)
    for name in _SPELLED_COLUMNS:
        column = rows.column(name)
        found = pc.or_(found, pc.or_(pc.invert(pc.string_is_ascii(column)), pc.match_substring(column, "\x7f")))
    return found


def _is_stale(row: Mapping[str, Any]) -> bool:
    """Whether an event's statement is not what the encoder reads, and its key was made of it.

    A statement of which nothing is to be seen, as none is taken any more, keeps its key: there is nothing to read.
    """
    form = canonical(row["statement"])
    return form not in ("", row["statement"]) and row["statement_hash"] != text_hash(form)


def _renewed_rows(table: FactTable, path: str, encode: Encode) -> tuple[pa.Table, int, int]:
    """The rows of a file, renewed to their canonical statements; how many changed, and how many were encoded."""
    rows = pa.Table.from_batches(list(read_batches(table.uri, path, FILE_SCHEMA.names))).combine_chunks()
    is_stale_N = _may_be_spelled(rows).combine_chunks().to_numpy(zero_copy_only=False)
    is_stale_N[is_stale_N] = [_is_stale(row) for row in rows.select(_COLUMNS).filter(pa.array(is_stale_N)).to_pylist()]
    encoded_F = np.flatnonzero(is_stale_N & rows.column("encoded").to_numpy())
    statements: list[Any] = rows.column("statement").take(pa.array(encoded_F, pa.int64())).to_pylist()
    if len(encoded_F):
        keys_FK, prompts_FPD = encode(statements)
        with np.errstate(over="ignore"):  # an overflow shows as an infinity below
            vectors = [np.asarray(one, table.dtype) for one in (keys_FK, prompts_FPD)]
        is_fit_F = np.isfinite(vectors[0]).all(axis=1) & np.isfinite(vectors[1]).all(axis=(1, 2))
        if not is_fit_F.all():
            logger.warning(
                "%s: %d facts keep the keys of their old spelling, since the new ones are not finite in %s",
                table.uri,
                int((~is_fit_F).sum()),
                table.dtype.name,
            )
        is_stale_N[encoded_F[~is_fit_F]] = False
        encoded_F = encoded_F[is_fit_F]
        for name, of_name in zip(("key", "prompt_embeddings"), vectors, strict=True):
            rows = _with_cells(rows, name, encoded_F, vectors_to_cells(of_name[is_fit_F], table.dtype))
    renewed: list[Any] = rows.column("statement").filter(pa.array(is_stale_N)).to_pylist()
    hashes = pa.array([text_hash(canonical(statement)) for statement in renewed], pa.binary())
    rows = _with_cells(rows, "statement_hash", np.flatnonzero(is_stale_N), hashes)
    return rows, len(renewed), len(encoded_F)


def _with_cells(rows: pa.Table, name: str, places: npt.NDArray[np.int64], cells: Any) -> pa.Table:
    mask = np.zeros(len(rows), np.bool_)
    mask[places] = True
    column = pc.replace_with_mask(rows.column(name).combine_chunks(), pa.array(mask), cells)
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)


def _find_spelled(table: FactTable) -> dict[Id, Spellings]:
    """Ids that were made of the spelling of prompts, by what these give now."""
    found: dict[Id, Spellings] = defaultdict(lambda: defaultdict(dict))
    for file in table.files():
        namespace = file.partition["namespace"]
        for row in _spelled_rows(table, file.path):
            prompt = row["prompt"] or row["statement"]
            now = default_fact_id(namespace, prompt)
            if row["op"] == "upsert" and row["fact_id"] == former_fact_id(namespace, prompt) != now:
                found[namespace, now][row["fact_id"]][row["content_hash"]] = prompt
    return found


def _find_deleted(table: FactTable) -> dict[Id, int]:
    """Ids that may have been made of a prompt and were deleted, and as of when, the last time."""
    found: dict[Id, int] = {}
    for file in table.files():
        namespace = file.partition["namespace"]
        for batch in read_batches(table.uri, file.path, ["fact_id", "op", "updated_at"]):
            is_delete: Any = pc.equal(batch.column("op"), pa.scalar("delete"))
            is_meant = pc.and_(is_delete, pc.match_substring_regex(batch.column("fact_id"), _MADE))
            deleted = batch.filter(is_meant)
            times: list[Any] = deleted.column("updated_at").cast(pa.int64()).to_pylist()
            ids: list[Any] = deleted.column("fact_id").to_pylist()
            for fact_id, at_us in zip(ids, times, strict=True):
                found[namespace, fact_id] = max(at_us, found.get((namespace, fact_id), at_us))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settled:
    """See `Renewal`; `others` are, by namespace, live ids beside those under which the prompts' facts go on."""

    going_on: dict[Id, tuple[str, str]]
    since_us: dict[Id, int]
    others: dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """How an id stands."""

    fact_id: str
    is_delete: bool
    is_live: bool
    updated_us: int
    ingested_us: int
    content: bytes


def _settle(table: FactTable, now_us: int) -> _Settled:
    """Decide under which id each prompt's fact goes on: a live one, of several the last, else that deleted last."""
    spelled = _find_spelled(table)
    wanted = [(namespace, fact_id) for (namespace, now), said in spelled.items() for fact_id in (now, *said)]
    standing = _read_standing(table, wanted, now_us)
    settled = _Settled(going_on={}, since_us=_find_deleted(table), others=defaultdict(list))
    for (namespace, now), said in spelled.items():
        states = [standing[namespace, fact_id] for fact_id in (now, *said) if (namespace, fact_id) in standing]
        # An id that says something else by now is not this prompt's any more.
        states = [
            state for state in states if state.is_delete or state.fact_id == now or state.content in said[state.fact_id]
        ]
        if not states:
            continue
        last = max(states, key=lambda state: (state.is_live, state.updated_us, state.ingested_us, state.fact_id))
        spellings = said.get(last.fact_id, {b"": ""})
        spelling = spellings.get(last.content, next(iter(spellings.values())))
        settled.going_on[namespace, now] = last.fact_id, spelling
        settled.since_us.update({(namespace, state.fact_id): state.updated_us for state in states})
        settled.others[namespace] += [state.fact_id for state in states if state.is_live and state != last]
    return replace(settled, others={namespace: ids for namespace, ids in settled.others.items() if ids})


def _read_standing(table: FactTable, wanted: Sequence[Id], now_us: int) -> dict[Id, _Standing]:
    """How some ids stand, by namespace and id; those that the table does not hold are left out."""
    by_shard: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    name_of: dict[bytes, Id] = {}
    for namespace, fact_id in wanted:
        by_shard[shard_of(fact_id, table.num_shards)][namespace].append(fact_id)
        name_of[identity_hash(namespace, fact_id)] = namespace, fact_id
    found = {}
    for shard, ids in by_shard.items():
        arrays = {namespace: pa.array(of_namespace, pa.string()) for namespace, of_namespace in ids.items()}
        events = read_events(table, shard, arrays)
        last = events.take(last_events(events))
        is_live = last.is_live(now_us)
        for row in range(len(last)):
            name = name_of[last.identity_N2[row].astype(">u8").tobytes()]
            found[name] = _Standing(
                fact_id=name[1],
                is_delete=bool(last.is_delete_N[row]),
                is_live=bool(is_live[row]),
                updated_us=int(last.updated_us_N[row]),
                ingested_us=int(last.ingested_us_N[row]),
                content=last.content_N2[row].astype(">u8").tobytes(),
            )
    return found
