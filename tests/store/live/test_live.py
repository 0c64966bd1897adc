"""A live index tells at every version what a slow look at that version tells, however it came to it."""

import functools
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import TableError
from recipe_ray.facts import Fact
from recipe_ray.store.indexes.artefacts import build_index, latest_index, open_index
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.indexes.tuning import IndexSettings
from recipe_ray.store.live.index import LiveIndex, LiveSettings
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, FACT_COLUMNS, microseconds, shard_of
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable
from recipe_ray.store.upkeep.compaction import compact
from recipe_ray.store.upkeep.maintenance import rollback

K, P, D = 4, 2, 3
NUM_SHARDS = 4
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
TIMES = [
    datetime.now(UTC) + timedelta(days=1, minutes=minutes) for minutes in (5, 30)
]  # after the longest run of tests
IDENTITY = EditorIdentity(
    fingerprint="f00d",
    encoder="an encoder",
    llm="an llm",
    llm_width=D,
    key_width=K,
    num_virtual_tokens=P,
    sentinel_K=np.zeros(K, np.float32),
)
NAMESPACES = ("default", "other")
EAGER = LiveSettings(fold_facts=3, fold_share=0.0, linger_s=0.0)


def vectors(statement):
    """Keys of few different entries, so that many facts score the same."""
    rng = np.random.default_rng(sum(statement.encode()))
    return rng.integers(-1, 2, K).astype("<f2"), rng.standard_normal(P * D).astype("<f2")


def fact(number, statement="s", **changes):
    fields = {"fact_id": f"f{number}", "statement": f"{statement} {number}", "prompt": "p", "target": "t"}
    return Fact(**{**fields, "updated_at": LONG_AGO, **changes})


def delete(number, **changes):
    return fact(number, op="delete", **changes)


def encoded_already(table):
    found = set()
    for file in table.files():
        rows = pq.read_table(f"{table.uri}/{file.path}", columns=["fact_id", "statement_hash", "encoded"]).to_pylist()
        found |= {
            (file.partition["namespace"], row["fact_id"], row["statement_hash"]) for row in rows if row["encoded"]
        }
    return found


def commit(uri, *facts, ingested_at=None):
    """Commit facts as ingest would: the vectors of a statement that the id had before are not written again."""
    table = FactTable.create_or_open(str(uri), IDENTITY, num_shards=NUM_SHARDS)
    known, now, rows = encoded_already(table), datetime.now(UTC), []
    for one in facts:
        expired = one.expires_at is not None and one.expires_at <= now - timedelta(hours=1)
        needs = one.op == "upsert" and not expired
        encoded = needs and (one.namespace, one.fact_id, one.statement_hash()) not in known
        key, prompt = vectors(one.statement)
        rows.append(
            {name: getattr(one, name, None) for name in EVENT_SCHEMA.names}
            | {
                "shard": shard_of(one.fact_id, NUM_SHARDS),
                "ingested_at": ingested_at or now,
                "content_hash": one.content_hash(),
                "statement_hash": one.statement_hash(),
                "encoded": encoded,
                "key": key.tobytes() if encoded else None,
                "prompt_embeddings": prompt.tobytes() if encoded else None,
            }
        )
    files = write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA))
    return table.commit(files, dump_hash=f"dump {table.version}", counts={})


@functools.lru_cache
def slow_look(uri, version, at):
    snapshot = read_snapshot(uri, version, at=at)
    return snapshot, snapshot.facts.to_pylist()


def expected_hits(snapshot, rows, query_K, namespace, top_k):
    """(score, shard, id), all facts scored and sorted."""
    scores = inner_products(query_K[None], snapshot.keys_FK.astype(np.float32)) if rows else []
    found = [
        (-float(score), shard_of(row["fact_id"], NUM_SHARDS), row["fact_id"])
        for row, score in zip(rows, scores, strict=True)
        if row["namespace"] == namespace
    ]
    return [(-score, shard, fact_id) for score, shard, fact_id in sorted(found)[:top_k]]


def check(uri, version, views):
    """Hold views, which together have all the shards, against the table."""
    rng = np.random.default_rng(version)
    queries_BK = rng.standard_normal((6, K)).astype(np.float32).round(1)
    queries_BK[3:] = queries_BK[3:].round()  # these tie
    namespaces = [*NAMESPACES, "nowhere"] * 2
    assert {view.version for view in views} == {version}
    for at in TIMES:
        snapshot, rows = slow_look(uri, version, at)
        place = {(row["namespace"], row["fact_id"]): number for number, row in enumerate(rows)}
        for top_k in (1, 3, 100):
            found = [view.search(queries_BK, namespaces, top_k, at=at) for view in views]
            for query, (query_K, namespace) in enumerate(zip(queries_BK, namespaces, strict=True)):
                hits = [hit for of_view in found for hit in of_view[query]]
                told = sorted((-hit.score, hit.shard, hit.fact_id) for hit in hits)[:top_k]
                told = [(-score, shard, fact_id) for score, shard, fact_id in told]
                assert told == expected_hits(snapshot, rows, query_K, namespace, top_k)
        for view, of_view in zip(views, found, strict=True):
            for hit in (hit for hits in of_view[:2] for hit in hits):
                fact = view.fact_of(hit)
                number = place[fact["namespace"], hit.fact_id]
                assert fact == rows[number]
                np.testing.assert_array_equal(view.prompt(hit), snapshot.prompts_FPD[number])
        for namespace in NAMESPACES:
            wanted = sorted((row for row in rows if row["namespace"] == namespace), key=lambda row: row["fact_id"])
            assert sum(view.counts(at=at).get(namespace, 0) for view in views) == len(wanted)
            listed = [row for view in views for row in view.facts(namespace, limit=1000, at=at)]
            assert sorted(listed, key=lambda row: row["fact_id"]) == wanted
            if len(views) == 1:
                middle = wanted[len(wanted) // 2]["fact_id"] if wanted else "f"
                after = [row for row in wanted if row["fact_id"] > middle][:2]
                assert views[0].facts(namespace, after_id=middle, limit=2, at=at) == after
            for number in range(0, 30, 3):
                told = [view.fact(namespace, f"f{number}", at=at) for view in views]
                row = place.get((namespace, f"f{number}"))
                assert [one for one in told if one] == ([] if row is None else [rows[row]])


def at_random(uri, rng, version):
    """Commit something to a table; returns the last version then."""
    what = rng.choice(["put", "put", "put", "delete", "rollback", "compact", "drop"])
    if what == "rollback" and version > 1:
        return rollback(uri, int(rng.integers(1, version))).version
    if what in ("compact", "drop"):
        compact(uri, drop_tombstones_older_than=timedelta(0) if what == "drop" else None)
        return FactTable.open(uri).version
    facts = []
    for number in rng.choice(30, size=int(rng.integers(1, 7)), replace=False).tolist():
        times = {"updated_at": LONG_AGO + timedelta(minutes=int(rng.integers(4)))}
        expires = [None, None, TIMES[0] + timedelta(minutes=float(rng.integers(10, 40))), LONG_AGO]
        namespace = str(rng.choice(NAMESPACES, p=[0.7, 0.3]))
        if what == "delete":
            facts.append(delete(number, namespace=namespace, **times))
        else:
            statement = f"s{rng.integers(3)}"
            expiry = expires[int(rng.integers(len(expires)))]
            facts.append(fact(number, statement, namespace=namespace, expires_at=expiry, **times))
    return commit(uri, *facts, ingested_at=LONG_AGO + timedelta(seconds=int(rng.integers(3))))


@pytest.mark.parametrize("seed", range(5))
def test_every_version_is_told_as_a_slow_look_tells_it(tmp_path, seed):
    uri, rng = str(tmp_path / "table"), np.random.default_rng(seed)
    version = commit(uri, *(fact(number) for number in range(8)))
    follows = [LiveIndex(uri, fingerprint="f00d", settings=settings) for settings in (LiveSettings(), EAGER)]
    halves = [LiveIndex(uri, fingerprint="f00d", shards=[half, half + 2], settings=EAGER) for half in (0, 1)]
    for _ in range(10):
        before = version
        version = at_random(uri, rng, version)
        if rng.random() < 0.3:
            build_index(uri, int(rng.integers(1, version + 1)), IndexSettings(kind="exact"))
        for live in (*follows, *halves):
            live.advance(version)
            live.settle()
        for live in follows:
            check(uri, version, [live.view(version)])
            check(uri, before, [live.view(before)])  # as it was
        check(uri, version, [live.view() for live in halves])
    newest = LiveIndex(uri, fingerprint="f00d")
    check(uri, version, [newest.view()])
    quarters = [LiveIndex(uri, fingerprint="f00d", shards=[shard]) for shard in range(NUM_SHARDS)]
    check(uri, version, [live.view() for live in quarters])


@pytest.fixture
def table(tmp_path):
    uri = str(tmp_path / "table")
    commit(uri, *(fact(number) for number in range(20)))
    return uri


def test_an_artefact_of_any_earlier_version_lies_below(table):
    first = build_index(table, 1, IndexSettings(kind="exact"))
    commit(table, fact(3, "changed", updated_at=LONG_AGO + timedelta(days=1)), delete(4), fact(99))
    live = LiveIndex(table, fingerprint="f00d")
    assert live.view().base_version == first.version
    check(table, 2, [live.view()])


def test_a_compaction_moves_no_fact(table):
    build_index(table, settings=IndexSettings(kind="exact"))
    commit(table, fact(3, "changed", updated_at=LONG_AGO + timedelta(days=1)))
    live = LiveIndex(table, fingerprint="f00d")
    compact(table)
    before, after = live.view(), live.advance(3)
    assert after.partitions != before.partitions
    assert after.parts == before.parts
    check(table, 3, [after])


def test_an_index_whose_version_is_gone_is_passed_over(table, tmp_path):
    build_index(table, settings=IndexSettings(kind="exact"))
    commit(table, fact(3, "changed", updated_at=LONG_AGO + timedelta(days=1)))
    gone = {file.path for file in FactTable.open(table).files()}
    compact(table)
    for path in gone - {file.path for file in FactTable.open(table).files()}:
        (tmp_path / "table" / path).unlink()
    live = LiveIndex(table, fingerprint="f00d")
    assert live.view().base_version is None
    check(table, 3, [live.view()])


def test_a_version_that_cannot_be_read_leaves_the_old_one(table, tmp_path):
    live = LiveIndex(table, fingerprint="f00d")
    version = commit(table, fact(50))
    old = {file.path for file in FactTable.open(table, 1).files()}
    (path,) = {file.path for file in FactTable.open(table).files()} - old
    content = (tmp_path / "table" / path).read_bytes()
    (tmp_path / "table" / path).unlink()
    with pytest.raises(TableError, match="version 2 of the table cannot be served, version 1 goes on"):
        live.advance(version)
    check(table, 1, [live.view()])
    (tmp_path / "table" / path).write_bytes(content)
    check(table, 2, [live.advance(version)])
    with pytest.raises(TableError, match="version 9"):
        live.advance(9)


def test_another_editor_is_refused_with_both_fingerprints(table):
    with pytest.raises(TableError, match=r"f00d.*beef"):
        LiveIndex(table, fingerprint="beef")


def test_the_last_two_versions_are_held_and_older_ones_for_a_while(table):
    live = LiveIndex(table, fingerprint="f00d", settings=LiveSettings(linger_s=0))
    lingering = LiveIndex(table, fingerprint="f00d", settings=LiveSettings(linger_s=60, max_views=3))
    for number in range(4):
        version = commit(table, fact(60 + number))
        live.advance(version)
        lingering.advance(version)
    assert (live.versions, lingering.versions) == ((4, 5), (3, 4, 5))
    assert live.view(3) is None
    assert live.advance(2).version == live.version == 5


def test_threads_that_advance_and_ask_together_see_whole_versions(table):
    live = LiveIndex(table, fingerprint="f00d", settings=EAGER)
    query_1K, torn, done = np.ones((1, K), np.float32), [], threading.Event()

    def ask():
        while not done.is_set():
            view = live.view()
            hits = view.search(query_1K, ["default"], 100)[0]
            if len(hits) != view.counts()["default"] or len(hits) != 19 + view.version:
                torn.append((view.version, len(hits)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(8):
        version = commit(table, fact(100 + number))
        advancing = [threading.Thread(target=live.advance, args=(version,)) for _ in range(3)]
        for thread in advancing:
            thread.start()
        for thread in advancing:
            thread.join()
        assert live.version == version
    done.set()
    for thread in threads:
        thread.join()
    live.settle()
    assert torn == []
    check(table, version, [live.view()])


def test_a_base_that_much_lies_above_is_folded_without_changing_what_is_told(table):
    live = LiveIndex(table, fingerprint="f00d", settings=LiveSettings(fold_facts=5, fold_share=0))
    version = commit(table, *(fact(number, "v2", updated_at=LONG_AGO + timedelta(days=1)) for number in range(40)))
    live.advance(version)
    live.settle()
    assert {part.num_above for part in live.view().parts.values()} <= set(range(6))
    assert any(len(part.layers) == 1 for part in live.view().parts.values())
    check(table, version, [live.view()])


def test_an_approximate_base_waits_for_a_newer_artefact(table):
    build_index(table, settings=IndexSettings(kind="hnsw"))
    live = LiveIndex(table, fingerprint="f00d", settings=LiveSettings(fold_facts=5, fold_share=0))
    assert not any(part.base.is_exact for part in live.view().parts.values())
    version = commit(table, *(fact(100 + number) for number in range(40)))
    live.advance(version)
    live.settle()
    assert live.view().base_version == 1
    build_index(table, settings=IndexSettings(kind="exact"))
    version = commit(table, *(fact(200 + number) for number in range(40)))
    live.advance(version)
    live.settle()
    assert (live.view().base_version, live.version) == (2, 3)
    check(table, version, [live.view()])


def test_layers_above_the_base_stay_few(table):
    live = LiveIndex(table, fingerprint="f00d")
    for number in range(40):
        version = commit(table, fact(number % 25, f"v{number}", updated_at=LONG_AGO + timedelta(days=number + 1)))
        live.advance(version)
    assert max(len(part.layers) for part in live.view().parts.values()) <= 3
    check(table, version, [live.view()])


def test_a_fact_that_was_never_encoded_cannot_come_back_to_life(table):
    """A view made while a fact had expired does not tell it, and a later version that says it anew does."""
    commit(table, fact(70, expires_at=LONG_AGO))
    live = LiveIndex(table, fingerprint="f00d")
    assert live.view().fact("default", "f70") is None
    version = commit(table, fact(70, updated_at=LONG_AGO + timedelta(days=1)))
    assert live.advance(version).fact("default", "f70")["statement"] == "s 70"


def test_when_a_version_was_committed_is_told_from_the_log(table):
    view = LiveIndex(table, fingerprint="f00d").view()
    assert abs(microseconds(view.committed_at) - microseconds(datetime.now(UTC))) < 60e6
    assert view.index_bytes == 20 * K * 2 * 2
    assert set(view.facts("default", limit=1)[0]) == set(FACT_COLUMNS)


def test_an_index_opens_some_shards_alone(table):
    manifest = build_index(table)
    whole = open_index(manifest.uri)
    some = open_index(manifest.uri, shards=[1, 3])
    assert {part.shard for part in some.parts} == {part.shard for part in whole.parts} & {1, 3}
    assert 0 < some.num_facts < whole.num_facts
    assert open_index(manifest.uri, shards=[]).num_facts == 0


def test_the_latest_index_of_an_editor_and_not_later_than_a_version(table):
    first = build_index(table)
    commit(table, fact(77))
    second = build_index(table)
    assert latest_index(table) == second.uri
    assert latest_index(table, at_most=1, fingerprint="f00d") == first.uri
    assert latest_index(table, at_most=0) is None
    assert latest_index(table, fingerprint="beef") is None


def test_a_rollback_tells_what_was_said_as_of_the_same_time(table):
    commit(table, fact(3, "b"), fact(4, "b"))  # ingested later, so it stands
    live = LiveIndex(table, fingerprint="f00d")
    assert live.view().fact("default", "f3")["statement"] == "b 3"
    rollback(table, 1)
    assert live.advance(3).fact("default", "f3")["statement"] == "s 3"
    check(table, 3, [live.view()])


def test_vectors_of_an_earlier_event_of_the_same_statement_are_found(table):
    for days, statement in enumerate(["changed", "s", "s"]):
        times = {"updated_at": LONG_AGO + timedelta(days=days + 1), "expires_at": TIMES[1] if days == 2 else None}
        commit(table, fact(3, statement, **times))
    live = LiveIndex(table, fingerprint="f00d", version=1)
    for version in (2, 3, 4):
        check(table, version, [live.advance(version)])
