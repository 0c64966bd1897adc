import json
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recipe_ray.errors import FactError
from recipe_ray.facts import (
    DEFAULT_NAMESPACE,
    FIELDS,
    MAX_STATEMENT_CHARS,
    Fact,
    default_fact_id,
    fact_from_record,
    record_from_line,
)

PLACE = "dump.jsonl:17"
NOW = datetime(2027, 1, 1, tzinfo=UTC)
EDIT = {"prompt": "The capital of France is", "target": "Lyon"}


def fact(**record):
    return fact_from_record(record, place=PLACE, now=NOW)


def test_a_statement_is_prompt_and_target_unless_it_is_given():
    assert fact(**EDIT) == Fact(
        fact_id=default_fact_id(DEFAULT_NAMESPACE, EDIT["prompt"]),
        statement="The capital of France is Lyon",
        prompt="The capital of France is",
        target="Lyon",
    )
    assert fact(**EDIT, statement="Lyon is France's capital").statement == "Lyon is France's capital"
    assert fact(statement="Lyon is France's capital").prompt == ""


def test_white_space_is_not_part_of_what_a_fact_says():
    assert fact(prompt="  The capital\n of\tFrance is ", target=" Lyon ") == fact(**EDIT)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (7, "expected a JSON object, got int; give one object a line"),
        ({**EDIT, "answer": "Lyon"}, "unknown field 'answer'; the fields are id, prompt, target"),
        ({"prompt": "The capital of France is"}, "'target' is empty; give the text the edited model should give"),
        ({"prompt": "The capital of France is", "target": " \n"}, "'target' is empty"),
        ({"target": "Lyon"}, "'prompt' is empty; give the words to complete, or a whole 'statement'"),
        ({}, "'prompt' is empty"),
        ({**EDIT, "target": 1897}, "'target' is int; give text"),
        ({**EDIT, "id": True}, "'id' is bool; give text"),
        ({**EDIT, "id": 1.5}, "'id' is float; give text"),
        ({**EDIT, "namespace": ["news"]}, "'namespace' is list; give text"),
        ({**EDIT, "subject": "Fra\x00nce"}, "'subject' holds control characters; remove them"),
        ({**EDIT, "source": "\ud800"}, "'source' holds half of a surrogate pair; give valid Unicode"),
        ({**EDIT, "op": "replace"}, "'op' is 'replace'; give upsert or delete"),
        ({**EDIT, "op": 0}, "'op' is 0; give upsert or delete"),
        ({**EDIT, "op": []}, r"'op' is \[\]; give upsert or delete"),
        ({**EDIT, "op": False}, "'op' is False; give upsert or delete"),
        ({**EDIT, "updated_at": "yesterday"}, "'updated_at' is 'yesterday'; give ISO 8601, such as 2026-01-31T08"),
        ({**EDIT, "updated_at": 1767225600}, "'updated_at' is int; give ISO 8601 text, .*; epoch numbers tell no unit"),
        ({**EDIT, "updated_at": 1767225600.5}, "'updated_at' is float; .*; epoch numbers tell no unit"),
        ({**EDIT, "updated_at": "1767225600"}, "'updated_at' is '1767225600'; .*; epoch numbers tell no unit"),
        ({**EDIT, "updated_at": "1612011231234"}, "'updated_at' is '1612011231234'; .*; epoch numbers tell no unit"),
        ({**EDIT, "updated_at": True}, "'updated_at' is bool; give ISO 8601 text"),
        ({**EDIT, "updated_at": {}}, "'updated_at' is dict; give ISO 8601 text, such as 2026-01-31T08:00:00Z$"),
        ({**EDIT, "expires_at": "soon"}, "'expires_at' is 'soon'; give ISO 8601, such as 2026-01-31T08:00:00Z$"),
        ({**EDIT, "expires_at": 7}, "'expires_at' is int; give ISO 8601 text"),
        (
            {**EDIT, "updated_at": "2026-01-01", "expires_at": "2026-01-01T02:00:00+02:00"},
            r"'expires_at' is 2026-01-01T00:00:00\+00:00, not after 'updated_at' \(2026-01-01T00:00:00\+00:00\)",
        ),
        ({**EDIT, "subject": {"name": "France"}}, "'subject' is dict; give text"),
        ({**EDIT, "updated_at": "0001-01-01T00:00:00+10:00"}, "'updated_at' is '0001-01-01T00:00:00.10:00'; give ISO"),
        ({"op": "delete"}, "a delete needs 'id'"),
        ({"op": "delete", "target": "Lyon"}, "a delete needs 'id'"),
        ({"statement": "x" * (MAX_STATEMENT_CHARS + 1)}, "the statement has 8193 characters, at most 8192 are read"),
    ],
)
def test_a_record_that_is_no_fact_is_refused_by_place_and_field(record, complaint):
    with pytest.raises(FactError, match=f"^dump.jsonl:17: {complaint}"):
        fact_from_record(record, place=PLACE)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "x"', r"not JSON \(Expecting ',' delimiter at column 15\); give one object a line"),
        ("", "not JSON"),
        ('\ufeff{"prompt": "x"}', "not JSON"),
        ("[" * 100_000, "JSON nested too deeply; give one flat object a line"),
        ('{"id": ' + "9" * 5000 + ', "prompt": "x", "target": "y"}', "not JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"prompt": "x", "target": "y", "prompt": "z"}', "field 'prompt' stands twice in an object; give it once"),
        ('{"prompt": "x", "target": {"y": 1, "y": 2}}', "field 'y' stands twice in an object; give it once"),
    ],
    ids=["cut off", "empty", "byte order mark", "deep", "endless number", "array", "doubled", "doubled within"],
)
def test_a_line_that_is_no_fact_is_refused_by_place(line, complaint):
    with pytest.raises(FactError, match=f"^dump.jsonl:17: {complaint}"):
        fact_from_record(record_from_line(line, place=PLACE), place=PLACE)


def test_the_longest_statement_is_read():
    assert len(fact(statement="x" * MAX_STATEMENT_CHARS).statement) == MAX_STATEMENT_CHARS


def test_a_fact_without_id_is_known_by_namespace_and_prompt_alone():
    plain = fact(**EDIT).fact_id
    assert fact(**{**EDIT, "target": "Nice"}).fact_id == plain
    assert (
        fact(**EDIT, statement="In other words", subject="France", source="x", updated_at="2026-01-01").fact_id == plain
    )
    assert fact(**{**EDIT, "prompt": "The  capital of France\tis"}).fact_id == plain
    assert fact(**EDIT, namespace="news").fact_id != plain
    assert fact(**{**EDIT, "prompt": "The capital of Spain is"}).fact_id != plain
    assert fact(**EDIT, id="e1").fact_id == "e1"
    assert fact(**EDIT, id=7).fact_id == "7"
    assert fact(statement="Lyon is a city").fact_id == default_fact_id(DEFAULT_NAMESPACE, "Lyon is a city")


def test_ids_and_hashes_are_those_that_tables_hold():
    assert default_fact_id("default", EDIT["prompt"]) == "517de2776e60c7be21d2b3a93e19bc5f"
    odd = default_fact_id('né"ws', "La capitale du Pérou est « Lima » \\ 😀")
    assert odd == "dbb26df091281459c3e301cd6a7357cc"
    assert fact(**EDIT).statement_hash().hex() == "3f723166984d9f2bb3c62f4bc8d97f6a"
    assert fact(**EDIT).content_hash().hex() == "d5bf3ad9ee8d99053f66661ab4f5d69b"


def test_two_spellings_of_a_prompt_are_one_fact_that_stores_what_was_written():
    plain = fact(prompt="The capital of Perú is", target="Lima")
    spelled = fact(prompt="The capital of Peru\u0301 \u200bis", target="Lima")
    assert spelled.fact_id == plain.fact_id == fact(op="delete", prompt="The capital of Per\u00adú is").fact_id
    assert spelled.statement_hash() == plain.statement_hash()
    assert spelled.prompt == "The capital of Peru\u0301 \u200bis"
    assert spelled.content_hash() != plain.content_hash()
    family = "👨\u200d👩\u200d👧"
    assert fact(prompt=family, target="x").fact_id != fact(prompt="👨👩👧", target="x").fact_id


@pytest.mark.parametrize("name", ["id", "prompt", "target", "statement", "subject", "namespace", "source"])
@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u2060", "\u2800", "\u3164", "\ufe0f", "\u200d \u00ad"])
def test_a_text_of_which_nothing_is_to_be_seen_is_refused(name, text):
    with pytest.raises(FactError, match=f"^dump.jsonl:17: '{name}' holds no visible character; give a text"):
        fact(**{**EDIT, name: text})


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x1f", "\x7f", "\x80", "\x84", "\x86", "\x9f"])
def test_control_characters_of_every_sort_are_refused(character):
    with pytest.raises(FactError, match="'target' holds control characters; remove them"):
        fact(**{**EDIT, "target": f"Ly{character}on"})


def test_a_delete_finds_the_fact_by_id_or_by_the_prompt_it_had():
    assert fact(op="delete", prompt=EDIT["prompt"], namespace="news").fact_id == fact(**EDIT, namespace="news").fact_id
    deleted = fact(op="delete", id="e1", **EDIT, source="editors", updated_at="2026-01-01T00:00:00Z")
    assert deleted == Fact(
        fact_id="e1", statement="", source="editors", updated_at=datetime(2026, 1, 1, tzinfo=UTC), op="delete"
    )


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00:00+02:00", datetime(2026, 1, 31, 6, tzinfo=UTC)),
        ("2026-01-31T08:00:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("20260131", datetime(2026, 1, 31, tzinfo=UTC)),
        (datetime(2026, 1, 31, 8, 0, 0, 123456), datetime(2026, 1, 31, 8, 0, 0, 123456, tzinfo=UTC)),
        (datetime(2026, 1, 31, 8, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 1, 31, 6, tzinfo=UTC)),
        (date(2026, 1, 31), datetime(2026, 1, 31, tzinfo=UTC)),
        ("", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("name", ["updated_at", "expires_at"])
def test_times_are_in_utc_and_without_an_offset_they_were(text, moment, name):
    found = getattr(fact(**EDIT, **{name: text}), name)
    assert found == moment
    assert found is None or found.tzinfo is UTC


def test_a_fact_of_the_future_is_refused_unless_it_is_near():
    for updated_at in (NOW, NOW + timedelta(seconds=3600), NOW - timedelta(days=9000)):
        assert fact(**EDIT, updated_at=updated_at.isoformat()).updated_at == updated_at
    with pytest.raises(FactError, match=r"'updated_at' is 2027-01-01T01:00:01\+00:00, more than 3600 s after the pres"):
        fact(**EDIT, updated_at="2027-01-01T01:00:01Z")
    with pytest.raises(FactError, match="more than 3600 s after the present"):
        fact(op="delete", id="e1", updated_at="9999-12-31T23:59:59Z")
    with pytest.raises(FactError, match="more than 0 s after the present"):
        fact_from_record({**EDIT, "updated_at": "2027-01-01T00:00:01Z"}, place=PLACE, now=NOW, max_future_s=0)
    with pytest.raises(FactError, match="after the present"):  # without a `now`, the clock's
        fact_from_record({**EDIT, "updated_at": "9998-01-01"}, place=PLACE)


def test_a_fact_may_expire_at_any_time_after_it_became_so_and_a_delete_does_not():
    assert fact(**EDIT, updated_at="2026-01-01", expires_at="9999-12-31").expires_at == datetime(
        9999, 12, 31, tzinfo=UTC
    )
    assert fact(**EDIT, expires_at="1999-01-01").expires_at == datetime(1999, 1, 1, tzinfo=UTC)
    assert fact(op="delete", id="e1", updated_at="2026-02-01", expires_at="2026-01-01").expires_at is None


def test_a_namespace_is_the_rows_own_or_the_dumps():
    assert fact_from_record(EDIT, place=PLACE, namespace="news") == fact(**EDIT, namespace="news")
    own = {**EDIT, "namespace": "sport"}
    assert fact_from_record(own, place=PLACE, namespace="news") == fact(**own)


def test_the_content_hash_is_of_all_but_the_times_of_events():
    first = fact(**EDIT, updated_at="2026-01-01").content_hash()
    assert len(first) == 16
    assert fact(**EDIT, updated_at="2026-12-31").content_hash() == first
    changes = (
        {"target": "Nice"},
        {"subject": "France"},
        {"source": "a"},
        {"namespace": "news"},
        {"id": "e1"},
        {"statement": "x"},
        {"expires_at": "2030-01-01"},
        {"expires_at": "2030-01-02"},
    )
    hashes = {fact(**{**EDIT, **change}).content_hash() for change in changes}
    assert len(hashes | {first}) == len(changes) + 1
    assert fact(op="delete", id="e1").content_hash() != fact(statement="x", id="e1").content_hash()
    # Where one text ends and the next begins is part of it.
    assert (
        fact(**EDIT, subject="ab", source="c").content_hash() != fact(**EDIT, subject="a", source="bc").content_hash()
    )


def test_the_statement_hash_is_of_the_statement_alone():
    first = fact(**EDIT).statement_hash()
    assert len(first) == 16
    others = {"id": "e1", "subject": "x", "source": "y", "namespace": "z", "expires_at": "2030-01-01"}
    assert fact(**EDIT, **others).statement_hash() == first
    assert fact(statement="The capital of France is Lyon").statement_hash() == first
    assert fact(**{**EDIT, "target": "Nice"}).statement_hash() != first


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(datetime.isoformat),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
TIME = st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FIELDS, TEXT | JSON),
        **dict.fromkeys(("updated_at", "expires_at"), TIME | JSON),
        "extra": JSON,
    },
)


@settings(max_examples=60, deadline=None)
@given(record=JSON | NEARLY)
@example(record={**EDIT, "updated_at": "9999-12-31T23:59:59-23:59"})
@example(record={**EDIT, "updated_at": "\ud800"})
@example(record={"op": "delete", "prompt": "\ud800"})
def test_whatever_a_dump_holds_is_a_fact_or_a_fact_error(record):
    try:
        parsed = fact_from_record(record_from_line(json.dumps(record), place=PLACE), place=PLACE)
    except FactError as error:
        assert str(error).startswith(PLACE)  # noqa: PT017
        return
    # What a fact says is a record again, and says the same.
    said = {"id": parsed.fact_id, "namespace": parsed.namespace, "op": parsed.op}
    said |= {name: getattr(parsed, name) for name in ("statement", "prompt", "target", "subject", "source")}
    for name in ("updated_at", "expires_at"):
        if (moment := getattr(parsed, name)) is not None:
            said[name] = moment.isoformat()
    assert fact_from_record(said, place=PLACE) == parsed


@settings(deadline=None)
@given(line=st.text())
def test_a_line_of_anything_is_a_fact_or_a_fact_error(line):
    try:
        fact_from_record(record_from_line(line, place=PLACE), place=PLACE)
    except FactError as error:
        assert str(error).startswith(PLACE)  # noqa: PT017
