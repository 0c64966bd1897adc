"""JSON of users: what Python's reader takes in silence is refused, in lines and in arrays alike."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_ray.strict_json import (
    MAX_DEPTH,
    DoubledFieldError,
    Fault,
    JsonError,
    decode,
    decode_array,
    decode_flat,
    parse,
    path_of,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=8,
)
ARRAY_ADVICE = "give an array of records, or one record a line"
REFUSED = [
    ('{"a": 1, "b": 2, "a": 3}', "field 'a' stands twice in an object; give it once"),
    ('{"a": [{"b": {"c": 1, "c": 1}}]}', "field 'c' stands twice"),
    ('{"\\ud800": 1, "\\ud800": 1}', r"field '\\ud800' stands twice"),
    ('{"a": NaN}', "NaN is no JSON; give a number, a text or null"),
    ('{"a": [-Infinity]}', "-Infinity is no JSON"),
    ("9" * 5000, r"a number has over 4300 digits\); give it as text"),
    ("[" * 20_000 + "]" * 20_000, "JSON nested too deeply"),
    ('{"a":' * 20_000 + "1" + "}" * 20_000, "JSON nested too deeply"),
]


@given(st.lists(VALUES), st.sampled_from([None, 0, 3]))
def test_an_array_gives_what_is_written_in_it_and_a_line_the_same(values, indent):
    assert list(decode_array(f" {json.dumps(values, indent=indent)}\n")) == values
    assert [decode_flat(json.dumps(value)) for value in values] == values


@pytest.mark.parametrize(("text", "complaint"), REFUSED)
def test_what_python_would_take_in_silence_is_refused(text, complaint):
    for reader in (decode, decode_flat):
        with pytest.raises(JsonError, match=complaint):
            reader(text)


@pytest.mark.parametrize(("text", "complaint"), REFUSED[:-2])
def test_an_element_that_is_refused_costs_itself_alone(text, complaint):
    first, fault, last = decode_array(f'[{{"x": 1}}, {text}, "y"]')
    assert (first, last) == ({"x": 1}, "y")
    assert isinstance(fault, Fault)
    assert fault.text == text
    with pytest.raises(JsonError, match=complaint):
        raise JsonError(fault.reason)


@pytest.mark.parametrize("depth", [*range(MAX_DEPTH - 1, MAX_DEPTH + 2), 500, 900, 960, 990, 1000, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_whatever_is_read_can_be_worked_on_and_what_is_too_deep_is_one_line(depth, opening, closing):
    text = opening * depth + "1" + closing * depth

    def read(reader):
        try:
            (value,) = reader()
        except JsonError as error:
            return str(error)
        return value.reason if isinstance(value, Fault) else json.dumps(value).replace(" ", "")

    in_line, in_array = read(lambda: [decode_flat(text)]), read(lambda: decode_array(f"[{text}]"))
    if depth <= MAX_DEPTH:
        assert in_line == in_array == text
    else:
        assert in_line == "JSON nested too deeply; give one flat object a line"
        assert in_array in (in_line, f"is no JSON array (nested too deeply to be read); {ARRAY_ADVICE}")


@pytest.mark.parametrize(
    "text", ["", "{}", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]]", "[1],", "[1]\n[2]", "[\ufeff1]"]
)
def test_an_array_that_is_none_is_refused_with_the_place(text):
    with pytest.raises(JsonError, match=r"^is no JSON array \(.*line \d column \d.*\); give an array of records, or"):
        list(decode_array(text))


def test_large_numbers_stay_what_they_are():
    assert decode(f"[{'9' * 4300}, 1e999]") == [int("9" * 4300), math.inf]


def test_lines_that_end_in_cr_alone_say_so():
    with pytest.raises(JsonError, match=r"^not JSON \(Extra data at column 10\); .*; end lines with LF, not CR alone"):
        decode('{"a": 1}\r{"a": 2}\r')


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
        parse(text)
    assert found.value.name == doubled[-1]
    assert path_of(found.value, text) == ".".join(map(str, doubled))


def test_of_a_text_that_breaks_off_or_is_too_deep_the_name_is_told():
    for rest in ("", ", " + "[" * 100_000):
        text = '{"a": {"b": 1, "\\u0062": 2}' + rest
        with pytest.raises(DoubledFieldError) as found:
            parse(text)
        assert path_of(found.value, text) == "b"
