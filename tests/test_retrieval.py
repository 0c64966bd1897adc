import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from recipe_ray.retrieval import NO_FACT, decide


def scores(*values):
    return np.array(values, np.float32)


def test_a_fact_is_applied_only_where_it_is_strictly_nearer_than_the_sentinel():
    above, below = np.nextafter(np.float32(1), np.float32([2, 0]))
    found = decide(np.array([4, 7, 2]), scores(above, 1, below), scores(1, 1, 1))
    assert found.row_B.tolist() == [4, NO_FACT, NO_FACT]
    assert found.nearest_B.tolist() == [4, 7, 2]
    assert found.row_B.dtype == np.int64


@pytest.mark.parametrize("sentinel", [-np.inf, -3.0, 0.0])
def test_an_empty_table_gives_no_fact(sentinel):
    found = decide(np.array([NO_FACT]), scores(-np.inf), scores(sentinel))
    assert found.row_B.tolist() == [NO_FACT]


def test_an_undefined_score_gives_no_fact():
    assert decide(np.array([0, 0]), scores(np.nan, 1), scores(0, np.nan)).row_B.tolist() == [NO_FACT, NO_FACT]


FLOATS = arrays.arrays(np.float32, 5, elements=st.floats(-2, 2, width=16))


@given(nearest=arrays.arrays(np.int64, 5, elements=st.integers(NO_FACT, 3)), score=FLOATS, sentinel=FLOATS)
def test_the_rule_is_that_of_each_query_alone(nearest, score, sentinel):
    found = decide(nearest, score, sentinel)
    expected = [
        row if row != NO_FACT and fact > threshold else NO_FACT
        for row, fact, threshold in zip(nearest, score, sentinel, strict=True)
    ]
    assert found.row_B.tolist() == expected
    assert found.score_B is score
    assert found.sentinel_B is sentinel
