"""A preview tells before a commit what the table tells after it."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from tables import event_rows, fill, minutes

from recipe_ray.facts import fact_from_record
from recipe_ray.store.indexes.artefacts import build_index
from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.live.preview import preview
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA
from recipe_ray.store.table import FactTable


def told(view):
    """All that a view tells: live facts, and what is found for some queries."""
    queries_BK = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    found = view.search(queries_BK, ["default"] * 5, 3)
    return view.facts("default", limit=100), [[(hit.score, hit.fact_id) for hit in hits] for hits in found]


def fact(number, target, minute, **more):
    return {"id": f"f{number}", "prompt": f"p{number}", "target": target, "updated_at": minutes(minute), **more}


@pytest.mark.parametrize("indexed", [False, True], ids=["table", "index"])
def test_a_preview_tells_what_the_commit_will(tmp_path, identity, indexed):
    uri = str(tmp_path / "table")
    fill(uri, identity, *[fact(number, "old", 1) for number in range(12)])
    if indexed:
        build_index(uri)
    table = FactTable.open(uri)
    changes = [fact(1, "new", 2), fact(2, "too late", 0), fact(20, "new", 2), {"id": "f3", "op": "delete"}]
    facts = [fact_from_record(change, place="test") for change in changes]
    rows = event_rows(facts, table.num_shards, ingested_at=minutes(5))
    rows[3]["updated_at"] = minutes(3)
    files = write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA))
    now = datetime.now(UTC)
    before = told(LiveIndex(uri, fingerprint="f00d").view())

    view = preview(table, files, at=now)
    targets = {one["fact_id"]: one["target"] for one in view.facts("default", limit=100)}
    assert targets == {f"f{number}": "old" for number in range(12) if number != 3} | {"f1": "new", "f20": "new"}
    parts = [preview(table, files, shards=[shard], at=now) for shard in range(table.num_shards)]
    assert sum(len(part.facts("default", limit=100)) for part in parts) == len(targets)

    # Nothing was committed, and whoever opens the table finds what was there.
    assert FactTable.open(uri).version == table.version == 1
    assert told(LiveIndex(uri, fingerprint="f00d").view()) == before != told(view)
    table.commit(files, dump_hash="a dump", counts={})
    assert told(LiveIndex(uri, fingerprint="f00d").view()) == told(view)
