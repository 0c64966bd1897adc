"""What is trained or measured for editors is made once, and found again by all that makes a difference to it."""

from types import SimpleNamespace

import pytest

from recipe_ray.errors import ConfigError
from recipe_ray.eval.methods.context import Context
from recipe_ray.eval.methods.registry import METHODS, build
from recipe_ray.examples import EditRecord


@pytest.fixture(params=["local", "s3"])
def state(request, tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    return f"{request.getfixturevalue('s3')}/trained" if request.param == "s3" else str(tmp_path / "trained")


def context(state, **changes):
    return Context(**{"llm": SimpleNamespace(name="an llm"), "preset": "testbed", "state": state, **changes})


def writing(text, made):
    def make(folder):
        made.append(text)
        (folder / "weights").write_text(text)

    return make


def test_it_is_made_once_and_anew_for_whatever_differs(state):
    made = []

    def kept(number, *, depends_on=1, **changes):
        folder = context(state, **changes).kept("thing", writing(str(number), made), depends_on=depends_on)
        return (folder / "weights").read_text()

    assert [kept(0), kept(1)] == ["0", "0"]
    assert kept(2, seed=1) == "2"
    assert kept(3, depends_on=2) == "3"
    assert kept(4, training=(EditRecord(prompt="p", target="t"),)) == "4"
    assert kept(5) == "0"
    assert made == ["0", "2", "3", "4"]


def test_of_two_workers_that_make_the_same_the_first_counts(tmp_path):
    made = []
    both = context(str(tmp_path))

    def slow(folder):
        both.kept("thing", writing("first", made), depends_on=1)
        writing("second", made)(folder)

    assert (both.kept("thing", slow, depends_on=1) / "weights").read_text() == "first"
    assert made == ["first", "second"]


def test_what_breaks_off_is_made_again(tmp_path):
    def broken(folder):
        (folder / "weights").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        context(str(tmp_path)).kept("thing", broken, depends_on=1)
    folder = context(str(tmp_path)).kept("thing", writing("whole", []), depends_on=1)
    assert (folder / "weights").read_text() == "whole"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs])
def test_an_editor_that_lacks_what_it_needs_says_what_to_give(name):
    with pytest.raises(
        ConfigError, match=rf"^{name} needs .*; give (editor|encoder|training_data|tuning_data)|give its directory"
    ):
        build(name, context("unused"))


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(ConfigError, match="'rmoe' is not known; give one of unedited, recipe"):
        build("rmoe", context("unused"))
