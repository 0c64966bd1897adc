import numpy as np
import pyarrow as pa
import pytest
from event_arrays import make_events, standing_by_the_rule
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.errors import TableError
from recipe_ray.store.order import find_rows, hashes_of, last_events, vector_rows

# few values each, so that ties and repetitions are common
event_strategy = st.fixed_dictionaries(
    {
        "identity": st.integers(0, 2),
        "updated": st.integers(-(10**15), 10**15) | st.integers(0, 1),
        "ingested": st.integers(0, 3),
        "content": st.integers(0, 2),
        "encoded": st.booleans(),
    }
)
events_strategy = st.lists(event_strategy, max_size=30)


def standing(events):
    found = [events[row] for row in last_events(make_events(events))]
    return {event["identity"]: (event["updated"], event["content"]) for event in found}


@given(events_strategy)
def test_the_last_by_time_then_first_ingestion_then_content_stands(events):
    assert standing(events) == standing_by_the_rule(events)
    assert len(last_events(make_events(events))) == len({event["identity"] for event in events})


@given(events_strategy, st.randoms(use_true_random=False))
def test_the_order_of_the_events_does_not_matter(events, random):
    shuffled = list(events)
    random.shuffle(shuffled)
    assert standing(events) == standing(shuffled)


def test_of_equal_events_the_first_stands_for_all():
    event = {"identity": 0, "updated": 0, "ingested": 0, "content": 0}
    assert last_events(make_events([event, event, event])).tolist() == [0]


@given(events_strategy)
def test_vectors_are_those_of_the_same_id_and_statement(events):
    rows = np.arange(len(events))
    for row, found in zip(rows, vector_rows(make_events(events), rows), strict=True):
        fitting = [
            number
            for number, event in enumerate(events)
            if event["encoded"]
            and (event["identity"], event["content"]) == (events[row]["identity"], events[row]["content"])
        ]
        assert (found in fitting) if fitting else found == -1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)))
)
def test_rows_are_found_where_they_are_first(wanted, among):
    found = find_rows(np.array(wanted, np.uint64).reshape(-1, 2), np.array(among, np.uint64).reshape(-1, 2))
    assert found.tolist() == [among.index(pair) if pair in among else -1 for pair in wanted]


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5))
def test_hashes_compare_as_their_bytes_do(cells):
    numbers = hashes_of(pa.chunked_array([pa.array(cells, pa.binary())]), place="test")
    order = np.lexsort((numbers[:, 1], numbers[:, 0]))
    assert [cells[row] for row in order] == sorted(cells)


@pytest.mark.parametrize("cell", [b"short", None])
def test_a_hash_of_another_length_is_refused(cell):
    with pytest.raises(TableError, match="there: a hash has not 16 bytes"):
        hashes_of(pa.chunked_array([pa.array([cell], pa.binary())]), place="there")
