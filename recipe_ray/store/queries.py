"""What a table tells a person: its live facts, one of them, what an id went through."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, microseconds
from recipe_ray.store.standing import PartitionEvents, Rows, partitions_of, read_ids
from recipe_ray.store.table import FactTable

_SEARCHED = ("statement", "prompt", "target", "subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class FactList:
    """Live facts that were asked for.

    Attributes:
        facts: the first of them by namespace and id: FACT_COLUMNS.
        num_facts: how many there are in all.
    """

    facts: pa.Table
    num_facts: int


def list_facts(
    table: FactTable,
    *,
    limit: int,
    namespace: str | None = None,
    prefix: str = "",
    contains: str = "",
    at: datetime | None = None,
) -> FactList:
    """Find live facts, sorted by namespace and id.

    Args:
        table: at the version to read.
        limit: facts returned; all are counted.
        namespace: None for all.
        prefix: of the id.
        contains: in statement, prompt, target or subject, whatever the case.
        at: facts that have expired by then are left out; now if not given.

    Raises:
        TableError: a file is missing or damaged.
    """
    at_us = microseconds(at or datetime.now(UTC))
    found = pa.schema([EVENT_SCHEMA.field(name) for name in FACT_COLUMNS]).empty_table()
    num_facts = 0
    for partition in partitions_of(table, namespace):
        ids = read_ids(table, partition)
        rows = ids.live(at_us)
        if prefix:
            rows = rows[pc.starts_with(ids.fact_ids.take(pa.array(rows)), prefix).to_numpy(zero_copy_only=False)]
        if contains:
            rows = rows[_containing(ids, rows, contains)]
        num_facts += len(rows)
        found = _lowest(pa.concat_tables([found, ids.read(rows[:limit], FACT_COLUMNS)]), limit)
    return FactList(facts=found, num_facts=num_facts)


def _containing(ids: PartitionEvents, rows: Rows, text: str) -> npt.NDArray[np.bool_]:
    """Which of the rows hold a text, in any of the columns that are searched."""
    holds_N = np.zeros(len(ids.events), np.bool_)
    for places, batch in ids.batches(rows, _SEARCHED):
        for column in batch.columns:
            holds_N[places] |= pc.match_substring(column, text, ignore_case=True).to_numpy(zero_copy_only=False)
    return holds_N[rows]


def _lowest(facts: pa.Table, limit: int) -> pa.Table:
    return facts.sort_by([("namespace", "ascending"), ("fact_id", "ascending")]).slice(0, limit)
