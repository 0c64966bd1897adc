"""The key file: what it may hold, that it is followed while it changes, and that no key is in it."""

import asyncio
import json
import stat
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from recipe_ray.errors import ConfigError
from serving import keys
from serving.keys import Key, KeyFile, Keyring, check_exposure, digest_of, new_secret, read_keyring, write_keyring

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROW = {"id": "me", "sha256": digest_of("rr_me"), "scopes": ["infer"], "namespaces": ["news"]}


def make(**values):
    return Key.model_validate({**ROW, **values})


def write(path, *rows):
    path.write_text(json.dumps({"keys": rows}))
    return str(path)


def test_keys_are_random_and_known_by_their_hash_alone(tmp_path):
    secret = new_secret()
    assert secret.startswith("rr_")
    assert len(secret) == 3 + 43  # 32 bytes in base64url
    assert secret != new_secret()
    path = tmp_path / "keys.json"
    write_keyring(str(path), Keyring([make(sha256=digest_of(secret))]))
    assert secret not in path.read_text()
    assert read_keyring(str(path)).find(secret, NOW).id == "me"
    assert read_keyring(str(path)).find(secret[:-1], NOW) is None


def test_a_key_ends_when_it_expires():
    ring = Keyring([make(expires_at=NOW)])
    assert ring.find("rr_me", NOW - timedelta(seconds=1)).id == "me"
    assert ring.find("rr_me", NOW) is None


def test_a_rotated_key_is_taken_until_its_time_is_up():
    rotated = make(
        sha256=digest_of("rr_new"), previous_sha256=digest_of("rr_old"), previous_expires_at=NOW, expires_at=None
    )
    ring = Keyring([rotated])
    assert ring.find("rr_new", NOW).id == ring.find("rr_old", NOW - timedelta(seconds=1)).id == "me"
    assert ring.find("rr_old", NOW) is None
    ends_before = rotated.model_copy(update={"expires_at": NOW - timedelta(hours=1)})
    assert Keyring([ends_before]).find("rr_old", NOW - timedelta(minutes=1)) is None


@pytest.mark.parametrize("name", ["keys.json", "keys.yaml", "keys.yml"])
def test_what_is_written_is_read_back_and_is_its_owners_alone(tmp_path, name):
    ring = Keyring(
        [
            make(expires_at=NOW, models=["m"], concurrency=3),
            make(id="all", sha256=digest_of("x"), namespaces="*", scopes=["admin"]),
        ]
    )
    path = tmp_path / "below" / name
    write_keyring(str(path), ring)
    assert read_keyring(str(path)).keys == ring.keys
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_link_stays_one(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    write(real, ROW)
    link.symlink_to(real)
    write_keyring(str(link), Keyring([]))
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"keys": []}


def test_on_s3(s3):
    uri = f"{s3}/keys.json"
    with keys.locked(uri):
        write_keyring(uri, Keyring([make()]))
    assert read_keyring(uri).find("rr_me", NOW).id == "me"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.json", '{"keys": [{"id": "a", "scopes": ["infer"], "namespaces": "*", "scopes": ["admin"]}]}'),
        ("keys.json", '{"keys": [], "keys": []}'),
        ("keys.yaml", 'keys:\n- id: a\n  scopes: [infer]\n  "scopes": [admin]\n'),
        ("keys.yml", "keys: []\nkeys: []\n"),
    ],
)
def test_a_field_that_stands_twice_is_refused_by_its_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    field = "scopes" if "scopes" in text else "keys"
    with pytest.raises(ConfigError, match=f"{name}: field '{field}' stands twice in an object; give it once"):
        read_keyring(str(tmp_path / name))


def test_yaml_by_hand(tmp_path):
    path = tmp_path / "keys.yaml"
    row = {**ROW, "expires_at": "2026-01-31T08:00:00Z"}
    path.write_text("# by hand\n" + yaml.safe_dump({"keys": [row]}))
    assert read_keyring(str(path)).keys[0].expires_at == datetime(2026, 1, 31, 8, tzinfo=UTC)
    path.write_text(path.read_text().replace("'", ""))  # YAML's own dates
    assert read_keyring(str(path)).keys[0].expires_at == datetime(2026, 1, 31, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sha256": "rr_secret"}, "keys.0.sha256"),
        ({"scopes": ["infer", "rr_secret"]}, "keys.0.scopes.1"),
        ({"scopes": []}, "keys.0.scopes"),
        ({"namespaces": []}, "keys.0.namespaces"),
        ({"namespaces": [" news"]}, "keys.0.namespaces"),
        ({"namespaces": "news"}, "keys.0.namespaces"),
        ({"models": []}, "keys.0.models"),
        ({"concurrency": 0}, "keys.0.concurrency"),
        ({"expires_at": "2026-01-01"}, "keys.0.expires_at"),
        ({"id": "a b"}, "keys.0.id"),
        ({"secret": "rr_secret"}, "keys.0.secret"),
        ({"previous_sha256": "0" * 64}, "go together"),
    ],
)
def test_a_wrong_key_is_named_and_its_values_are_not_told(tmp_path, change, says):
    uri = write(tmp_path / "keys.json", {**ROW, **change})
    with pytest.raises(ConfigError, match=says) as refused:
        read_keyring(uri)
    assert str(refused.value).startswith(uri)
    assert "rr_secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"keys": {}}', '{"keys": [], "more": 1}', '"rr_secret"', "[" * 100_000, "null"]
)
def test_what_is_no_key_file_is_refused(tmp_path, text):
    for name in ("keys.json", "keys.yaml"):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ConfigError, match=name) as refused:
            read_keyring(str(path))
        assert "rr_secret" not in str(refused.value)


def test_two_keys_cannot_be_one(tmp_path):
    with pytest.raises(ConfigError, match="two keys have the id 'me'"):
        read_keyring(write(tmp_path / "keys.json", ROW, {**ROW, "sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="'you' has the hash of 'me'"):
        read_keyring(write(tmp_path / "keys.json", ROW, {**ROW, "id": "you"}))


def test_no_file_is_told_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"jobs/keys\.py add"):
        KeyFile(str(tmp_path / "none.json"))


async def found(file, secret="rr_me"):
    key = (await file.keyring()).find(secret, NOW)
    return None if key is None else key.id


def test_a_changed_file_is_followed(tmp_path):
    path = tmp_path / "keys.json"
    file = KeyFile(write(path, ROW), reload_s=0.05)

    async def follow():
        assert await found(file) == "me"
        write(path, {**ROW, "sha256": digest_of("rr_new")})
        assert await found(file) == "me"  # not looked at yet
        await asyncio.sleep(0.06)
        # The first request after that is refused already, not only the next.
        assert await found(file) is None
        assert await found(file, "rr_new") == "me"

    asyncio.run(follow())


@pytest.mark.parametrize("text", ["{", '{"keys": [{}]}', None])
def test_a_file_that_breaks_later_neither_opens_nor_shuts_the_door(tmp_path, text, caplog):
    path = tmp_path / "keys.json"
    file = KeyFile(write(path, ROW), reload_s=0)

    async def follow():
        path.unlink() if text is None else path.write_text(text)
        assert await found(file) == "me"
        assert "go on to hold" in caplog.text
        write(path, {**ROW, "id": "mended"})
        assert await found(file) == "mended"

    asyncio.run(follow())


def test_a_storage_that_hangs_is_waited_for_once_and_shortly(tmp_path, monkeypatch):
    file = KeyFile(write(tmp_path / "keys.json", ROW), reload_s=0)
    release = threading.Event()
    looks = []

    def hang(uri):
        looks.append(uri)
        release.wait(5)
        return json.dumps({"keys": [{**ROW, "id": "late"}]})

    monkeypatch.setattr(keys, "_text_of", hang)
    monkeypatch.setattr(keys, "_PATIENCE_S", 0.1)

    async def follow():
        started = time.monotonic()
        assert await asyncio.gather(*(found(file) for _ in range(20))) == ["me"] * 20
        assert await found(file) == "me"
        assert time.monotonic() - started < 1
        assert len(looks) == 1
        release.set()
        await asyncio.sleep(0.1)
        assert await found(file) == "late"

    asyncio.run(follow())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_this_machine_needs_no_keys(host):
    check_exposure(host, None, open=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_others_reach_it_only_with_keys_or_where_the_operator_says_so(host, tmp_path):
    with pytest.raises(ConfigError, match=r"give keys .* or host 127\.0\.0\.1, or open"):
        check_exposure(host, None, open=False)
    check_exposure(host, None, open=True)
    check_exposure(host, write(tmp_path / "keys.json", ROW), open=False)


def test_keys_are_checked_before_the_server_starts(tmp_path):
    with pytest.raises(ConfigError, match="no such key file"):
        check_exposure("127.0.0.1", str(tmp_path / "none.json"), open=False)
    with pytest.raises(ConfigError, match="give one of them"):
        check_exposure("127.0.0.1", write(tmp_path / "keys.json", ROW), open=True)
