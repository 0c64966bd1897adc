"""The commands of keys.py, as an operator meets them."""

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from jobs import keys
from jobs._cli import run
from serving.keys import read_keyring


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def job(monkeypatch, capsys, path):
    """Runs a command on the file; gives exit status, standard output and standard error."""

    def start(*flags):
        monkeypatch.setattr(sys, "argv", ["keys.py", *flags, "--keys", str(path)])
        with pytest.raises(SystemExit) as exit_:
            run(keys.main, keys.command_type())
        said = capsys.readouterr()
        return exit_.value.code, said.out, said.err

    return start


def whose(path, secret, *, in_hours=0.0):
    key = read_keyring(str(path)).find(secret, datetime.now(UTC) + timedelta(hours=in_hours))
    return None if key is None else key.id


def test_a_new_key_is_said_once_and_may_do_what_was_asked(job, path):
    status, out, _ = job(
        "add", "team", "--namespaces", "news", "sport", "--scopes", "infer", "facts:read", "--models", "m",
        "--concurrency", "4", "--expires-at", "2100-01-01",
    )  # fmt: skip
    assert status == 0
    secret = out.strip()
    assert whose(path, secret) == "team"
    (key,) = read_keyring(str(path)).keys
    assert (key.scopes, key.namespaces, key.models, key.concurrency) == (
        ("infer", "facts:read"),
        ("news", "sport"),
        ("m",),
        4,
    )
    assert key.expires_at == datetime(2100, 1, 1, tzinfo=UTC)
    assert secret not in path.read_text()
    assert secret not in job("list")[1]


def test_keys_are_added_one_after_the_other(job, path):
    first, second = (job("add", name, "--namespaces", "*")[1].strip() for name in ("one", "two"))
    assert (whose(path, first), whose(path, second)) == ("one", "two")
    assert read_keyring(str(path)).keys[0].namespaces == "*"
    assert read_keyring(str(path)).keys[0].scopes == ("infer",)


def test_a_revoked_key_is_gone(job, path):
    secret = job("add", "team", "--namespaces", "*")[1].strip()
    assert job("revoke", "team")[0] == 0
    assert whose(path, secret) is None
    assert read_keyring(str(path)).keys == ()


@pytest.mark.parametrize(("flags", "hours"), [((), 24), (("--keep-hours", "1"), 1), (("--keep-hours", "0"), 0)])
def test_a_rotated_key_goes_on_for_a_while(job, path, flags, hours):
    old = job("add", "team", "--namespaces", "news", "--scopes", "admin")[1].strip()
    new = job("rotate", "team", *flags)[1].strip()
    assert (whose(path, new), whose(path, old)) == ("team", "team" if hours else None)
    assert whose(path, old, in_hours=hours + 0.1) is None
    (key,) = read_keyring(str(path)).keys
    assert (key.scopes, key.namespaces) == (("admin",), ("news",))


def test_a_second_rotation_ends_the_first_key(job, path):
    first = job("add", "team", "--namespaces", "*")[1].strip()
    second = job("rotate", "team")[1].strip()
    third = job("rotate", "team")[1].strip()
    assert [whose(path, secret) for secret in (first, second, third)] == [None, "team", "team"]


def test_list_in_json(job):
    job("add", "team", "--namespaces", "*")
    job("add", "gone", "--namespaces", "news", "--expires-at", "2020-01-01")
    lines = [json.loads(line) for line in job("list", "--json")[1].splitlines()]
    assert [line["id"] for line in lines[:-1]] == ["team", "gone"]
    assert lines[-1] == {"summary": {"keys": 2, "expired": 1}}
    assert "sha256" not in lines[0]


def test_a_new_key_in_json(job, path):
    answer = json.loads(job("add", "team", "--namespaces", "*", "--json")[1])
    assert answer["id"] == whose(path, answer["key"]) == "team"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("add", "team", "--namespaces", "*"), "there is a key 'team'"),
        (("add", "a b", "--namespaces", "*"), "id:"),
        (("add", "new", "--namespaces", "*", "news"), "'*' alone"),
        (("add", "new", "--namespaces"), "namespaces"),
        (("add", "new", "--namespaces", " news"), "namespaces"),
        (("add", "new", "--namespaces", "*", "--concurrency", "0"), "concurrency"),
        (("add", "new", "--namespaces", "*", "--expires-at", "soon"), "expires_at is 'soon'"),
        (("revoke", "nobody"), "there is no key 'nobody'"),
        (("rotate", "nobody"), "there is no key 'nobody'"),
        (("rotate", "team", "--keep-hours", "-1"), "keep_hours is -1"),
    ],
)
def test_a_fault_changes_nothing_and_is_one_line(job, path, flags, says):
    job("add", "team", "--namespaces", "*")
    before = path.read_text()
    status, out, err = job(*flags)
    assert (status, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1
    assert path.read_text() == before


def test_only_add_makes_the_file(job, path):
    for command in (("list",), ("revoke", "team"), ("rotate", "team")):
        status, _, err = job(*command)
        assert status == 1
        assert "no such key file" in err
    assert not path.exists()


def test_an_unknown_scope_is_a_wrong_command_line(job, path):
    assert job("add", "team", "--namespaces", "*", "--scopes", "everything")[0] == 64
    assert not path.exists()
