"""Facts of one namespace that say different things under different ids where one was meant.

`find_contradictions` compares what facts say, `find_near` (in `near`) where their keys lie.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.store.reading.standing import PartitionFiles, Rows, partitions_of, read_ids
from recipe_ray.store.schema import microseconds, shard_of
from recipe_ray.store.table import FactTable, Partition
from recipe_ray.text import canonical

SAID_COLUMNS = ("fact_id", "subject", "prompt", "target", "statement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a fact says; `target` is its whole statement where it has no target."""

    fact_id: str
    subject: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Live facts of one namespace with one prompt and different targets, sorted by id."""

    namespace: str
    facts: tuple[Said, ...]


def find_contradictions(
    table: FactTable,
    *,
    fact_ids: Mapping[str, Collection[str]] | None = None,
    namespace: str | None = None,
    at: datetime | None = None,
) -> Iterator[Contradiction]:
    """Find live facts with the same subject and prompt and different targets, under different ids.

    Texts are compared without case and spaces. A fact without subject has that of any other with its prompt; facts
    without prompt are left out. Memory holds the ids of one partition, 32 bytes for each live fact of a namespace, and
    the texts of facts that are found.

    Args:
        table: at the version to read.
        fact_ids: by namespace; only contradictions that one of these facts is part of, as after an ingest.
        namespace: None for all.
        at: facts that have expired by then are left out; now if not given.

    Raises:
        TableError: a file is missing or damaged.
    """
    at_us = microseconds(at or datetime.now(UTC))
    partitions = partitions_of(table, namespace)
    for name, of_namespace in groupby(partitions, key=lambda partition: partition.namespace):
        if fact_ids is None:
            yield from _contradictions(table, list(of_namespace), at_us, None)
        elif touched := fact_ids.get(name):
            yield from _contradictions(table, list(of_namespace), at_us, frozenset(touched))


def folded(text: str) -> str:
    """A text without case, in its canonical form, to be compared."""
    return canonical(text).casefold()


def said_of(row: Mapping[str, str]) -> Said:
    """What a fact says, from its SAID_COLUMNS."""
    return Said(
        fact_id=row["fact_id"],
        subject=row["subject"],
        prompt=row["prompt"],
        target=row["target"] or row["statement"],
    )


def target_hashes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Hashes, of this process, of the targets of facts, or of the statements of those without."""
    targets, statements = batch.column("target"), batch.column("statement")
    return _hashes(pc.if_else(pc.equal(targets, pa.scalar("")), statements, targets))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hashed:
    """The F live facts of a partition by hashes of this process: `prompt_F` and `target_F` of folded texts."""

    files: PartitionFiles
    rows: Rows
    prompt_F: npt.NDArray[np.int64]
    target_F: npt.NDArray[np.int64]


def _contradictions(
    table: FactTable, partitions: Sequence[Partition], at_us: int, touched: frozenset[str] | None
) -> Iterator[Contradiction]:
    wanted = None if touched is None else _prompts_of(table, partitions, at_us, touched)
    if wanted is not None and not len(wanted):
        return
    hashed = [_hash(table, partition, at_us, wanted) for partition in partitions]
    ambiguous = _ambiguous(
        np.concatenate([part.prompt_F for part in hashed]), np.concatenate([part.target_F for part in hashed])
    )
    said: list[Said] = []
    for part in hashed:
        rows = part.rows[np.isin(part.prompt_F, ambiguous)]
        for _, batch in part.files.batches(rows, SAID_COLUMNS):
            said += [said_of(row) for row in batch.to_pylist()]
    said.sort(key=lambda fact: (folded(fact.prompt), fact.fact_id))
    for _, of_prompt in groupby(said, key=lambda fact: folded(fact.prompt)):
        for facts in _by_subject(list(of_prompt)):
            if touched is None or not touched.isdisjoint(fact.fact_id for fact in facts):
                yield Contradiction(namespace=partitions[0].namespace, facts=tuple(facts))


def _by_subject(facts: list[Said]) -> Iterator[list[Said]]:
    """Facts of one prompt that contradict each other: of one subject, and those without."""
    subjects = sorted({folded(fact.subject) for fact in facts} - {""}) or [""]
    for subject in subjects:
        together = [fact for fact in facts if folded(fact.subject) in ("", subject)]
        if len({folded(fact.target) for fact in together}) > 1:
            yield together


def _hash(table: FactTable, partition: Partition, at_us: int, wanted: npt.NDArray[np.int64] | None) -> _Hashed:
    ids = read_ids(table, partition)
    rows, prompts, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for places, batch in ids.files.batches(ids.live(at_us), ("prompt", "target", "statement")):
        prompt_B = _hashes(batch.column("prompt"))
        chosen = np.not_equal(batch.column("prompt").to_numpy(zero_copy_only=False), "")
        if wanted is not None:
            chosen &= _is_among(prompt_B, wanted)
        rows.append(places[chosen])
        prompts.append(prompt_B[chosen])
        targets.append(target_hashes(batch)[chosen])
    return _Hashed(
        files=ids.files,
        rows=np.concatenate(rows),
        prompt_F=np.concatenate(prompts),
        target_F=np.concatenate(targets),
    )


def _prompts_of(
    table: FactTable, partitions: Sequence[Partition], at_us: int, touched: frozenset[str]
) -> npt.NDArray[np.int64]:
    """Hashes of the prompts of some facts, as far as they are live; sorted, each once."""
    shards = {shard_of(fact_id, table.num_shards) for fact_id in touched}
    wanted = pa.array(sorted(touched), pa.string())
    found = [np.empty(0, np.int64)]
    for partition in partitions:
        if partition.shard in shards:
            ids = read_ids(table, partition)
            rows = ids.live(at_us)
            is_touched = pc.is_in(ids.fact_ids.take(pa.array(rows, pa.int64())), value_set=wanted)
            rows = rows[is_touched.to_numpy(zero_copy_only=False)]
            found += [_hashes(batch.column("prompt")) for _, batch in ids.files.batches(rows, ("prompt",))]
    return np.unique(np.concatenate(found))


def _is_among(hash_B: npt.NDArray[np.int64], sorted_W: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """np.isin, which would look through all that is sorted already with every batch; W > 0."""
    return sorted_W[np.searchsorted(sorted_W[:-1], hash_B)] == hash_B


def _ambiguous(prompt_F: npt.NDArray[np.int64], target_F: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Prompts with several targets."""
    pairs = np.unique(np.stack([prompt_F, target_F], axis=1), axis=0)
    prompts, counts = np.unique(pairs[:, 0], return_counts=True)
    return prompts[counts > 1]


def _hashes(texts: Any) -> npt.NDArray[np.int64]:
    # Python's own hash, of this process alone, is the fastest; texts with equal hashes are compared afterwards.
    return np.fromiter((hash(folded(text)) for text in texts.to_pylist()), np.int64, len(texts))
