"""A made-up editor, tables of it, and an S3 server on loopback."""

import numpy as np
import pyarrow as pa
import pytest

from recipe_ray.config import EditorIdentity
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.table import FactTable


@pytest.fixture(scope="session")
def identity():
    return EditorIdentity(
        fingerprint="f00d",
        encoder="an encoder",
        llm="an llm",
        llm_width=5,
        key_width=4,
        num_virtual_tokens=3,
        sentinel_K=np.array([0.25, -1.5, 1e-3, 7.0], np.float32),
    )


@pytest.fixture(scope="session")
def append(identity):
    """Commit events to a table, which is made where there is none; returns the new version."""

    def append(uri, *events):
        table = FactTable.create_or_open(str(uri), identity)
        rows = pa.Table.from_pylist([event.row(table.num_shards) for event in events], EVENT_SCHEMA)
        return table.commit(write_events(table.uri, rows), dump_hash="a dump", counts={"new": len(events)})

    return append
