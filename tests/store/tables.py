"""Tables of facts with texts, made without an encoder."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from recipe_ray.facts import Fact, fact_from_record
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, shard_of
from recipe_ray.store.table import FactTable

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def minutes(number):
    return EPOCH + timedelta(minutes=number)


def event_rows(facts, num_shards, *, ingested_at=EPOCH, keys=None):
    """Rows of EVENT_SCHEMA for facts; upserts get vectors, by default made from the statement."""
    rows = []
    for number, fact in enumerate(facts):
        is_upsert = fact.op == "upsert"
        key = np.full(4, sum(fact.statement.encode()) % 97) if keys is None else keys[number]
        rows.append(
            {name: getattr(fact, name, None) for name in EVENT_SCHEMA.names}
            | {
                "shard": shard_of(fact.fact_id, num_shards),
                "updated_at": fact.updated_at or EPOCH,
                "ingested_at": ingested_at,
                "content_hash": fact.content_hash(),
                "statement_hash": fact.statement_hash(),
                "encoded": is_upsert,
                "key": np.asarray(key, np.float16).tobytes() if is_upsert else None,
                "prompt_embeddings": np.arange(15, dtype=np.float16).tobytes() if is_upsert else None,
            }
        )
    return rows


def fill(uri, identity, *facts, ingested_at=EPOCH, keys=None):
    """Commit facts, or records as a dump holds them; returns the new version."""
    table = FactTable.create_or_open(str(uri), identity)
    facts = [fact if isinstance(fact, Fact) else fact_from_record(fact, place="test") for fact in facts]
    rows = event_rows(facts, table.num_shards, ingested_at=ingested_at, keys=keys)
    events = pa.Table.from_pylist(rows, EVENT_SCHEMA)
    return table.commit(write_events(table.uri, events), dump_hash=f"dump {table.version}", counts={"new": len(rows)})
