"""A table that moved is found by those who are configured with its old place."""

import dataclasses
import json

import pytest
from test_table import Event, statements

from recipe_ray.errors import TableError
from recipe_ray.store.pointer import POINTER, move_back, read_pointer, write_pointer
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3") + "/knowledge"


def test_the_last_version_is_that_of_the_new_place_and_older_ones_stay(place, append, identity):
    old, new = f"{place}/old", f"{place}/new"
    append(old, Event("a", "old"))
    append(new, Event("a", "new"))
    append(new, Event("b", "newer"))
    write_pointer(old, new, from_version=1)
    assert read_pointer(old).from_version == 1
    table = FactTable.open(old)
    assert (table.uri, table.version) == (new, 2)
    assert statements(read_snapshot(old)) == {"a": "new", "b": "newer"}
    assert statements(read_snapshot(old, version=1)) == {"a": "old"}
    assert FactTable.open(old, moved=False).uri == old
    assert FactTable.create_or_open(old, identity).uri == new
    append(old, Event("c", "to the new place"))
    assert "c" in statements(read_snapshot(new))
    assert move_back(old).to == new
    assert move_back(old) is None
    assert statements(read_snapshot(old)) == {"a": "old"}


def test_the_editor_that_counts_is_that_of_the_new_place(tmp_path, append, identity):
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    append(old, Event("a", "old"))
    newer = dataclasses.replace(identity, fingerprint="beef")
    FactTable.create_or_open(new, newer)
    write_pointer(old, new, from_version=1)
    assert FactTable.create_or_open(old, newer).identity.fingerprint == "beef"
    with pytest.raises(TableError, match="fingerprint beef"):
        FactTable.create_or_open(old, identity)


def test_circles_and_second_hops_are_refused(tmp_path, append):
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    for uri in (one, two, three):
        append(uri, Event("a", "x"))
    with pytest.raises(TableError, match="to itself"):
        write_pointer(one, one, from_version=1)
    write_pointer(one, two, from_version=1)
    with pytest.raises(TableError, match=f"one: moved to {two}; give a table that stayed"):
        write_pointer(three, one, from_version=1)
    write_pointer(two, three, from_version=1)
    with pytest.raises(TableError, match=f"moved on to {three}"):
        FactTable.open(one)
    (tmp_path / "three" / POINTER).write_text((tmp_path / "one" / POINTER).read_text())
    with pytest.raises(TableError, match="moved back"):
        FactTable.open(two)


def test_a_table_that_moved_thrice_goes_back_step_by_step(tmp_path, append):
    one, two, three, four = (str(tmp_path / name) for name in ("one", "two", "three", "four"))
    for uri in (one, two, three, four):
        append(uri, Event("a", uri))
    write_pointer(one, four, from_version=1, previous=[two, three])
    write_pointer(three, four, from_version=1)
    assert FactTable.open(one).uri == FactTable.open(three).uri == four
    for place in (three, two, one):
        move_back(one)
        assert FactTable.open(one).uri == FactTable.open(place).uri == place


def test_a_pointer_of_the_first_release_names_one_place_before(tmp_path):
    write_pointer(str(tmp_path), "/new", from_version=1)
    said = json.loads((tmp_path / POINTER).read_text())
    for previous, expected in ((None, ()), ("/old", ("/old",))):
        (tmp_path / POINTER).write_text(json.dumps(said | {"previous": previous}))
        assert read_pointer(str(tmp_path)).previous == expected


@pytest.mark.parametrize("text", ["{half", "[]", '{"to": "/x"}', '{"to": "/x", "from_version": 1, "at": "never"}'])
def test_a_damaged_pointer_is_said(tmp_path, append, text):
    append(tmp_path, Event("a", "x"))
    (tmp_path / POINTER).write_text(text)
    with pytest.raises(TableError, match=r"_moved\.json: is damaged"):
        FactTable.open(str(tmp_path))
