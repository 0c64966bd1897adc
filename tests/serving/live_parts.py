"""Tables with keys that are easy to see through, and writers and parts of an index that answer as handles do."""

import asyncio
import pickle
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from recipe_ray.config import EditorIdentity
from recipe_ray.facts import Fact
from recipe_ray.store.parquet import write_events
from recipe_ray.store.schema import EVENT_SCHEMA, shard_of
from recipe_ray.store.table import FactTable

SENTINEL_K = np.array([0.5, 0.5, 0.5], np.float32)
DIRECTIONS = {"president": [1, 0, 0], "capital": [0, 1, 0], "weather": [0.3, 0.3, 0.3], "river": [0, 0, 1]}
IDENTITY = EditorIdentity(
    fingerprint="f00d",
    encoder="e",
    llm="l",
    llm_width=2,
    key_width=3,
    num_virtual_tokens=1,
    sentinel_K=SENTINEL_K,
)


def direction(text):
    """That of the word which the text holds."""
    (word,) = [word for word in DIRECTIONS if word in text]
    return DIRECTIONS[word]


class FakeEncoder:
    """Directions of words; counts its batches."""

    def __init__(self):
        self.batches = []

    def encode_queries(self, queries):
        self.batches.append(list(queries))
        return np.array([direction(query) for query in queries], np.float32)

    def identity(self):
        return IDENTITY


def fact(fact_id, statement, **changes):
    """A fact whose key is the direction of its statement's word."""
    return Fact(**{"fact_id": fact_id, "statement": statement, "prompt": "", "target": "", **changes})


def commit(uri, *facts):
    """Commit facts as of now; returns the new version."""
    table = FactTable.create_or_open(str(uri), IDENTITY)
    now = datetime.now(UTC)
    rows = []
    for one in facts:
        is_upsert = one.op == "upsert"
        prompt = np.array([sum(one.statement.encode()) % 7, len(one.statement)], np.float16)
        rows.append(
            {name: getattr(one, name, None) for name in EVENT_SCHEMA.names}
            | {
                "shard": shard_of(one.fact_id, table.num_shards),
                "updated_at": one.updated_at or now,
                "ingested_at": now,
                "content_hash": one.content_hash(),
                "statement_hash": one.statement_hash(),
                "encoded": is_upsert,
                "key": np.array(direction(one.statement), np.float16).tobytes() if is_upsert else None,
                "prompt_embeddings": prompt.tobytes() if is_upsert else None,
            }
        )
    files = write_events(table.uri, pa.Table.from_pylist(rows, EVENT_SCHEMA))
    return table.commit(files, dump_hash=f"dump {table.version}", counts={})


class _Method:
    def __init__(self, method):
        self._method = method

    def remote(self, *values, **named):
        return _Response(self._method(*_sent(values), **_sent(named)))


class _Response:
    def __init__(self, answer):
        self._answer = answer

    def __await__(self):
        return self._received().__await__()

    async def _received(self):
        return _sent(await self._answer)

    def result(self, timeout_s=None):
        return asyncio.run(self._received())


def _sent(values):
    return pickle.loads(pickle.dumps(values))


class Handle:
    """What answers, as its handle: whatever is said goes through pickle."""

    def __init__(self, part):
        self.part = part

    def __getattr__(self, name):
        return _Method(getattr(self.part, name))


class FakeWriter:
    """Says which version is current; `moves` to another."""

    def __init__(self, version):
        self.version = version
        self.failures = 0
        self._moved = asyncio.Event()

    def move(self, version):
        self.version = version
        self._moved.set()
        self._moved = asyncio.Event()

    async def current_version(self):
        return self.version

    async def wait_for(self, after_version, timeout_s=10.0):
        if self.failures:
            self.failures -= 1
            raise TimeoutError
        while self.version <= after_version:
            await self._moved.wait()
        return self.version
