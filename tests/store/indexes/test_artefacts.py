"""An index beside a table: built once, mapped, checked, and telling the same as an exact search of the snapshot."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recipe_ray.errors import OutputError, TableError
from recipe_ray.facts import Fact
from recipe_ray.retrieval import NO_FACT
from recipe_ray.store.files import list_below, write_text
from recipe_ray.store.indexes import artefacts
from recipe_ray.store.indexes.artefacts import build_index, latest_index, open_index
from recipe_ray.store.indexes.exact import FactIndex
from recipe_ray.store.indexes.manifest import MANIFEST_FILE, read_manifest
from recipe_ray.store.indexes.tuning import IndexSettings
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, shard_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SOON = datetime.now(UTC) + timedelta(days=1)
K, P, D = 4, 3, 5


def event(number, rng, *, namespace="default", expires_at=None, num_shards=4):
    fact = Fact(fact_id=f"f{number}", statement=f"statement {number}", prompt=f"p {number}", target="t")
    return {
        **{field.name: getattr(fact, field.name, None) for field in EVENT_SCHEMA},
        "namespace": namespace,
        "shard": shard_of(fact.fact_id, num_shards),
        "updated_at": LONG_AGO,
        "expires_at": expires_at,
        "ingested_at": LONG_AGO,
        "content_hash": fact.content_hash(),
        "statement_hash": fact.statement_hash(),
        "encoded": True,
        "key": rng.standard_normal(K).astype("<f2").tobytes(),
        "prompt_embeddings": rng.standard_normal(P * D).astype("<f2").tobytes(),
    }


def commit(uri, identity, events):
    table = FactTable.create_or_open(str(uri), identity)
    files = write_events(table.uri, pa.Table.from_pylist(events, EVENT_SCHEMA))
    return table.commit(files, dump_hash=str(len(events)), counts={"new": len(events)})


def fill(uri, identity, *, expires_at=None, num_facts=200):
    rng = np.random.default_rng(0)
    events = [event(number, rng) for number in range(num_facts)]
    events += [event(number, rng, namespace="other", expires_at=expires_at) for number in range(10)]
    return commit(uri, identity, events)


@pytest.fixture
def table(tmp_path, identity):
    fill(tmp_path / "table", identity)
    return str(tmp_path / "table")


def queries(num=60):
    return np.random.default_rng(5).standard_normal((num, K)).astype(np.float32), ["default", "other", "no"] * (
        num // 3
    )


@pytest.mark.parametrize("kind", ["auto", "ivf", "hnsw", "sq8"])
def test_an_opened_index_finds_what_an_exact_search_of_the_snapshot_finds(table, identity, kind):
    manifest = build_index(table, settings=IndexSettings(kind=kind, min_recall=1.0))
    index, snapshot = open_index(manifest.uri, verify=True), read_snapshot(table)
    exact = FactIndex(snapshot.keys_FK, snapshot.facts["namespace"].to_pylist())
    queries_BK, namespaces = queries()
    found = index.retrieve(queries_BK, identity.sentinel_K, namespaces)
    expected = exact.retrieve(queries_BK, identity.sentinel_K, namespaces)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))
    assert index.num_facts == len(snapshot.facts) == manifest.num_facts == 210
    assert "other" in index
    assert "no" not in index
    rows = snapshot.facts.to_pylist()
    for row in range(index.num_facts):
        assert index.fact(row) == rows[row]
        np.testing.assert_array_equal(index.prompt(row), snapshot.prompts_FPD[row])
        assert index.prompt(row).dtype == snapshot.prompts_FPD.dtype


def test_rows_are_found_beyond_the_first_batch_of_the_arrow_file(table, monkeypatch):
    monkeypatch.setattr(artefacts, "ROWS_PER_BATCH", 16)
    index, snapshot = open_index(build_index(table).uri), read_snapshot(table)
    assert [index.fact(row)["fact_id"] for row in range(210)] == snapshot.facts["fact_id"].to_pylist()
    np.testing.assert_array_equal(np.stack([index.prompt(row) for row in range(210)]), snapshot.prompts_FPD)


def test_equal_facts_of_two_shards_are_found_in_the_lowest_row(tmp_path, identity):
    events = [event(number, np.random.default_rng(0)) for number in range(12)]
    assert len({one["shard"] for one in events}) > 1
    commit(tmp_path / "table", identity, events)
    index = open_index(build_index(str(tmp_path / "table")).uri)
    query_1K = np.frombuffer(events[0]["key"], "<f2").astype(np.float32)[None]
    assert index.search(query_1K, ["default"])[0].tolist() == [0]


def test_a_fact_is_not_found_from_the_moment_it_expires(tmp_path, identity):
    fill(tmp_path / "table", identity, expires_at=SOON)
    index = open_index(build_index(str(tmp_path / "table")).uri)
    queries_BK, _ = queries(6)
    before, _ = index.search(queries_BK, ["other"] * 6, at=SOON - timedelta(microseconds=1))
    after, score_B = index.search(queries_BK, ["other"] * 6, at=SOON)
    again, _ = index.search(queries_BK, ["other"] * 6)
    assert (before >= 200).all()
    np.testing.assert_array_equal(again, before)
    assert set(after) == {NO_FACT}
    assert np.isneginf(score_B).all()


def test_of_facts_that_expire_at_different_times_the_best_that_still_holds_is_found(tmp_path, identity):
    rng = np.random.default_rng(1)
    times = [None if number % 3 == 0 else SOON + timedelta(hours=number) for number in range(60)]
    commit(tmp_path / "table", identity, [event(n, rng, expires_at=time) for n, time in enumerate(times)])
    index, snapshot = open_index(build_index(str(tmp_path / "table")).uri), read_snapshot(str(tmp_path / "table"))
    queries_BK, _ = queries(30)
    expires_at = snapshot.facts["expires_at"].to_pylist()
    for hours in (0, 20, 40, 80, 10):
        at = SOON + timedelta(hours=hours)
        holds = np.array([expires is None or expires > at for expires in expires_at])
        scores_BF = np.where(holds, queries_BK @ snapshot.keys_FK.astype(np.float32).T, -np.inf)
        nearest_B, _ = index.search(queries_BK, ["default"] * 30, at=at)
        np.testing.assert_array_equal(nearest_B, scores_BF.argmax(axis=1))


def test_the_same_version_and_settings_are_built_once(table, identity):
    first = build_index(table)
    files = {Path(uri): Path(uri).stat().st_mtime_ns for uri in list_below(first.uri)}
    again = build_index(table)
    assert (first.repeated, again.repeated) == (False, True)
    assert dataclasses.replace(again, repeated=False, identity=first.identity) == first
    assert files == {Path(uri): Path(uri).stat().st_mtime_ns for uri in list_below(first.uri)}
    assert build_index(table, settings=IndexSettings(kind="sq8")).uri != first.uri
    commit(table, identity, [event(999, np.random.default_rng(2))])
    assert build_index(table).version == first.version + 1
    assert build_index(table, first.version).uri == first.uri


def test_the_latest_index_is_of_the_highest_version_and_complete(table, identity):
    assert latest_index(table) is None
    first = build_index(table)
    other = build_index(table, settings=IndexSettings(kind="sq8"))
    assert latest_index(table) == other.uri
    commit(table, identity, [event(number, np.random.default_rng(2)) for number in range(300, 320)])
    second = build_index(table)
    assert latest_index(table) == second.uri
    assert latest_index(table, first.version) == other.uri
    Path(second.uri, MANIFEST_FILE).unlink()
    assert latest_index(table) == other.uri
    with pytest.raises(TableError, match="no complete index"):
        open_index(second.uri)


def test_a_build_that_broke_off_is_completed(table, monkeypatch):
    monkeypatch.setattr(artefacts, "write_text", lambda uri, text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(table)
    assert latest_index(table) is None
    monkeypatch.setattr(artefacts, "write_text", write_text)
    manifest = build_index(table)
    assert open_index(manifest.uri, verify=True).num_facts == 210
    assert len(list_below(manifest.uri)) == 1 + 3 * len(manifest.parts)


def test_an_index_of_another_editor_is_refused(table, identity):
    manifest = build_index(table)
    assert open_index(manifest.uri, fingerprint=identity.fingerprint).num_facts == 210
    with pytest.raises(TableError, match=r"fingerprint f00d, the given one has beef"):
        open_index(manifest.uri, fingerprint="beef")


@pytest.mark.parametrize("suffix", ["faiss", "npy", "arrow"])
def test_a_missing_short_or_altered_file_is_named(table, suffix):
    manifest = build_index(table)
    path = Path(manifest.uri, manifest.parts[1].files[suffix].name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(TableError, match=f"{path.name}: is damaged .has the checksum"):
        open_index(manifest.uri, verify=True)
    path.write_bytes(content[:-3])
    with pytest.raises(TableError, match=f"{path.name}: is damaged .has {len(content) - 3} bytes, not {len(content)}"):
        open_index(manifest.uri)
    path.unlink()
    with pytest.raises(TableError, match=f"{path.name}: is missing"):
        open_index(manifest.uri)


@pytest.mark.parametrize("suffix", ["faiss", "npy", "arrow"])
def test_a_file_of_the_right_size_that_is_no_such_file_is_named(table, suffix):
    manifest = build_index(table)
    path = Path(manifest.uri, manifest.parts[0].files[suffix].name)
    path.write_bytes(b"\7" * path.stat().st_size)
    with pytest.raises(TableError, match=f"{path.name}: is damaged"):
        open_index(manifest.uri)


@pytest.mark.parametrize("change", [{"layout": 0}, {"parts": 3}, {"dtype": None, "settings": {"kind": "flat"}}])
def test_a_manifest_that_cannot_be_read_is_named(table, change):
    path = Path(build_index(table).uri, MANIFEST_FILE)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TableError, match=MANIFEST_FILE):
        open_index(str(path.parent))


def test_the_manifest_tells_what_was_measured(table, identity):
    asked = []

    def encode(texts):
        asked.extend(texts)
        return np.ones((len(texts), K), np.float32)

    done = []
    settings = IndexSettings(kind="hnsw", num_queries=8)
    manifest = build_index(table, settings=settings, encode_queries=encode, on_part=lambda *told: done.append(told))
    assert len(asked) == sum(min(8, part.num_facts) for part in manifest.parts)
    assert all(text.startswith("p ") for text in asked)
    assert [(number, total) for number, total, _ in done] == [(n + 1, len(done)) for n in range(len(done))]
    read = read_manifest(manifest.uri)
    assert dataclasses.replace(read, identity=identity) == dataclasses.replace(manifest, identity=identity)
    np.testing.assert_array_equal(read.identity.sentinel_K, identity.sentinel_K)
    assert read.measured_on == "prompts"
    assert read.recall >= settings.min_recall
    assert read.size_bytes == sum(Path(uri).stat().st_size for uri in list_below(manifest.uri)) - (
        Path(manifest.uri, MANIFEST_FILE).stat().st_size
    )
    assert set(FACT_COLUMNS) <= set(open_index(manifest.uri).fact(0))


def test_an_index_of_no_facts_finds_none(tmp_path, identity):
    uri = FactTable.create_or_open(str(tmp_path / "empty"), identity).uri
    index = open_index(build_index(uri).uri)
    nearest_B, score_B = index.search(queries(3)[0], ["default"] * 3)
    assert index.num_facts == 0
    assert nearest_B.tolist() == [NO_FACT] * 3
    assert np.isneginf(score_B).all()


def test_on_s3_it_is_built_found_and_opened_from_the_cache(s3, tmp_path, identity, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    fill(f"{s3}/table", identity)
    fill(tmp_path / "table", identity)
    manifest = build_index(f"{s3}/table")
    assert build_index(f"{s3}/table").repeated
    assert latest_index(f"{s3}/table") == manifest.uri
    queries_BK, namespaces = queries()
    local = open_index(build_index(str(tmp_path / "table")).uri)
    np.testing.assert_array_equal(
        open_index(manifest.uri, verify=True).search(queries_BK, namespaces)[1], local.search(queries_BK, namespaces)[1]
    )


def test_a_place_that_cannot_be_written_is_named(table):
    Path(table, "_index").write_text("a file")
    with pytest.raises(OutputError, match="_index"):
        build_index(table)


def test_of_an_index_on_s3_only_the_files_of_the_wanted_shards_are_fetched(s3, tmp_path, identity, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    fill(f"{s3}/table", identity)
    manifest = build_index(f"{s3}/table")
    index = open_index(manifest.uri, shards=[1, 3], verify=True)
    wanted = [part for part in manifest.parts if part.shard in (1, 3)]
    assert index.num_facts == sum(part.num_facts for part in wanted)
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert fetched == {file.name for part in wanted for file in part.files.values()}
