"""Values made ahead of their use."""

import threading

import pytest

from recipe_ray.model.prefetch import prefetched


def test_values_come_in_order_and_a_few_ahead_of_their_use():
    made = []
    ready = threading.Event()

    def make(item):
        made.append(item)
        if item == 2:
            ready.set()
        return item * 10

    values = prefetched(make, range(6), depth=2)
    assert next(values) == 0
    assert ready.wait(5)  # while value 0 is in use
    assert max(made) <= 3
    assert list(values) == [10, 20, 30, 40, 50]


def test_an_exception_comes_where_its_value_would_have_come():
    values = prefetched(lambda item: 1 // item, [1, 0, 1])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_nothing_is_made_once_nobody_asks():
    made = []
    values = prefetched(made.append, range(1000), depth=2)
    next(values)
    values.close()
    assert len(made) < 10
