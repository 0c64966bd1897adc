import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.store.order import EventOrder, hashes_of, last_events

# (identity, updated_at, ingested_at, content hash); few values each, so that ties are common
HASHES = [bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), bytes([255] * 16), bytes(8) + b"\1" + bytes(7)]
events_strategy = st.lists(
    st.tuples(
        st.sampled_from(HASHES),
        st.integers(-(10**15), 10**15) | st.integers(0, 1),
        st.integers(0, 1),
        st.sampled_from(HASHES),
    ),
    max_size=30,
)


def order_of(events):
    return EventOrder(
        identity_N2=hashes_of(b"".join(event[0] for event in events), place="test"),
        updated_us_N=np.array([event[1] for event in events], np.int64),
        ingested_us_N=np.array([event[2] for event in events], np.int64),
        content_N2=hashes_of(b"".join(event[3] for event in events), place="test"),
    )


@given(events_strategy)
def test_the_last_by_time_then_content_stands(events):
    by_identity = {}
    for event in events:
        by_identity[event[0]] = max(event, by_identity.get(event[0], event))
    standing = [events[row] for row in last_events(order_of(events))]
    assert standing == [by_identity[identity] for identity in sorted(by_identity)]


@given(events_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_events_does_not_matter(events, random):
    shuffled = list(events)
    random.shuffle(shuffled)
    one, other = last_events(order_of(events)), last_events(order_of(shuffled))
    assert [events[row] for row in one] == [shuffled[row] for row in other]


def test_of_equal_events_the_first_stands_for_all():
    event = (bytes(16), 0, 0, bytes(16))
    assert last_events(order_of([event, event, event])).tolist() == [0]
