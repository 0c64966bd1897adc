import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from recipe_ray.facts import fact_from_record
from recipe_ray.store.dump import Scan, ScannedFacts, microseconds
from recipe_ray.store.order import EventOrder, hashes_of
from recipe_ray.store.resolve import IngestCounts, resolve
from recipe_ray.store.schema import identity_hash
from recipe_ray.store.table import StandingEvents

INGESTED = datetime(2026, 6, 1, tzinfo=UTC)


def parsed(records):
    return [fact_from_record(record, place="test:1") for record in records]


def day(number):
    return f"2026-01-{number:02}"


def upsert(fact_id, target, on):
    return {"id": fact_id, "prompt": "p", "target": target, "updated_at": day(on)}


def delete(fact_id, on):
    return {"id": fact_id, "op": "delete", "updated_at": day(on)}


def hashes(values):
    return hashes_of(b"".join(values), place="test")


def scan_of(records, bad_lines=()):
    facts = parsed(records)
    return Scan(
        facts=ScannedFacts(
            file_N=np.zeros(len(facts), np.int32),
            line_N=np.arange(1, len(facts) + 1),
            identity_N2=hashes(identity_hash(fact.namespace, fact.fact_id) for fact in facts),
            content_N2=hashes(fact.content_hash() for fact in facts),
            updated_us_N=np.array([microseconds(fact.updated_at) for fact in facts], np.int64),
            is_delete_N=np.array([fact.op == "delete" for fact in facts], np.bool_),
        ),
        bad_lines=list(bad_lines),
        digests={},
    )


def standing_of(records, ingested_at=datetime(2026, 5, 1, tzinfo=UTC)):
    facts = scan_of(records).facts
    return StandingEvents(
        order=EventOrder(
            identity_N2=facts.identity_N2,
            updated_us_N=facts.updated_us_N,
            ingested_us_N=np.full(len(records), microseconds(ingested_at)),
            content_N2=facts.content_N2,
        ),
        is_delete_N=facts.is_delete_N,
    )


def counts(**given):
    zeros = {field.name: 0 for field in dataclasses.fields(IngestCounts)}
    return IngestCounts(**{**zeros, **given})


@pytest.mark.parametrize(
    ("stored", "dump", "rows", "expected"),
    [
        ([], [upsert("a", "x", 1), upsert("b", "y", 1)], [0, 1], counts(read=2, new=2)),
        ([], [upsert("a", "new", 2), upsert("a", "old", 1)], [0], counts(read=2, new=1, superseded=1)),
        ([], [upsert("a", "x", 1), upsert("a", "x", 1)], [0], counts(read=2, new=1, superseded=1)),
        ([], [upsert("a", "x", 1), delete("a", 2)], [1], counts(read=2, deleted=1, superseded=1)),
        ([upsert("a", "x", 1)], [upsert("a", "y", 2)], [0], counts(read=1, changed=1)),
        ([upsert("a", "x", 1)], [upsert("a", "x", 1)], [], counts(read=1, unchanged=1)),
        ([upsert("a", "x", 1)], [upsert("a", "x", 9)], [], counts(read=1, unchanged=1)),
        ([upsert("a", "x", 5)], [upsert("a", "y", 4)], [], counts(read=1, superseded=1)),
        ([upsert("a", "x", 5)], [upsert("a", "y", 5)], [0], counts(read=1, changed=1)),
        ([upsert("a", "x", 1)], [delete("a", 2)], [0], counts(read=1, deleted=1)),
        ([upsert("a", "x", 3)], [delete("a", 2)], [], counts(read=1, superseded=1)),
        ([delete("a", 1)], [delete("a", 2)], [], counts(read=1, unchanged=1)),
        ([delete("a", 1)], [upsert("a", "x", 2)], [0], counts(read=1, new=1)),
        ([], [delete("never there", 1)], [0], counts(read=1, deleted=1)),
        ([upsert("b", "x", 1), upsert("c", "x", 1)], [upsert("c", "y", 2), upsert("a", "z", 2)], [0, 1],
         counts(read=2, new=1, changed=1)),
    ],
)  # fmt: skip
def test_what_becomes_of_the_lines(stored, dump, rows, expected):
    resolution = resolve(scan_of(dump), standing_of(stored), ingested_at=INGESTED)
    assert resolution.rows.tolist() == rows
    assert resolution.counts == expected


def test_every_line_read_is_counted_once():
    rng = np.random.default_rng(0)
    records = [upsert(str(rng.integers(20)), str(rng.integers(3)), int(rng.integers(1, 9))) for _ in range(300)]
    stored = [upsert(str(number), str(number % 3), 4) for number in range(0, 20, 2)]
    found = resolve(scan_of(records, ["a bad line", "another"]), standing_of(stored), ingested_at=INGESTED).counts
    assert found.read == 302
    assert found.read == sum(dataclasses.asdict(found).values()) - found.read


def test_of_two_dumps_the_one_ingested_later_wins_a_tie():
    later = standing_of([upsert("a", "x", 5)], ingested_at=datetime(2026, 7, 1, tzinfo=UTC))
    assert resolve(scan_of([upsert("a", "y", 5)]), later, ingested_at=INGESTED).counts == counts(read=1, superseded=1)
