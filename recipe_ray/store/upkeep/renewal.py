"""A table of a release that told texts apart by their spelling, brought to their canonical form.

Such a table may hold keys made of another text than the encoder reads now, and facts of one prompt under several ids.
The keys are made again, in the files where they lie; of such facts the last one stays. Ids stay as they are, since
users hold them: a row without one is written under the id that its prompt's fact has, and with the spelling that this
id was made of, by which it is known for what it is.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.facts import Fact, default_fact_id, former_fact_id, text_hash
from recipe_ray.store.delta import CommitConflictError, retrying
from recipe_ray.store.order import last_events
from recipe_ray.store.parquet import DataFile, read_batches, write_events
from recipe_ray.store.schema import FILE_SCHEMA, identity_hash, shard_of, vectors_to_cells
from recipe_ray.store.snapshot import read_events
from recipe_ray.store.stored import remove_files
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.deletion import Selection, delete_facts
from recipe_ray.store.writing import Encode
from recipe_ray.text import canonical

logger = logging.getLogger(__name__)

_SPELLED_COLUMNS = ["statement", "prompt"]
_COLUMNS = ["fact_id", "op", "statement", "prompt", "content_hash", "statement_hash"]

Prompt = tuple[str, str]
"""Namespace, and the id that a prompt gives now."""
Spellings = dict[str, dict[bytes, str]]
"""Of ids that were made of a prompt's spelling, this spelling by the hash of what was said under the id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renewal did, and what writers must know.

    Attributes:
        version: of the table that tells it; the last one where there was nothing to do.
        num_encoded: events whose keys and prompts were made again.
        num_joined: facts deleted because a later one of the same prompt stands.
        former: of facts that were given no id, where it differs from what their prompts give now, id and spelling.
    """

    version: int
    num_encoded: int = 0
    num_joined: int = 0
    former: Mapping[Prompt, tuple[str, str]] = field(default_factory=dict)

    def under_its_id(self, fact: Fact) -> Fact:
        """The fact under the id that its prompt's fact has in the table."""
        stored = self.former.get((fact.namespace, fact.fact_id))
        if stored is None:
            return fact
        fact_id, spelling = stored
        if fact.op == "delete":
            return replace(fact, fact_id=fact_id)
        if fact.prompt:
            return replace(fact, fact_id=fact_id, prompt=spelling)
        return replace(fact, fact_id=fact_id, statement=spelling)


def renew(uri: str, encode: Encode) -> Renewal:
    """Bring a table to the canonical form of texts; one that a release of this form made is left alone.

    Content, times and ids of the facts that stay are the same before and after.

    Args:
        uri: of the table, where it lies.
        encode: encodes statements; is asked only where there are keys to make again.

    Raises:
        CommitConflictError: other writers never pause.
        TableError: a file is missing or damaged.
        OutputError: the place cannot be written.
    """
    table = FactTable.open(uri, moved=False)
    if table.is_canonical:
        return Renewal(version=table.version)
    num_encoded = retrying(lambda: _encode_again(FactTable.open(uri, moved=False), encode))
    table = FactTable.open(uri, moved=False)
    former, others = _settle(table, _find_spelled(table))
    num_joined = 0
    for namespace, ids in others.items():
        num_joined += delete_facts(
            uri, Selection(fact_ids=tuple(ids), namespace=namespace), missing_ok=True, num_first=0
        ).num_deleted
    return Renewal(
        version=FactTable.open(uri, moved=False).version,
        num_encoded=num_encoded,
        num_joined=num_joined,
        former=former,
    )


def _encode_again(table: FactTable, encode: Encode) -> int:
    """Write the files again that hold keys of other texts; the number of events encoded."""
    removed: list[DataFile] = []
    added: list[DataFile] = []
    num_encoded = 0
    for file in table.files():
        if not any(_is_stale(row) for row in _spelled_rows(table, file.path)):
            continue
        rows, num_in_file = _renewed_rows(table, file.path, encode)
        namespace, shard = file.partition["namespace"], int(file.partition["shard"])
        rows = rows.append_column("namespace", pa.repeat(namespace, len(rows)))
        rows = rows.append_column("shard", pa.repeat(pa.scalar(shard, pa.int32()), len(rows)))
        added += write_events(table.uri, rows)
        removed.append(file)
        num_encoded += num_in_file
    if removed:
        try:
            table.replace(removed, added, operation="renew", counts={"encoded": num_encoded}, data_change=True)
        except CommitConflictError:  # after other faults of a commit the files may be part of the table
            remove_files(table.uri, [file.path for file in added])
            raise
    return num_encoded


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


def _renewed_rows(table: FactTable, path: str, encode: Encode) -> tuple[pa.Table, int]:
    """The rows of a file with keys, prompts and hashes of the canonical statements, and how many were encoded."""
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
    return _with_cells(rows, "statement_hash", np.flatnonzero(is_stale_N), hashes), len(encoded_F)


def _with_cells(rows: pa.Table, name: str, places: npt.NDArray[np.int64], cells: Any) -> pa.Table:
    mask = np.zeros(len(rows), np.bool_)
    mask[places] = True
    column = pc.replace_with_mask(rows.column(name).combine_chunks(), pa.array(mask), cells)
    return rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)


def _find_spelled(table: FactTable) -> dict[Prompt, Spellings]:
    """Ids that were made of the spelling of prompts, by what these give now."""
    found: dict[Prompt, Spellings] = defaultdict(lambda: defaultdict(dict))
    for file in table.files():
        namespace = file.partition["namespace"]
        for row in _spelled_rows(table, file.path):
            prompt = row["prompt"] or row["statement"]
            now = default_fact_id(namespace, prompt)
            if row["op"] == "upsert" and row["fact_id"] == former_fact_id(namespace, prompt) != now:
                found[namespace, now][row["fact_id"]][row["content_hash"]] = prompt
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """How an id stands."""

    fact_id: str
    is_live: bool
    updated_us: int
    ingested_us: int
    content: bytes


def _settle(
    table: FactTable, spelled: Mapping[Prompt, Spellings]
) -> tuple[dict[Prompt, tuple[str, str]], dict[str, list[str]]]:
    """Under which id and spelling each prompt's fact goes on, and by namespace the other ids that are live.

    It goes on under the id that is live, of several the last one, else under the one that was deleted last.
    """
    former: dict[Prompt, tuple[str, str]] = {}
    others: dict[str, list[str]] = defaultdict(list)
    wanted = [(namespace, fact_id) for (namespace, now), said in spelled.items() for fact_id in (now, *said)]
    standing = _read_standing(table, wanted)
    for (namespace, now), said in spelled.items():
        states = [standing[namespace, fact_id] for fact_id in (now, *said) if (namespace, fact_id) in standing]
        # An id that says something else by now is not this prompt's any more.
        states = [
            state
            for state in states
            if not state.is_live or state.fact_id == now or state.content in said[state.fact_id]
        ]
        if not states:
            continue
        last = max(states, key=lambda state: (state.is_live, state.updated_us, state.ingested_us, state.fact_id))
        if last.fact_id != now:
            spellings = said[last.fact_id]
            former[namespace, now] = last.fact_id, spellings.get(last.content, next(iter(spellings.values())))
        others[namespace] += [state.fact_id for state in states if state.is_live and state != last]
    return former, {namespace: ids for namespace, ids in others.items() if ids}


def _read_standing(table: FactTable, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], _Standing]:
    """How some ids stand, by namespace and id; those that the table does not hold are left out."""
    by_shard: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    name_of: dict[bytes, tuple[str, str]] = {}
    for namespace, fact_id in wanted:
        by_shard[shard_of(fact_id, table.num_shards)][namespace].append(fact_id)
        name_of[identity_hash(namespace, fact_id)] = namespace, fact_id
    found = {}
    for shard, ids in by_shard.items():
        arrays = {namespace: pa.array(of_namespace, pa.string()) for namespace, of_namespace in ids.items()}
        events = read_events(table, shard, arrays)
        last = events.take(last_events(events))
        for row in range(len(last)):
            name = name_of[last.identity_N2[row].astype(">u8").tobytes()]
            found[name] = _Standing(
                fact_id=name[1],
                is_live=not last.is_delete_N[row],
                updated_us=int(last.updated_us_N[row]),
                ingested_us=int(last.ingested_us_N[row]),
                content=last.content_N2[row].astype(">u8").tobytes(),
            )
    return found
