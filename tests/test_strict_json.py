"""Fields that stand twice: in any object of any JSON, and in no other."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.strict_json import DoubledFieldError, decode, path_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_what_has_no_field_twice_is_read_as_json_reads_it(value):
    text = json.dumps(value)
    assert decode(text) == json.loads(text)


def _places(value, path=()):
    """Every field, by its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*path, name)
            yield from _places(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _places(inner, (*path, number))


def _written(value, doubled, path=()):
    """JSON with one field written twice."""
    if isinstance(value, dict):
        fields = []
        for name, inner in value.items():
            here = (*path, name)
            fields += [f"{json.dumps(name)}: {_written(inner, doubled, here)}"] * (2 if here == doubled else 1)
        return "{" + ", ".join(fields) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(inner, doubled, (*path, n)) for n, inner in enumerate(value)) + "]"
    return json.dumps(value)


@given(VALUES.filter(lambda value: any(_places(value))), st.data())
def test_any_field_written_twice_is_found_by_its_path(value, data):
    doubled = data.draw(st.sampled_from(list(_places(value))))
    text = _written(value, doubled)
    with pytest.raises(DoubledFieldError) as found:
        decode(text)
    assert str(found.value) == doubled[-1]
    assert path_of(found.value, text) == ".".join(map(str, doubled))


def test_of_a_text_that_breaks_off_or_is_too_deep_the_name_is_told():
    for rest in ("", ", " + "[" * 100_000):
        text = '{"a": {"b": 1, "\\u0062": 2}' + rest
        with pytest.raises(DoubledFieldError) as found:
            decode(text)
        assert path_of(found.value, text) == "b"
