import dataclasses

import numpy as np
import pytest
from event_arrays import make_events, standing_by_the_rule
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.store.order import NEVER_US, concatenate, last_events, vector_rows
from recipe_ray.store.resolve import EXPIRY_MARGIN_US, IngestCounts, resolve

NOW = 100 + EXPIRY_MARGIN_US


def upsert(identity, content, updated, ingested=50, **more):
    return {"identity": identity, "content": content, "updated": updated, "ingested": ingested, **more}


def delete(identity, updated, ingested=50):
    return {"identity": identity, "content": 99, "updated": updated, "ingested": ingested, "delete": True}


def stored(*events):
    return make_events({"encoded": not event.get("delete", False), **event} for event in events)


def counts(**given):
    return IngestCounts(**given)


A, B, C, D = 1, 2, 3, 4
X, Y, Z = 11, 12, 13


@pytest.mark.parametrize(
    ("table", "dump", "written", "encoded", "expected"),
    [
        ([], [upsert(A, X, 1), upsert(B, Y, 1)], [0, 1], [0, 1], counts(read=2, new=2)),
        ([], [upsert(A, X, 2), upsert(A, Y, 1)], [0], [0], counts(read=2, new=1, superseded=1)),
        ([], [upsert(A, X, 1), upsert(A, X, 1)], [0], [0], counts(read=2, new=1, superseded=1)),
        ([], [upsert(A, X, 1), delete(A, 2)], [1], [], counts(read=2, deleted=1, superseded=1)),
        # of one time and different: both are kept, the greater hash stands
        ([], [upsert(A, X, 1), upsert(A, Y, 1)], [0, 1], [0, 1], counts(read=2, new=1, superseded=1)),
        ([upsert(A, X, 1, 9)], [upsert(A, Y, 2)], [0], [0], counts(read=1, changed=1)),
        ([upsert(A, X, 1, 9)], [upsert(A, X, 1)], [], [], counts(read=1, unchanged=1)),
        # said again as of a later time: written, so that nothing older wins, and not encoded
        ([upsert(A, X, 1, 9)], [upsert(A, X, 9)], [0], [], counts(read=1, unchanged=1)),
        # said again by an ingest that began earlier
        ([upsert(A, X, 1, 60)], [upsert(A, X, 1)], [0], [], counts(read=1, unchanged=1)),
        ([upsert(A, X, 5, 9)], [upsert(A, Y, 4)], [], [], counts(read=1, superseded=1)),
        ([upsert(A, X, 5, 9)], [upsert(A, Y, 5)], [0], [0], counts(read=1, changed=1)),
        ([upsert(A, X, 5, 60)], [upsert(A, Y, 5)], [0], [0], counts(read=1, superseded=1)),
        ([upsert(A, X, 1, 9)], [delete(A, 2)], [0], [], counts(read=1, deleted=1)),
        ([upsert(A, X, 3, 9)], [delete(A, 2)], [], [], counts(read=1, superseded=1)),
        ([delete(A, 1, 9)], [delete(A, 2)], [0], [], counts(read=1, unchanged=1)),
        ([delete(A, 1, 9)], [upsert(A, X, 2)], [0], [0], counts(read=1, new=1)),
        ([], [delete(A, 1)], [0], [], counts(read=1, deleted=1)),
        # the statement was encoded before
        ([upsert(A, X, 1, 9), upsert(A, Y, 2, 9)], [upsert(A, X, 3)], [0], [], counts(read=1, changed=1)),
        ([upsert(A, X, 1, 9)], [upsert(A, Y, 2, statement=X)], [0], [], counts(read=1, changed=1)),
        # past their time, now or since they came
        ([], [upsert(A, X, 1, expires=NOW)], [0], [0], counts(read=1, expired=1)),
        ([], [upsert(A, X, 1, expires=NOW - EXPIRY_MARGIN_US)], [0], [], counts(read=1, expired=1)),
        ([], [upsert(A, X, 1, expires=NOW + 1)], [0], [0], counts(read=1, new=1)),
        ([upsert(A, X, 1, 9, expires=NOW)], [upsert(A, Y, 2)], [0], [0], counts(read=1, new=1)),
        ([upsert(B, X, 1, 9)], [upsert(A, X, 2)], [0], [0], counts(read=1, new=1)),
    ],
)  # fmt: skip
def test_what_becomes_of_the_rows(table, dump, written, encoded, expected):
    found = resolve(make_events(dump), stored(*table), now_us=NOW)
    assert np.flatnonzero(found.written_N).tolist() == written
    assert np.flatnonzero(found.encoded_N).tolist() == encoded
    assert found.counts == expected


def test_what_became_of_each_row_is_told():
    table = stored(upsert(A, X, 1, 9), delete(B, 1, 9))
    dump = [delete(A, 2), upsert(B, Y, 0), delete(B, 3), delete(C, 1), upsert(D, Y, 1), upsert(D, X, 0)]
    found = resolve(make_events(dump), table, now_us=NOW)
    assert found.outcomes() == ["deleted", "superseded", "unchanged", "absent", "new", "superseded"]
    assert found.counts == counts(read=6, deleted=2, unchanged=1, new=1, superseded=2)


event_strategy = st.fixed_dictionaries(
    {
        "identity": st.integers(0, 2),
        "updated": st.integers(0, 2),
        "content": st.integers(0, 3),
    }
).map(
    # what an event says tells whether it deletes and when it expires
    lambda event: {
        **event,
        "delete": event["content"] == 0,
        "statement": event["content"] % 2,
        "expires": {0: NEVER_US, 1: NEVER_US, 2: 1, 3: NOW + 900}[event["content"]],
    }
)
dumps_strategy = st.lists(st.lists(event_strategy, min_size=1, max_size=4), min_size=1, max_size=5)


@given(dumps_strategy, st.randoms(use_true_random=False))
def test_the_table_tells_the_same_whoever_commits_first(dumps, random):
    """What is left out never matters: against the rule over every event of every dump."""
    everything = [{**event, "ingested": ingested} for ingested, dump in enumerate(dumps) for event in dump]
    order = list(enumerate(dumps))
    random.shuffle(order)
    table = stored()
    for ingested, dump in order:
        events = make_events({**event, "ingested": ingested} for event in dump)
        found = resolve(events, table, now_us=NOW)
        written = events.take(found.written_N)
        table = concatenate([table, dataclasses.replace(written, encoded_N=found.encoded_N[found.written_N])])
        assert found.counts.read == len(dump) == sum(dataclasses.asdict(found.counts).values()) - len(dump)
    rows = last_events(table)
    assert standing_by_the_rule(everything) == {
        int(identity): (int(updated), int(content))
        for identity, updated, content in zip(
            table.identity_N2[rows, 0], table.updated_us_N[rows], table.content_N2[rows, 0], strict=True
        )
    }
    live = rows[table.take(rows).is_live(NOW)]
    assert (vector_rows(table, live) >= 0).all()  # whatever stands and is live has vectors


@given(dumps_strategy)
def test_a_dump_that_is_ingested_again_adds_nothing(dumps):
    table = stored()
    for ingested, dump in enumerate([*dumps, *dumps]):
        events = make_events({**event, "ingested": ingested} for event in dump)
        found = resolve(events, table, now_us=NOW)
        if ingested >= len(dumps):
            assert not found.written_N.any()
        table = concatenate([table, dataclasses.replace(events, encoded_N=found.encoded_N).take(found.written_N)])
